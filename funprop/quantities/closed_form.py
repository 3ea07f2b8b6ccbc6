"""What a backward pass knows of its params' gradient example by example, without making it.

The gradient of a weight is a sum over examples, and is made as one. The norm of each example's part
follows from what the layer keeps and from `dy`, both of which have the examples along their first
axis: a closed form, which an author puts beside `backward` with `closed`. It is tied to that
function, so a rewrite with another backward loses it, and never uses it with other residuals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.trees import widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

    Squares = Float[Array, " b"]


AT_ONCE = 8  # of what is added up


class Booking(NamedTuple):
    """What a loss with params keeps, of its own, to have the weighted sum without another pass.

    Attributes:
      passes: `budget -> (forward, backward)`, in the place of its own: forward keeps more, of at
        most so many bytes; `backward(params, residuals, dy)` is `(squares, kept, dx)`, where
        `kept.residuals` and `kept.dy` are what the other closed forms take.
      summed: `(params, kept, factors) -> dparams`, each example's times its factor.
    """

    passes: Callable[[int], tuple[Any, Any]]
    summed: Callable[..., Any]


class Closed(NamedTuple):
    """What is known beside a backward pass.

    Attributes:
      squares: `(params, residuals, dy) -> (squares, dx)`: as `backward`, but in the place of
        `dparams` the squared norm of each example's, `[b]`.
      weighted: of a loss with params: `(residuals, factors) -> residuals` as forward would keep
        them if each example's weight were multiplied by its factor, `[b]`.
      looked_up: of a table that rows are looked up in: `(params, residuals, dy) -> (numbers, d)`,
        which row at each place, `[b, t]`, and the row's cotangent there, `[b, t, f]`.
      rows: of a table that is the first of a layer's params: `(params, residuals, dy, numbers) ->
        [b, t, f]`, these rows of each example's gradient.
      each: `(params, residuals, dy) -> (grads, dx)`: every example's gradient itself, in float32 at
        least, where that may be less work than `squares`.
      outer: of a weight and a bias, `(residuals, dy) -> (rows, d)`, `[b, t, i]` and `[b, t, o]`:
        the gradient of the weight is the sum of `rows^T d` over all places `t`, that of the bias
        the sum of `d`. All else follows from these two (see `outer`).
      moment: `(residuals, weights) -> (a, sums)`: of these rows the sums of `row row^T`, `[i, i]`,
        and of `row`, `[i]`, each times its example's weight, if there are any; where that may be
        less work than from the rows. `w` is then as in `outer`.
      booked: of a loss with params.
    """

    squares: Callable[..., tuple[Any, Any]]
    weighted: Callable[..., Any] | None = None
    looked_up: Callable[..., Any] | None = None
    rows: Callable[..., Any] | None = None
    each: Callable[..., tuple[Any, Any]] | None = None
    outer: Callable[..., tuple[Any, Any]] | None = None
    moment: Callable[..., tuple[Any, Any]] | None = None
    booked: Booking | None = None


def closed(backward: Any, squares: Callable[..., tuple[Any, Any]], **more: Any) -> Any:
    """`backward`, with what is known beside it (see `Closed`)."""
    backward.closed = Closed(squares, **more)
    return backward


def by_each(backward: Any, each: Callable[..., tuple[Any, Any]]) -> Any:
    """`backward`, with every example's gradient beside it (see `Closed.each`), from which the norms
    are too: of a layer whose params are few."""

    def squares(params: Any, residuals: PyTree, dy: PyTree) -> tuple[Squares, PyTree]:
        grads, dx = each(params, residuals, dy)
        return sum_squares(grads), dx

    return closed(backward, squares, each=each)


def closed_of(layer: Any) -> Closed | None:
    """What is known beside the backward of `layer`, if anything."""
    return getattr(layer.backward, "closed", None)


def sum_squares(grads: PyTree) -> Squares:
    """The squared norm of each example, of gradients with the examples along their first axis."""
    leaves = [widen(leaf) for leaf in jax.tree.leaves(grads)]
    return sum((leaf * leaf).sum(tuple(range(1, leaf.ndim))) for leaf in leaves)  # pyright: ignore


def squares_over_first(a: Float[Array, "n *rest"]) -> Float[Array, "*rest"]:
    """The sum of the squares over the first axis, a few at a time: XLA's own goes through memory in
    strides, and takes ten times as long on a CPU where what is behind that axis is large.

    Example:
      >>> squares_over_first(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [10.0, 20.0]
    """

    def some(total: Any, start: Any, size: int) -> Any:
        for i in range(size):
            one = jax.lax.dynamic_index_in_dim(a, start + i, 0, keepdims=False)
            total = total + one * one
        return total

    total = jnp.zeros(a.shape[1:], a.dtype)
    turns, rest = divmod(len(a), AT_ONCE)
    if turns:
        total = jax.lax.fori_loop(0, turns, lambda i, t: some(t, i * AT_ONCE, AT_ONCE), total)
    return some(total, turns * AT_ONCE, rest)


def outer_squares(x: Float[Array, "b *t i"], dy: Float[Array, "b *t o"]) -> Squares:
    """The squared norm of `sum_t x_t dy_t^T`, example by example, the gradient of a weight.

    With `t` places an example, either that matrix is made, at `t i o` products, or

        |sum_t x_t dy_t^T|^2 = sum_ts (x_t . x_s) (dy_t . dy_s),

    at `t^2 (i + o)`: whichever is less. No more is in memory than `x` and `dy` take.
    Source: Goodfellow, arXiv:1510.01799 (one place); Li et al., arXiv:2110.05679 (many).

    Example:
      >>> outer_squares(jnp.array([[1.0, 2.0], [0.0, 3.0]]), jnp.array([[2.0], [1.0]])).tolist()
      [20.0, 9.0]
    """
    x, dy = (widen(a).reshape(len(a), math.prod(a.shape[1:-1]), a.shape[-1]) for a in (x, dy))
    b, t, i, o = *x.shape, dy.shape[-1]
    if t == 1:
        return (x * x).sum((1, 2)) * (dy * dy).sum((1, 2))
    if t * (i + o) <= i * o:
        return (gram(x) * gram(dy)).sum((1, 2))

    def made(one: tuple[Any, Any]) -> Any:
        w = jnp.matmul(one[0].T, one[1], precision=jax.lax.Precision.HIGHEST)
        return (w * w).sum()

    at_once = max(1, b * t * (i + o) // (i * o))
    if at_once >= b:
        return jax.vmap(lambda x, dy: made((x, dy)))(x, dy)
    return jax.lax.map(made, (x, dy), batch_size=at_once)


def gram(x: Float[Array, "b t i"]) -> Float[Array, "b t t"]:
    """`x_t . x_s` for all places of each example. Not in the low precision that accelerators take
    for products: these are summed to a norm, and may cancel."""
    return jnp.einsum("bti,bsi->bts", x, x, precision=jax.lax.Precision.HIGHEST)
