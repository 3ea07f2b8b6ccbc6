"""Rotary positions: queries and keys turned by an angle that grows with their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.trees import lifted, widen

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def rotate(
    x: Float[Array, "*batch t f"], places: Any, *, base: float = 10_000.0
) -> Float[Array, "*batch t f"]:
    """Every pair of features `(i, i + f/2)` turned by the angle `place * base^(-2 i / f)`.

    A rotation is orthogonal, so its backward is the rotation back: `dx = rotate(dy, -places)`. The
    product of a turned query and a turned key depends on the distance of their places alone.

    Args:
      x: queries or keys, with an even number of features.
      places: `[t]`, integers.
      base: how slowly the slowest pair turns.

    Source: Su et al., arXiv:2104.09864, in the order of pairs of Llama.

    Example:
      >>> x = jnp.ones((3, 4))
      >>> turned = rotate(x, jnp.arange(3))
      >>> bool(jnp.allclose(rotate(turned, -jnp.arange(3)), x, atol=1e-6))
      True
    """
    half, wide = x.shape[-1] // 2, widen(x).dtype
    speed = jnp.asarray(base, wide) ** (-jnp.arange(half, dtype=wide) / half)
    angle = places.astype(wide)[:, None] * speed[None]
    cos, sin = lifted(jnp.cos(angle), x), lifted(jnp.sin(angle), x)
    a, b = widen(x[..., :half]), widen(x[..., half:])
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)
