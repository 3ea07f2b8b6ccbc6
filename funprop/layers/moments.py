"""Mean and variance, for normalisations.

What rounding leaves of a mean is taken out of the deviations: a mean of 1e4 is rounded to steps of
1e-3 in float32, which would show where deviations are as small. Source: Chan, Golub and LeVeque,
The American Statistician 37 (1983), the corrected two-pass algorithm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from funprop.trees import widen

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Statistics over some axes, which stay as axes of one.

    Attributes:
      mean: rounded.
      rest: the mean of `x - mean`, which is what rounding left.
      r: `1 / sqrt(variance + eps)`.
    """

    mean: Any
    rest: Any
    r: Any

    def normalised(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return (widen(x) - self.mean - self.rest) * self.r

    def from_first(self, x: Float[Array, "..."], axes: Any) -> Float[Array, "..."]:
        """The mean as its distance from the first number, which one number holds exactly enough."""
        return self.mean - _first(x, axes) + self.rest


def moments(x: Float[Array, "..."], axes: Any, eps: float) -> Moments:
    """The moments of `x` over `axes`, in two passes: the mean of squares less the square of the
    mean would lose the digits of a variance that is small beside the mean."""
    x = widen(x)
    mean = x.mean(axes, keepdims=True)
    w = x - mean
    rest = w.mean(axes, keepdims=True)
    variance = (w * w).mean(axes, keepdims=True) - rest * rest
    return Moments(mean, rest, lax.rsqrt(jnp.maximum(variance, 0) + eps))


def deviations(x: Float[Array, "..."], mean: Float[Array, "..."], axes: Any) -> Float[Array, "..."]:
    """`x` less its mean over `axes`, from the mean's distance from the first number. Differences of
    near numbers are exact."""
    return widen(x) - _first(x, axes) - mean


def _first(x: Float[Array, "..."], axes: Any) -> Float[Array, "..."]:
    over = {axis % x.ndim for axis in (axes if isinstance(axes, tuple) else (axes,))}
    place = tuple(slice(0, 1) if axis in over else slice(None) for axis in range(x.ndim))
    return widen(x[place])
