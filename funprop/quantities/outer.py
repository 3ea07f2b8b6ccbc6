"""What follows where a weight's gradient is a sum of outer products, and a bias's that of one side.

Of a dense layer, a convolution (its patches) and whatever else is affine at each of `t` places: the
layer says the two sides (`Closed.outer`), and every quantity of its params is made of them here.

Index legend: `b` examples, `t` places, `i` inputs, `o` outputs, `c` columns (many cotangents).
Params are a NamedTuple of `w [..., i, o]`, of which the axes in front count as inputs, and `b [o]`
or `None`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.quantities.closed_form import (
    closed,
    gram,
    outer_squares,
    squares_over_first,
    sum_squares,
)
from funprop.trees import wide_dtype, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

    Rows = Float[Array, "b t i"]
    D = Float[Array, "b t o"]
    Columns = Float[Array, "c b t o"]

HIGHEST = jax.lax.Precision.HIGHEST  # what is summed to a norm, or inverted


def by_outer(
    backward: Any,
    taken: Callable[[PyTree, PyTree], tuple[Rows, D]],
    moment: Callable[..., tuple[Any, Any]] | None = None,
) -> Any:
    """`backward`, marked with the closed forms that follow from `taken` (see `Closed.outer`), and
    with the rows' `moment`, if there is another way to it (see `Closed.moment`)."""

    def squares(params: Any, residuals: PyTree, dy: PyTree) -> tuple[Float[Array, " b"], PyTree]:
        rows, d = taken(residuals, dy)
        found = outer_squares(rows, d)
        if params.b is not None:
            found = found + sum_squares(widen(d).sum(1))
        return found, backward(params, residuals, dy)[1]

    def each(params: Any, residuals: PyTree, dy: PyTree) -> tuple[Any, PyTree]:
        rows, d = taken(residuals, dy)
        return placed(params, _each(rows, d), widen(d).sum(1)), backward(params, residuals, dy)[1]

    return closed(backward, squares, each=each, outer=taken, moment=moment)


def _each(rows: Rows, d: D) -> Float[Array, "b i o"]:
    """Every example's gradient; of one place, no product for a library of them."""
    if rows.shape[1] == 1:
        return widen(rows[:, 0])[:, :, None] * widen(d[:, 0])[:, None]
    return jnp.einsum("bti,bto->bio", rows, d, preferred_element_type=wide_dtype(d.dtype))


def placed(params: Any, w: Float[Array, "*n i o"], b: Float[Array, "*n o"]) -> Any:
    """What stands in the place of params."""
    lead = w.shape[:-2]
    in_place = w.reshape(*lead, *params.w.shape)
    return params._replace(w=in_place, b=None if params.b is None else b)


def second_moment(params: Any, rows: Rows, d: Columns) -> Any:
    """The sum of the squares of every example's gradient, element by element, over all columns.

    With one place an example it is one product. With more, the gradients are made, of a few
    examples at a time, as many as take the memory of `rows` and `d`.
    """
    rows, d = widen(rows), widen(d)
    (c, b, t, o), i = d.shape, rows.shape[-1]
    if t == 1:
        x, dy = jnp.square(rows[:, 0]), squares_over_first(d[:, :, 0])
        of_bias = dy.sum(0)
        return placed(params, jnp.matmul(x.T, dy, precision=HIGHEST), of_bias)

    def some(rows: Rows, d: Columns) -> Float[Array, "i o"]:
        made = jnp.einsum("bti,cbto->cbio", rows, d, precision=HIGHEST)
        return squares_over_first(made.reshape(c * len(rows), i, o))

    of_bias = jnp.square(d.sum(2)).sum((0, 1))
    size = max(1, min(b, b * t * (i + c * o) // max(1, c * i * o)))
    turns, rest = divmod(b, size)
    total = jnp.zeros((i, o), rows.dtype)
    if turns:

        def add(turn: Any, total: Any) -> Any:
            part = jax.lax.dynamic_slice_in_dim(rows, turn * size, size)
            return total + some(part, jax.lax.dynamic_slice_in_dim(d, turn * size, size, 1))

        total = jax.lax.fori_loop(0, turns, add, total) if turns > 1 else add(0, total)
    if rest:
        total = total + some(rows[turns * size :], d[:, turns * size :])
    return placed(params, total, of_bias)


def products(params: Any, rows: Rows, d: D) -> Float[Array, "b b"]:
    """The products of the gradients of all pairs of examples.

    As `outer_squares`: from the gradients themselves, or from the products of rows and of `d`
    alone, `sum_ts (x_at . x_bs) (d_at . d_bs)`, whichever is less.
    """
    rows, d = widen(rows), widen(d)
    (b, t, i), o = rows.shape, d.shape[-1]
    if b * t * t * (i + o) <= t * i * o + b * i * o:
        x, y = (a.reshape(1, b * t, a.shape[-1]) for a in (rows, d))
        found = (gram(x) * gram(y)).reshape(b, t, b, t).sum((1, 3))
    else:
        made = jnp.einsum("bti,bto->bio", rows, d, precision=HIGHEST).reshape(b, i * o)
        found = gram(made[None])[0]
    return found if params.b is None else found + gram(d.sum(1)[None])[0]


class Factors(NamedTuple):
    """The Kronecker factors of a layer's block of the Gauss-Newton matrix, in the place of its
    params: sums over the batch, of which the block is nearly `kron(a, g) / weight`.

    Attributes:
      a: `[i, i]` of the layer's inputs; `i` is one more with a bias, of which the input is one.
      g: `[o, o]` of the cotangents of its outputs.
      weight: how many terms are summed.
    """

    a: Any
    g: Any
    weight: Any


def factors(
    params: Any,
    rows: Rows,
    d: Columns,
    examples: Float[Array, " b"] | None,
    sharing: str,
    moment: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Factors:
    """The factors of a layer that is used at `t` places: each place by itself ("expand"), or the
    mean of its inputs and the sum of its cotangents ("reduce"). `examples` are their weights, if
    they have any; `moment` of them is that of the rows, where these are not to be made.

    Source: Martens and Grosse, arXiv:1503.05671; with many places, Grosse and Martens,
    arXiv:1602.01407, and Eschenhagen et al., arXiv:2311.00636.
    """
    rows, d = widen(rows), widen(d)
    if sharing == "reduce":
        rows, d = rows.mean(1, keepdims=True), d.sum(2, keepdims=True)
    c, b, t, o = d.shape
    x, y = rows.reshape(b * t, rows.shape[-1]), d.reshape(c * b * t, o)
    n = jnp.ones(b, x.dtype) if examples is None else examples.astype(x.dtype)
    n, weights = jnp.repeat(n, t), None if examples is None else n
    g = jnp.matmul(y.T, y, precision=HIGHEST)
    if moment is not None and sharing == "expand":
        a, side = moment(weights)
        return Factors(a if params.b is None else _bordered(a, side, n), g, n.sum())
    beside = params.b is not None and len(x) < x.shape[1]  # of rows and `a`, the smaller is copied
    if beside:  # the input of a bias is one
        x = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], 1)
    a = jnp.matmul((x if examples is None else x * n[:, None]).T, x, precision=HIGHEST)
    if params.b is not None and not beside:
        a = _bordered(a, jnp.matmul(n, x, precision=HIGHEST), n)
    return Factors(a, g, n.sum())


def _bordered(a: Any, side: Any, n: Any) -> Any:
    """The second moment of inputs with a one behind them."""
    return jnp.block([[a, side[:, None]], [side[None], n.sum().reshape(1, 1)]])
