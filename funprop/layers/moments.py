"""Mean and variance, for normalisations.

What rounding leaves of a mean is taken out of the deviations: a mean of 1e4 is rounded to steps of
1e-3 in float32, which would show where deviations are as small. Source: Chan, Golub and LeVeque,
The American Statistician 37 (1983), the corrected two-pass algorithm.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from funprop.trees import widen
from funprop.values import real_number, short

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Float


class Moments(NamedTuple):
    """Statistics, in the shape of `x` or broadcasting to it.

    Attributes:
      mean: rounded, and by one bit more.
      rest: the mean of `x - mean`, which is what rounding left.
      r: `1 / sqrt(variance + eps)`.
    """

    mean: Any
    rest: Any
    r: Any

    def normalised(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return (widen(x) - self.mean - self.rest) * self.r

    def mean_from(self, first: Float[Array, "..."]) -> Float[Array, "..."]:
        """The mean as its distance from one of the numbers, for `deviations`: what is kept."""
        return self.mean - widen(first) + self.rest


def moments(x: Float[Array, "..."], average: Callable[[Any], Any], eps: float) -> Moments:
    """The moments of `x` by two passes: the mean of squares less the square of the mean would lose
    the digits of a variance that is small beside the mean."""
    x = widen(x)
    # One bit less than the dtype has, so that all see one number. As it is, `x - sum / n` may be
    # fused with no rounding between, here and not there, and `rest` be that of another mean.
    info = jnp.finfo(x.dtype)
    mean = lax.reduce_precision(average(x), info.nexp, info.nmant - 1)
    w = x - mean
    rest = average(w)
    variance = average(w * w) - rest * rest
    return Moments(mean, rest, inverse_root(jnp.maximum(variance, 0), eps))


def inverse_root(variance: Float[Array, "..."], eps: float) -> Float[Array, "..."]:
    """`1 / sqrt(variance + eps)`, and NaN where squares have overflowed: zero would pass unseen,
    and to scale each row by its largest number first takes one more pass over `x`."""
    return jnp.where(variance < jnp.inf, lax.rsqrt(variance + eps), jnp.nan)


def deviations(
    x: Float[Array, "..."], first: Float[Array, "..."], mean: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`x` less its mean, which is given as its distance from one of the numbers, the first, say.
    Differences of near numbers are exact."""
    return widen(x) - widen(first) - mean


def check_eps(eps: float) -> float:
    """`eps`, or an error where it does not keep a constant `x` from a division by zero, or where it
    is the number of features, which other libraries ask for in its place."""
    whole = isinstance(eps, (tuple, list)) or (
        isinstance(eps, numbers.Integral) and eps > 0 and eps is not True
    )
    eps = eps if whole else real_number(eps, "eps")
    if whole or eps > 1:
        raise ValueError(
            f"eps must be a small number, got {short(eps)}: the number of features is found from "
            "the input"
        )
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    return real_number(eps, "eps")
