"""Spiking neurons: all or nothing forward, a smooth slope in its place backward."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.checks import described
from funprop.layer import Layer
from funprop.layers.recurrent import recurrent
from funprop.looping import varying
from funprop.trees import wide_dtype
from funprop.values import number_within

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Float

    U = Float[Array, "..."]
    Steps = Float[Array, "t n o"]


class Surrogate(NamedTuple):
    """A slope in the place of that of a step: `value` is the function that has it.

    Attributes:
      value, slope: of `(u, k)`, `u` how far a neuron is above its threshold; the slope is 1 at 0.
    """

    value: Callable[[U, float], U]
    slope: Callable[[U, float], U]


SURROGATES = {
    "fast_sigmoid": Surrogate(
        lambda u, k: u / (1 + k * jnp.abs(u)), lambda u, k: (1 + k * jnp.abs(u)) ** -2
    ),
    "arctan": Surrogate(
        lambda u, k: jnp.arctan(jnp.pi / 2 * k * u) * (2 / (jnp.pi * k)),
        lambda u, k: 1 / (1 + (jnp.pi / 2 * k * u) ** 2),
    ),
}


def lif(
    decay: float = 0.9,
    threshold: float = 1.0,
    *,
    surrogate: str = "fast_sigmoid",
    steepness: float = 10.0,
) -> Layer:
    """Leaky integrate-and-fire neurons over time, from rest; gives a 1 where one fires, else 0.

    `v_t = decay v_(t-1) + x_t - threshold s_(t-1)` and `s_t = 1` where `v_t > threshold`. They have
    no params: a `dense` before them makes the currents `x`.

    The derivative of firing is zero almost everywhere. Backward takes a surrogate in its place, of
    `u = v - threshold`: `1 / (1 + k |u|)^2` ("fast_sigmoid"; Zenke and Ganguli, arXiv:1705.11146)
    or `1 / (1 + (pi k u / 2)^2)` ("arctan"; Fang et al., arXiv:2007.05785); and holds the reset
    still (Zenke and Vogels, Neural Computation 33, 2021). So, from the last step to the first,
    `dx_t = slope(u_t) dy_t + decay dx_(t+1)`. Keeps `u`.

    Args:
      decay: what is left of the potential after a step, from 0 to 1.
      threshold: above which a neuron fires.
      surrogate: one of these two.
      steepness: its `k`; the larger, the fewer neurons learn, those near their threshold.

    Shapes: `x [batch, time, o]`, `y` the same; or with lengths, as of `lstm`. Potentials are
    computed in float32 at least.
    Source: Neftci, Mostafa and Zenke, arXiv:1901.09948.

    Returns:
      A layer that is *intended* to have another gradient: `verify` judges it by the slope of the
      surrogate.

    Raises:
      ValueError: a number is out of range, or there is no such surrogate; or at forward, `x` is
        neither `[batch, time, o]` nor such a pair.
      TypeError: a number is none, or `x` not of floating dtype.

    Example:
      >>> x = jnp.full((1, 4, 1), 0.6)
      >>> y, kept = lif().forward((), x)
      >>> y.ravel().tolist()
      [0.0, 1.0, 0.0, 1.0]
      >>> lif().backward((), kept, jnp.ones_like(y))[1].shape
      (1, 4, 1)
    """
    decay = number_within(decay, "decay", lambda d: 0 <= d <= 1, "from 0 to 1")
    threshold = number_within(threshold, "threshold", lambda t: 0 < t < jnp.inf, "positive")
    k = number_within(steepness, "steepness", lambda s: 0 < s < jnp.inf, "positive")
    if not isinstance(surrogate, str) or surrogate not in SURROGATES:
        told = ", ".join(SURROGATES)
        raise ValueError(f"surrogate must be one of {told}, got {described(surrogate)}")
    chosen = SURROGATES[surrogate]

    def run(fires: Callable[[U], U], x: Steps, state: Any) -> tuple[Steps, Any, Steps]:
        wide = wide_dtype(x.dtype)
        zero = jnp.zeros(x.shape[1:], wide)

        def step(state: tuple[U, U], x: U) -> tuple[tuple[U, U], tuple[U, U]]:
            v, s = state
            v = decay * v + x - threshold * jax.lax.stop_gradient(s)
            s = fires(v - threshold)
            return (v, s), (s, v - threshold)

        start = varying((zero, zero) if state is None else state, x)
        state, (s, u) = jax.lax.scan(step, start, x.astype(wide))
        return s.astype(x.dtype), state, u

    def forward(params: tuple[()], x: Steps, state: Any) -> tuple[Steps, Any, Steps]:
        return run(lambda u: (u > 0).astype(u.dtype), x, state)

    def backward(
        params: tuple[()], x: Steps, y: Steps, u: Steps, dy: Steps
    ) -> tuple[tuple[()], Steps]:
        def step(after: U, now: tuple[U, U]) -> tuple[U, U]:
            u, dy = now
            dx = chosen.slope(u, k) * dy.astype(u.dtype) + decay * after
            return dx, dx

        start = varying(jnp.zeros_like(u[0]), u, dy)
        return (), jax.lax.scan(step, start, (u, dy), reverse=True)[1]

    def meant(params: tuple[()], x: Steps, state: Any) -> tuple[Steps, Any, Steps]:
        """The same neurons, which fire with the surrogate's slope."""
        still = jax.lax.stop_gradient

        def fires(u: U) -> U:
            smooth = chosen.value(u, k)
            return still((u > 0).astype(u.dtype)) + (smooth - still(smooth))

        return run(fires, x, state)

    layer = recurrent("lif", lambda key, x: (), forward, backward)
    smooth = recurrent("lif", lambda key, x: (), meant, backward)
    return dataclasses.replace(
        layer,
        paramless=True,
        rebuild=None,
        intended=lambda params, x, key=None: smooth.forward(params, x)[0],
    )
