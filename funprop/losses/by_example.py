"""The head's gradient example by example: its norms alone, or norms and what their sum is made of.

For both, each turn has all logits of a few examples, and takes their gradient as `losses.rows`
does; but of the weights it takes the squared norm of each example's, and keeps what the weighted
sum is made of: each example's gradient, or the cotangents of the logits, whichever is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.looping import varying
from funprop.losses.chunks import Chunk, over_chunks, product
from funprop.losses.rows import softmax_of
from funprop.losses.smoothed import Smoothed
from funprop.losses.terms import without_say, zero_at
from funprop.quantities.closed_form import gram, sum_squares
from funprop.quantities.weighted import weighted_sum_of
from funprop.trees import wide_dtype, widen
from funprop.values import to_int32

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Int

    Rows = Float[Array, "n i"]

HIGH = jax.lax.Precision.HIGHEST


class Noted(NamedTuple):
    """What was taken in the forward pass, for a `dtotal` of one.

    Attributes:
      x: the cotangent of the rows, `[n, i]`.
      squares: of each example's gradient of the params, `[b]`.
      dz: the cotangents of the logits, `[n, c]`, if they are kept.
      grads: each example's gradient of `w` and `b`, if those are.
    """

    x: Any
    squares: Any
    dz: Any
    grads: Any


class Kept(NamedTuple):
    """What stays for the weighted sum; `noted` where all logits of an example had room."""

    residuals: Any
    dy: Any
    noted: Any


def forward(
    smoothed: Smoothed,
    params: Any,
    rows: Rows,
    labels: Int[Array, " n"],
    d: Float[Array, " n"],
    hidden: Bool[Array, " n"] | None,
    size: int,
    b: int,
    budget: int,
) -> tuple[Any, Any, Noted]:
    """The terms, each row's shift and norm, and what is noted; `size` of the `b` examples at
    most a turn."""
    whole = Chunk(0, *params)
    fixed = jax.lax.stop_gradient(params)
    narrow = rows.dtype if rows.dtype != jnp.float16 else jnp.float32
    t, i, classes = len(rows) // b, rows.shape[1], len(params.w)
    some = next(m for m in range(min(size, b), 0, -1) if b % m == 0)
    made = i <= t  # then each example's gradient is smaller, and all of its norm
    bytes_of = (b * i if made else len(rows)) * classes * wide_dtype(rows.dtype).itemsize
    keep = bytes_of <= budget

    def turn(_: None, part: Any) -> Any:
        x, labels, d, hidden = part
        terms, norms, e, total = softmax_of(smoothed, whole, x, labels, hidden)
        p = e / total[:, None]
        dz = zero_at(smoothed.gradient(p, whole.is_target(labels), norms, d), hidden)
        one, wide = (a.reshape(some, t, a.shape[1]) for a in (dz, widen(x)))  # by example
        x, dz = x.astype(narrow), dz.astype(narrow)
        db = None if params.b is None else one.sum(1)
        if made:
            dw = _each_product(*(a.reshape(some, t, a.shape[1]) for a in (dz, x)))
            kept, squares = (dw, db), sum_squares(dw)
        else:
            kept, squares = dz, (gram(wide) * gram(one)).sum((1, 2))
        if db is not None:
            squares = squares + sum_squares(db)
        dx = product(dz, fixed.w).astype(narrow)
        return None, (terms, norms, dx, squares, kept if keep else None)

    turns = jax.tree.map(
        lambda a: a.reshape(b // some, some * t, *a.shape[1:]), (rows, labels, d, hidden)
    )
    _, found = jax.lax.scan(turn, None, turns)
    terms, norms, dx, squares, kept = jax.tree.map(
        lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), found
    )
    dz, grads = (None, type(params)(*kept)) if keep and made else (kept, None)
    return terms, norms, Noted(dx, squares, dz, grads)


def summed(params: Any, rows: Rows, noted: Noted, factors: Float[Array, " b"]) -> Any:
    """The sum of each example's gradient of `w` and `b` times its factor."""
    if noted.grads is not None:
        of = weighted_sum_of(noted.grads, factors)
    else:
        # Of an example whose factor is zero `dz` is finite: were it not, the norm would be NaN.
        each = jnp.repeat(factors, len(rows) // len(factors)).astype(widen(rows).dtype)
        dw = product(noted.dz.T, (each[:, None] * rows).astype(noted.dz.dtype))
        of = type(params)(dw, None if params.b is None else each @ widen(noted.dz))
    return jax.tree.map(lambda d, p: d.astype(p.dtype), of, params)


def squares(
    cotangents: Callable[..., Any], chunk: int, params: Any, residuals: tuple[Any, ...], dy: Any
) -> tuple[Float[Array, " b"], tuple[Any, ...]]:
    """The squared norm of each example's gradient, and the cotangents of the batch: by
    `outer_squares` a chunk of the classes at a time, a sum over them in either form."""
    x, _, labels, *_ = residuals
    rows, dz_of, dweights = cotangents(residuals, dy)
    chosen, wide = labels.reshape(-1), by_example(rows, x)
    b, t, i = wide.shape

    def step(carry: Any, part: Chunk) -> Any:
        dx, found, products = carry
        dz = dz_of(part.logits(rows), part.is_target(chosen))
        one = dz.reshape(b, t, part.w.shape[0])
        if params.b is not None:
            found = found + sum_squares(one.sum(1))
        if t <= i:
            products = products + gram(one)
        else:
            found = found + sum_squares(jnp.einsum("btc,bti->bci", one, wide, precision=HIGH))
        return dx + product(dz.astype(x.dtype), part.w), found, products

    zeros = jnp.zeros(b, wide.dtype)
    products = jnp.zeros((b, t, t), wide.dtype) if t <= i else None
    start = varying((jnp.zeros_like(widen(rows)), zeros, products), params, residuals, dy)
    dx, found, products = over_chunks(step, start, params, chunk)
    if products is not None:
        found = found + (gram(wide) * products).sum((1, 2))
    return found, (dx.astype(x.dtype).reshape(x.shape), None, *dweights)


def gradient_rows(
    cotangents: Callable[..., Any],
    params: Any,
    residuals: tuple[Any, ...],
    dy: Any,
    numbers: Int[Array, "b s"],
) -> Float[Array, "b s i"]:
    """`sum_t dz[b,t,c] x[b,t,i]` for the classes `c` that are given, of each example's `dw`."""
    x, _, labels, *_ = residuals
    rows, dz_of, _ = cotangents(residuals, dy)
    wide = by_example(rows, x)
    z = jnp.einsum("bti,bsi->bts", wide, widen(params.w[numbers]), precision=HIGH)
    if params.b is not None:
        z = z + widen(params.b[numbers])[:, None]
    same = labels.reshape(*wide.shape[:2], 1) == to_int32(numbers)[:, None]
    dz = dz_of(*(a.reshape(len(rows), z.shape[-1]) for a in (z, same))).reshape(z.shape)
    return jnp.einsum("bts,bti->bsi", dz, wide, precision=HIGH)


def rows_with_a_say(x: Float[Array, "*n i"], *weights: Any) -> tuple[Any, Any, Any]:
    """`x` as rows; which of them have a weight of zero; and which of those hold NaN or infinity,
    which are zero in the rows, as `dw = dz^T x` would otherwise be NaN."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    hidden = without_say(x.shape[:-1], x.dtype, *weights)
    if hidden is None:
        return rows, None, None
    hidden = hidden.reshape(-1)
    lost = hidden & ~jnp.isfinite(jnp.abs(rows).max(-1, initial=0))
    return jnp.where(lost[:, None], 0, rows), hidden, lost


def by_example(rows: Rows, x: Float[Array, "b *t i"]) -> Float[Array, "b t i"]:
    """The rows of each example together, in float32 at least."""
    return widen(rows).reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def _each_product(dz: Float[Array, "m t c"], x: Float[Array, "m t i"]) -> Float[Array, "m c i"]:
    if len(x) == 1:  # as one product, which XLA spreads over cores
        return product(dz[0].T, x[0])[None]
    return jnp.einsum("mtc,mti->mci", dz, x, preferred_element_type=wide_dtype(x.dtype))
