"""The head's gradient example by example, found with the logits: for norms and sum by one pass.

Each turn has all logits of a few examples, and takes their gradient as `losses.rows` does; but of
the weights it takes the squared norm of each example's, and keeps what the weighted sum of them is
made of: each example's gradient, or the cotangents of the logits, whichever is smaller.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.losses.chunks import Chunk, product
from funprop.losses.rows import softmax_of
from funprop.losses.smoothed import Smoothed
from funprop.losses.terms import without_say, zero_at
from funprop.quantities.closed_form import gram, sum_squares
from funprop.quantities.weighted import weighted_sum_of
from funprop.trees import wide_dtype, widen

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    Rows = Float[Array, "n i"]


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
    """What stays for the weighted sum: `noted` where there was room for the logits of an example."""

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
