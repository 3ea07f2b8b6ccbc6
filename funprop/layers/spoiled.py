"""Numbers that are not finite, in attention: they spoil the queries that see them, and no others.

A hidden place has a share of zero, but `0 * nan` is NaN: left in a product, what stands at one
place would be in every sum over places. So the passes get finite numbers alone, and the queries
that see others are NaN afterwards. Backward, nothing goes through such a query to what it sees; its
own place gets NaN, where it has a cotangent.

Index legend: as in `attention`; `[b, g, r, t, f]` is of queries by group and head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.layers.heads import Heads
from funprop.trees import lifted, wide_dtype

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float

    Packed = Float[Array, "*batch t p"]
    Spoiled = Bool[Array, "b g r t 1"]


def finite(how: Heads, x: Packed, mask: Bool[Array, "*batch t"] | None) -> tuple[Packed, Spoiled]:
    """`x` with zero for what is not finite and for what the mask hides, and which queries of which
    heads see something that is not finite."""
    heads = how.heads + 2 * how.kv_heads
    parts = x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
    shown = jnp.isfinite(parts)
    if mask is not None:
        query = lifted(jnp.arange(heads) < how.heads, parts[..., 0])
        shown = shown & (mask[..., None] | query)[..., None]  # queries are not hidden
    spoiled, each = _spoiled(how, parts, mask), how.heads // how.kv_heads
    spoiled = spoiled.reshape(math.prod(x.shape[:-2]), x.shape[-2], how.kv_heads, each)
    return jnp.where(shown, parts, 0).reshape(x.shape), jnp.moveaxis(spoiled, 1, -1)[..., None]


def _spoiled(how: Heads, parts: Float[Array, "*batch t parts f"], mask: Any) -> Any:
    # A product with a vector, as sums over booleans take long on a CPU. It is finite where all
    # features are: a mean does not overflow.
    mean = jnp.full(parts.shape[-1:], 0.5 / parts.shape[-1], parts.dtype)
    mean = jnp.matmul(parts, mean, preferred_element_type=wide_dtype(parts.dtype))
    wrong = ~jnp.isfinite(mean)
    q, k, v = jnp.split(wrong, (how.heads, how.heads + how.kv_heads), -1)
    kv = k | v
    if mask is not None:
        kv = kv & mask[..., None]
    return q | jnp.repeat(_sees_any(how, kv), how.heads // how.kv_heads, -1)


def overflown(how: Heads, norm: Float[Array, "b g r t"], mask: Any) -> Spoiled:
    """Which queries see something, and score all of it at `-inf`: finite numbers, whose products
    are too large. One that sees nothing has the same `norm`, and is right."""
    lost = jnp.isneginf(norm)
    if mask is not None:  # without one, each sees itself
        sees = _sees_any(how, mask.reshape(len(norm), norm.shape[-1], 1))
        lost = lost & sees.reshape(len(norm), 1, 1, norm.shape[-1])
    return lost[..., None]


def _sees_any(how: Heads, marked: Bool[Array, "*batch t n"]) -> Bool[Array, "*batch t n"]:
    """Whether the query at each place may look at a key that is marked."""
    so_far = jnp.cumsum(marked, -2, dtype=jnp.int32)
    so_far = jnp.pad(so_far, [(0, 0)] * (marked.ndim - 2) + [(1, 0), (0, 0)])
    low, high = how.reach(marked.shape[-2])
    return jnp.take(so_far, high, -2) > jnp.take(so_far, low, -2)
