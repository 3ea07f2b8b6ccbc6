"""Unembedding and softmax cross-entropy in one rule, in chunks: neither the logits nor their
gradient ever exist whole."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from funprop import trees
from funprop.drawing import normal
from funprop.layer import Layer, layer
from funprop.looping import looping, varying
from funprop.losses import by_example as examples
from funprop.losses.by_example import rows_with_a_say
from funprop.losses.chunks import Chunk, over_chunks, product
from funprop.losses.chunks import forward as classes_forward
from funprop.losses.formulas import FORMULAS
from funprop.losses.rows import forward as rows_forward
from funprop.losses.rows import sized
from funprop.losses.smoothed import Smoothed, each
from funprop.losses.targets import given
from funprop.losses.targets import labels as check_labels
from funprop.losses.terms import pull_sum, spoiled, zero_at
from funprop.losses.unembedding import as_two
from funprop.mesh import split_by_xla
from funprop.quantities.closed_form import Booking, closed
from funprop.trees import Sum, spread, weighted_sum, widen
from funprop.values import real_number, whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Key

    Rows = Float[Array, "n i"]

CHUNK = 1024  # classes
FEW, MOST = 64, 256  # rows: fewer add up `dw` too often, more are in no cache
ON_CPU, ELSEWHERE = 2**25, 2**29  # bytes: a GPU wants large products, and has the memory


class LinearParams(NamedTuple):
    """The params of `linear_cross_entropy`.

    Attributes:
      w: weights, `[classes, i]`: the layout of an embedding's table, so that the two can be tied.
      b: biases, `[classes]`, or `None`.
    """

    w: Any
    b: Any

    roles = {"w": "weight", "b": "bias"}


def linear_cross_entropy(
    classes: int,
    *,
    chunk: int | None = None,
    rows: int | None = None,
    budget: int | None = None,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    bias: bool = False,
    w_init: Callable[..., Array] = normal(0.02),  # noqa: B008  # a pure function
) -> Layer:
    """`softmax_cross_entropy` of `z = x w^T + b`, one term a row of `x`, with `w` its params.

    Index legend: `n` rows, `i` inputs, `c` classes; `q` the targets, smoothed.

        term_n = l_n - sum_c q_nc z_nc + zeta l_n^2,    l_n = log sum_c exp z_nc

    Backward: with `p = exp(z - l)`,

        dz_nc = (p_nc (1 + 2 zeta l_n) - q_nc) dterm_n,    dx = dz w,    dw = dz^T x.

    There are two ways. **Classes in chunks**, the lean one: forward keeps `x` and two numbers a
    row, whose sum is `l`; backward computes each chunk of `z` again, uses it for `dx` and for the
    chunk's part of `dw`, and forgets it. Four products; `n * chunk` numbers in the place of
    `n * classes`. **Rows in chunks**, the fast one: a chunk of rows has all of its logits at once,
    so forward takes the gradient too, and backward scales it by `dtotal`. Three products; three
    times `rows * classes` numbers, and `dw` exists from here on. Where no backward pass follows,
    XLA leaves out what is for it.

    If neither `chunk` nor `rows` is given, it is rows: as many as have their logits in `budget`,
    on a CPU 256 at most, which stay in its cache. But it is classes where fewer than 64 of them,
    and not all, would be in a CPU's budget, and where XLA splits arrays over devices (`shard`,
    `jax.set_mesh`), which would add up `dw` over them once a chunk.

    A label out of range raises where its value is known, unless its weight is zero; inside `jit`,
    where it is not, it makes the loss NaN, and all of `dw`. Infinite logits: as in
    `softmax_cross_entropy`.

    Args:
      classes: how many; the size of the vocabulary.
      chunk: how many classes at a time; 1,024 if it is classes and not given.
      rows: how many rows at a time.
      budget: bytes for the logits of one chunk of rows, where the way is not given; without it,
        32 MiB on a CPU and 512 MiB elsewhere.
      smoothing: the share of the target that is spread evenly over the classes.
      z_loss: `zeta`, which keeps the logits from drifting away.
      bias: whether `b` is added.
      w_init: initialiser of `w`.

    Shapes: `x [*n, i]`, labels `[*n]` integers, weights a leading part of `[*n]`.

    Source: the chunks of Liger Kernel (Hsu et al., arXiv:2410.10989) and Cut Cross-Entropy
    (Wijmans et al., arXiv:2411.09009); z-loss: Chowdhery et al., arXiv:2204.02311, section 5.

    Raises:
      ValueError: `classes`, `chunk`, `rows`, `budget`, `smoothing` or `z_loss` is out of its range;
        both `chunk` and `rows` are given; the shapes do not go together; a label is out of range.
      TypeError: labels are not integers; `x` is not of floating dtype.

    Example:
      >>> head = linear_cross_entropy(4, chunk=3)
      >>> x, labels = jnp.ones((2, 5)), jnp.array([0, 3])
      >>> loss, kept = head.forward(LinearParams(jnp.zeros((4, 5)), None), (x, labels))
      >>> round(float(loss.mean), 4)  # log 4
      1.3863
    """
    classes = whole_number(classes, "classes", 1)
    budget = None if budget is None else whole_number(budget, "budget", 0)
    chunk = None if chunk is None else whole_number(chunk, "chunk", 1)
    rows = None if rows is None else whole_number(rows, "rows", 1)
    if chunk is not None and rows is not None:
        raise ValueError(f"chunk or rows must be given, not both, got {chunk} and {rows}")
    smoothing, z_loss = real_number(smoothing, "smoothing"), real_number(z_loss, "z_loss")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
    if not z_loss >= 0:
        raise ValueError(f"z_loss must be at least 0, got {z_loss}")

    smoothed = Smoothed(classes, smoothing, z_loss)
    by_classes, chunk_size = chunk is not None, CHUNK if chunk is None else chunk

    def init(key: Key[Array, ""], x: Any) -> LinearParams:
        outputs = x[0]
        _check_inputs(outputs)
        w = w_init(key, (classes, outputs.shape[-1]), outputs.dtype)
        return LinearParams(w, jnp.zeros(classes, outputs.dtype) if bias else None)

    def forward(params: LinearParams, batch: tuple[Any, ...]) -> tuple[Sum, Any]:
        return passed(params, batch, rows_at_once, rows_forward)

    def passed(params: LinearParams, batch: Any, at_once: Any, taking: Any) -> tuple[Sum, Any]:
        x, labels, valid, *weights = _checked(params, batch, classes)
        found, hidden, lost = rows_with_a_say(x, *weights)
        chosen = labels.reshape(-1)
        sizes = at_once(x)
        if sizes:
            d, _ = pull_sum((1, 0), jnp.zeros(labels.shape, widen(found).dtype), *weights)
            d = spoiled(d, valid).reshape(-1)
            take = functools.partial(taking, smoothed)
            terms, norms, taken = sized(take, sizes, params, found, chosen, d, hidden)
        else:
            terms, norms = classes_forward(smoothed, params, found, chosen, hidden, chunk_size)
            taken = None
        terms = spoiled(terms if lost is None else jnp.where(lost, jnp.nan, terms), valid.ravel())
        terms = terms.reshape(labels.shape)
        return weighted_sum(terms, *weights), (x, norms, labels, valid, terms, taken, *weights)

    def fitting(x: Any) -> tuple[int, int]:
        """How many rows have their logits in the budget: on a CPU, and elsewhere."""
        if rows is not None:
            return rows, rows
        a_row = classes * widen(x).dtype.itemsize
        on_cpu, elsewhere = (ON_CPU, ELSEWHERE) if budget is None else (budget, budget)
        return on_cpu // a_row, elsewhere // a_row

    def rows_at_once(x: Any) -> tuple[int, int] | None:
        """Of the fast way, on a CPU and elsewhere; `None` for the lean one."""
        n, (on_cpu, elsewhere) = math.prod(x.shape[:-1]), fitting(x)
        if rows is None:
            if on_cpu < min(n, FEW) or split_by_xla():
                return None
            on_cpu = min(on_cpu, MOST)
        return None if by_classes or not n else (min(n, on_cpu), min(n, elsewhere))

    def logit_cotangents(residuals: Any, dy: Any) -> tuple[Any, Any, Any]:
        """The rows of `x`, the function from `z` and which of it is the target to `dz`, and the
        weights' cotangents."""
        x, norms, _, valid, terms, _, *weights = residuals
        dterms, dweights = pull_sum(dy, terms, *weights)
        found, hidden, _ = rows_with_a_say(x, *weights)
        d = spoiled(dterms, valid).reshape(-1)

        def dz(z: Any, is_target: Any) -> Any:
            p = jnp.exp(each(z, norms[0]) - norms[1][:, None])
            return zero_at(smoothed.gradient(p, is_target, norms, d), hidden)

        return found, dz, dweights

    @looping()
    def backward(
        params: LinearParams, residuals: tuple[Any, ...], dy: Any
    ) -> tuple[LinearParams, tuple[Any, ...]]:
        x, _, labels, _, terms, taken, *weights = residuals
        if taken is not None:
            _, dweights = pull_sum(dy, terms, *weights)
            each = zip(taken, (x, *params), strict=True)
            dx, dw, db = (_scaled(dy[0], d, like) for d, like in each)
            return LinearParams(dw, db), (dx.reshape(x.shape), None, *dweights)
        found, dz_of, dweights = logit_cotangents(residuals, dy)
        chosen = labels.reshape(-1)

        def step(carry: Any, part: Chunk) -> Any:
            dx, dw, db = carry
            dz = dz_of(part.logits(found), part.is_target(chosen))
            db, dz = part.put(db, dz.sum(0)), dz.astype(x.dtype)
            dx = dx + product(dz, part.w)  # dx[n,i] = sum_c dz[n,c] w[c,i]
            dw = part.put(dw, product(dz.T, found))  # dw[c,i] = sum_n dz[n,c] x[n,i]
            return dx, dw, db

        zeros = LinearParams(*(None if p is None else jnp.zeros_like(p) for p in params))
        start = varying((jnp.zeros_like(widen(found)), *zeros), params, residuals, dy)
        dx, dw, db = over_chunks(step, start, params, chunk_size)
        return LinearParams(dw, db), (dx.astype(x.dtype).reshape(x.shape), None, *dweights)

    squares = functools.partial(examples.squares, logit_cotangents, chunk_size)
    gradient_rows = functools.partial(examples.gradient_rows, logit_cotangents)

    def weighted(residuals: tuple[Any, ...], factors: Float[Array, " b"]) -> tuple[Any, ...]:
        x, norms, labels, valid, terms, _, *weights = residuals
        factors = spread(factors, terms)
        weights = factors * spread(weights[0], terms) if weights else factors
        # What was taken has the old weights.
        return x, norms, labels, valid, terms, None, weights

    def examples_at_once(x: Any) -> tuple[int, int] | None:
        """As `rows_at_once`, of whole examples."""
        sizes, t = rows_at_once(x) or (0, 0), math.prod(x.shape[1:-1])
        on_cpu, elsewhere = (
            size and (size // t or int(t <= fit))
            for size, fit in zip(sizes, fitting(x), strict=True)
        )
        return (on_cpu, elsewhere) if on_cpu else None

    def passes(room: int) -> tuple[Any, Any]:
        def noting(params: LinearParams, batch: Any, key: Any = None) -> tuple[Sum, Any]:
            taking = functools.partial(examples.forward, b=len(batch[0]), budget=room)
            return passed(params, batch, examples_at_once, taking)

        def noted(params: LinearParams, residuals: Any, dy: Any) -> tuple[Any, Any, Any]:
            x, norms, labels, valid, terms, taken, *weights = residuals
            plain = x, norms, labels, valid, terms, None, *weights
            if taken is None:
                found, dx = squares(params, plain, dy)
                return found, examples.Kept(plain, dy, None), dx
            kept = examples.Kept(plain, dy, taken._replace(x=None, squares=None))
            _, dweights = pull_sum(dy, terms, *weights)
            dx = _scaled(dy[0], taken.x, x).reshape(x.shape)
            return taken.squares * dy[0].astype(terms.dtype) ** 2, kept, (dx, None, *dweights)

        return noting, noted

    def summed(params: LinearParams, kept: Any, factors: Float[Array, " b"]) -> LinearParams:
        residuals, dy, noted = kept
        if noted is None or (noted.dz is None and noted.grads is None):
            return backward(params, weighted(residuals, factors), dy)[0]
        found = rows_with_a_say(residuals[0], *residuals[6:])[0]
        return examples.summed(params, found, noted, factors * dy[0].astype(factors.dtype))

    own = Booking(passes, summed)
    marked = closed(backward, squares, weighted=weighted, rows=gradient_rows, booked=own)
    marked = as_two(marked, smoothing, z_loss)
    name = "linear_cross_entropy"
    formula = FORMULAS[name + "_z" if z_loss else name]
    return layer(init=init, forward=forward, backward=marked, name=name, formula=formula)


def _scaled(dtotal: Any, taken: Any, like: Any) -> Any:
    return None if taken is None else (taken * dtotal.astype(taken.dtype)).astype(like.dtype)


def check_params(params: Any) -> None:
    """Raise where they are not those of the head."""
    if not isinstance(params, LinearParams):
        raise TypeError(f"params must be LinearParams(w, b), got {type(params).__name__}")


def _checked(params: Any, batch: Any, classes: int) -> tuple[Any, ...]:
    """`x`, the labels in int32, which of them are in range, and the weights, if any."""
    x, labels, *weights = given(batch, "labels")
    check_params(params)
    _check_inputs(x)
    if params.w.shape != (classes, x.shape[-1]):
        raise ValueError(
            f"x must have a last axis of {params.w.shape[-1]} to go with w of shape "
            f"{tuple(params.w.shape)}, got x of shape {tuple(x.shape)}"
        )
    return (x, *check_labels(labels, x.shape[:-1], classes, *weights), *weights)


def _check_inputs(x: Any) -> None:
    trees.require_float(x)
    if not x.ndim or not x.shape[-1]:
        raise ValueError(f"x must have a last axis of inputs, got shape {tuple(x.shape)}")
