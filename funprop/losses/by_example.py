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

from funprop.losses.chunks import Chunk, over_chunks, product
from funprop.losses.rows import softmax_of, tile_of
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
    tile = tile_of(some * t, classes, i)

    def turn(_: None, part: Any) -> Any:
        x, labels, d, hidden = part
        terms, norms, e, total = softmax_of(smoothed, whole, x, labels, hidden)
        x = x.astype(narrow)
        wide = widen(x).reshape(some, t, i)

        def step(carry: Any, part: Chunk) -> Any:
            dx, found, products, kept = carry
            p = jax.lax.dynamic_slice_in_dim(e, part.start, len(part.w), 1) / total[:, None]
            dz = zero_at(smoothed.gradient(p, part.is_target(labels), norms, d), hidden)
            one = dz.reshape(some, t, len(part.w))
            db = None if part.b is None else one.sum(1)
            if db is not None:
                found = found + sum_squares(db)
            narrow_dz = dz.astype(narrow)
            if made:
                dw = _each_product(narrow_dz.reshape(one.shape), x.reshape(wide.shape))
                found = found + sum_squares(dw)
                own = dw, db
            else:
                products = products + gram(one)
                own = (narrow_dz,)
            if keep:
                kept = jax.tree.map(lambda k, o: _put(k, o, part.start), kept, own)
            return dx + product(narrow_dz, part.w), found, products, kept

        room = None
        if keep and made:
            db = None if params.b is None else jnp.zeros((some, classes), wide.dtype)
            room = jnp.zeros((some, classes, i), wide.dtype), db
        elif keep:
            room = (jnp.zeros((some * t, classes), narrow),)
        products = None if made else jnp.zeros((some, t, t), wide.dtype)
        start = jnp.zeros_like(widen(x)), jnp.zeros(some, wide.dtype), products, room
        dx, found, products, kept = over_chunks(step, start, fixed, tile)
        if products is not None:
            found = found + (gram(wide) * products).sum((1, 2))
        return None, (terms, norms, dx.astype(narrow), found, kept)

    turns = jax.tree.map(lambda a: a.reshape(b // some, some * t, *a.shape[1:]), (rows, labels, d, hidden))
    _, out = jax.lax.scan(turn, None, turns)
    joined = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), out)
    terms, norms, dx, squares, kept = joined
    grads = type(params)(*kept) if keep and made else None
    return terms, norms, Noted(dx, squares, kept[0] if keep and not made else None, grads)


def summed(
    params: Any, rows: Rows, noted: Noted, factors: Float[Array, " b"]
) -> Any:
    """The sum of each example's gradient of `w` and `b` times its factor."""
    if noted.grads is not None:
        of = weighted_sum_of(noted.grads, factors)
    else:
        each = jnp.repeat(factors, len(rows) // len(factors))[:, None]

        def step(carry: Any, part: Chunk) -> Any:
            dz = jax.lax.dynamic_slice_in_dim(noted.dz, part.start, len(part.w), 1)
            dz = jnp.where(each == 0, 0, widen(dz) * each)
            db = part.put(carry.b, dz.sum(0))
            dw = product(dz.astype(noted.dz.dtype).T, rows)
            return type(params)(part.put(carry.w, dw), db)

        zeros = jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params)
        tile = tile_of(len(rows) // 8, len(params.w), rows.shape[1])
        of = over_chunks(step, zeros, params, tile)
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


def _put(whole: Any, part: Any, start: Any) -> Any:
    """`whole` with the part of some classes, along its second axis, in its place."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, 1)
