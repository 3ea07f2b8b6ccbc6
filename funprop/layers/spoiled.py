"""Numbers that are not finite, in attention: they spoil the queries that see them, and no others.

A hidden place has a share of zero, but `0 * nan` is NaN: left in a product, what stands at one
place would be in every sum over places. So the passes get finite numbers alone, and the queries
that see others are NaN afterwards. Backward, nothing goes through such a query to what it sees; its
own place gets NaN, where it has a cotangent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.layers.heads import Heads
from funprop.trees import lifted, wide_dtype

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    Packed = Float[Array, "*batch t p"]
    Spoiled = Bool[Array, "*batch t h"]


def finite(how: Heads, x: Packed, mask: Bool[Array, "*batch t"] | None) -> tuple[Packed, Spoiled]:
    """`x` with zero for what is not finite and for what the mask hides, and which queries of which
    heads see something that is not finite."""
    parts = _parts(how, x)
    shown = jnp.isfinite(parts)
    if mask is not None:
        query = lifted(jnp.arange(parts.shape[-2]) < how.heads, parts[..., 0])
        shown = shown & (mask[..., None] | query)[..., None]  # queries are not hidden
    return jnp.where(shown, parts, 0).reshape(x.shape), _spoiled(how, parts, mask)


def spoil(how: Heads, spoiled: Spoiled, y: Float[Array, "*batch t o"]) -> Any:
    """`y` with NaN for the queries that are spoiled."""
    heads = y.reshape(*y.shape[:-1], how.heads, y.shape[-1] // how.heads)
    return jnp.where(spoiled[..., None], jnp.nan, heads).reshape(y.shape)


def unspoil(how: Heads, spoiled: Spoiled, dy: Float[Array, "*batch t o"]) -> Any:
    """`dy` with zero for the queries that are spoiled."""
    heads = dy.reshape(*dy.shape[:-1], how.heads, dy.shape[-1] // how.heads)
    return jnp.where(spoiled[..., None], 0, heads).reshape(dy.shape)


def spoil_cotangent(
    how: Heads, spoiled: Spoiled, dy: Float[Array, "*batch t o"], dx: Packed
) -> Packed:
    """`dx` with NaN for each query that is spoiled and has a cotangent."""
    parts = _parts(how, dx)
    wanted = dy.reshape(*dy.shape[:-1], how.heads, parts.shape[-1]) != 0
    wrong = spoiled[..., None] & wanted
    others = [(0, 0)] * (dx.ndim - 1) + [(0, parts.shape[-2] - how.heads), (0, 0)]
    return jnp.where(jnp.pad(wrong, others), jnp.nan, parts).reshape(dx.shape)


def _parts(how: Heads, x: Packed) -> Float[Array, "*batch t parts f"]:
    parts = how.heads + 2 * how.kv_heads
    return x.reshape(*x.shape[:-1], parts, x.shape[-1] // parts)


def _spoiled(how: Heads, parts: Float[Array, "*batch t parts f"], mask: Any) -> Spoiled:
    # A product with a vector, as sums over booleans take long on a CPU. It is finite where all
    # features are: a mean does not overflow.
    wide = wide_dtype(parts.dtype)
    mean = jnp.full(parts.shape[-1:], 0.5 / parts.shape[-1], parts.dtype)
    wrong = ~jnp.isfinite(jnp.matmul(parts, mean, preferred_element_type=wide))
    q, k, v = jnp.split(wrong, (how.heads, how.heads + how.kv_heads), -1)
    kv = k | v
    if mask is not None:
        kv = kv & mask[..., None]
    so_far = jnp.cumsum(kv, -2, dtype=jnp.int32)
    so_far = jnp.pad(so_far, [(0, 0)] * (kv.ndim - 2) + [(1, 0), (0, 0)])
    low, high = how.reach(kv.shape[-2])
    seen = jnp.take(so_far, high, -2) > jnp.take(so_far, low, -2)
    return q | jnp.repeat(seen, how.heads // how.kv_heads, -1)
