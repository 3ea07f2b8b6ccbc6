"""Drawing a token from logits: temperature, the likeliest few, the nucleus."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Int, Key

MOST = np.iinfo(np.int32).max  # more than any vocabulary


class Sampling(NamedTuple):
    """How to draw, as numbers that a compiled program takes: other ones compile nothing again.

    Attributes:
      temperature: divides the logits; at zero the likeliest token is taken.
      top_k: among how many of the likeliest tokens to draw.
      top_p: among the fewest likeliest tokens whose probabilities sum up to it, at least.
    """

    temperature: Any
    top_k: Any
    top_p: Any


def sampling(temperature: Any, top_k: Any, top_p: Any) -> Sampling:
    """The three, checked where their values are known.

    Raises:
      ValueError: `temperature` is negative or not finite, `top_k` not positive, or `top_p` not
        above 0 and at most 1.
      TypeError: one is not a number, or `top_k` not an integer.
    """
    temperature = _number("temperature", temperature)
    top_p = _number("top_p", top_p)
    top_k = MOST if top_k is None else _number("top_k", top_k)
    if not jnp.issubdtype(jax.dtypes.result_type(top_k), jnp.integer):
        raise TypeError(f"top_k must be an integer or None, got {top_k!r}")
    if not isinstance(temperature, Tracer) and not 0 <= temperature < np.inf:
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if not isinstance(top_k, Tracer) and not top_k >= 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if not isinstance(top_p, Tracer) and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    top_k = top_k.astype(jnp.int32) if isinstance(top_k, Tracer) else np.int32(min(top_k, MOST))
    # What float32 would round to zero is the likeliest token all the same.
    wide = np.float64 if jax.config.read("jax_enable_x64") else np.float32
    known = (x if isinstance(x, Tracer) else wide(x) for x in (temperature, top_p))
    return Sampling(next(known), top_k, next(known))


def _number(name: str, value: Any) -> Any:
    if isinstance(value, Tracer) and value.ndim == 0:
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        got = f"an array of shape {np.shape(value)}" if np.ndim(value) else repr(value)
        raise TypeError(f"{name} must be one number, got {got}")
    return value


def draw(
    logits: Float[Array, "batch vocabulary"], how: Sampling, key: Key[Array, ""]
) -> Int[Array, " batch"]:
    """A token a row.

    Sources: Fan et al., arXiv:1805.04833 (the likeliest few); Holtzman et al., arXiv:1904.09751
    (the nucleus, of what the temperature and `top_k` leave).
    """
    top = logits.max(-1, keepdims=True)
    cold = how.temperature.astype(logits.dtype)
    frozen = cold < jnp.finfo(logits.dtype).tiny
    # From the top down: the highest is zero at any temperature, all others at most minus infinity.
    z = (logits - top) / jnp.where(frozen, 1, cold)
    how = how._replace(top_p=how.top_p.astype(logits.dtype))
    chosen = (how.top_p < 1) | (how.top_k < logits.shape[-1])
    z = jax.lax.cond(chosen, lambda: jnp.where(likeliest(z, how), z, -jnp.inf), lambda: z)
    return jnp.where(frozen, logits.argmax(-1), jax.random.categorical(key, z))


def likeliest(
    z: Float[Array, "batch vocabulary"], how: Sampling
) -> Bool[Array, "batch vocabulary"]:
    """Which tokens are among the `top_k` and in the nucleus; of equal ones the first."""
    order = jnp.argsort(-z, axis=-1)  # stable
    few = (jnp.arange(z.shape[-1], dtype=jnp.int32) < how.top_k)[None]
    p = jax.nn.softmax(jnp.where(few, jnp.take_along_axis(z, order, -1), -jnp.inf), -1)
    before = jnp.cumsum(p, -1)[..., :-1]
    before = jnp.pad(before, ((0, 0), (1, 0)))
    # A token is in as long as those before it do not reach the share; so the one that reaches it is
    # in, too. Rounded sums reach it where they are equal to it but for rounding.
    share = how.top_p * (1 - 8 * jnp.finfo(z.dtype).eps)
    # The likeliest is always one of them, also where rounding makes of the share nothing.
    inside = few & ((before < share) | (how.top_p >= 1) | (before == 0))
    rows = jnp.arange(len(z))[:, None]
    return jnp.zeros(z.shape, bool).at[rows, order].set(inside)
