"""Rotary positions: queries and keys turned by an angle that grows with their place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.trees import lifted, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float


def rotate(
    x: Float[Array, "*batch t f"], places: Any, *, base: float | tuple[float, ...] = 10_000.0
) -> Float[Array, "*batch t f"]:
    """Every pair of features `(i, i + f/2)` turned by the angle `place * base^(-2 i / f)`; or by
    `place * speeds[i]`.

    A rotation is orthogonal, so its backward is the rotation back: `dx = rotate(dy, -places)`. The
    product of a turned query and a turned key depends on the distance of their places alone.

    Args:
      x: queries or keys, with an even number of features.
      places: `[t]`, integers.
      base: how slowly the slowest pair turns; or the speed of every pair, radians a place.

    Source: Su et al., arXiv:2104.09864, in the order of pairs of Llama.

    Example:
      >>> x = jnp.ones((3, 4))
      >>> turned = rotate(x, jnp.arange(3))
      >>> bool(jnp.allclose(rotate(turned, -jnp.arange(3)), x, atol=1e-6))
      True
    """
    half, wide = x.shape[-1] // 2, widen(x).dtype
    if isinstance(base, tuple):
        speed = jnp.asarray(base, wide)
    else:
        speed = jnp.asarray(base, wide) ** (-jnp.arange(half, dtype=wide) / half)
    angle = places.astype(wide)[:, None] * speed[None]
    cos, sin = lifted(jnp.cos(angle), x), lifted(jnp.sin(angle), x)
    a, b = widen(x[..., :half]), widen(x[..., half:])
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


def speeds(size: int, base: float = 10_000.0) -> tuple[float, ...]:
    """`base^(-2 i / size)`: how fast each pair of a head's features turns.

    Example:
      >>> speeds(4, 100.0)
      (1.0, 0.1)
    """
    return tuple(base ** (-2 * i / size) for i in range(size // 2))


def stretched(
    speeds: tuple[float, ...], factor: float, low: float, high: float, longest: float
) -> tuple[float, ...]:
    """The speeds of Llama 3.1, for sequences `factor` times as long as those it was first made for.

    A pair that turns fewer than `low` times in `longest` places turns `factor` times as slowly; one
    that turns more than `high` times as before; between them its share of the two.

    Source: Grattafiori et al., arXiv:2407.21783; `rope_type` "llama3" of transformers.

    Example:
      >>> stretched((1.0, 1e-4), 8.0, 1.0, 4.0, 8192)
      (1.0, 1.25e-05)
    """

    def of(speed: float) -> float:
        share = (longest * speed / (2 * math.pi) - low) / (high - low)
        share = min(max(share, 0.0), 1.0)
        return speed * (share + (1 - share) / factor)

    return tuple(of(speed) for speed in speeds)
