"""Elementwise activations. Each keeps one array: a byte an element where that is enough; else the
output, where the derivative can be had from it (the next dense layer keeps that very array, so it
is free); else the input.

Value and derivative are their limits at infinite and at huge `x`, in every dtype, and NaN where `x`
is NaN. Where a formula would come to `inf * 0`, `x` is clipped to where its limit is reached.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.trees import require_float
from funprop.values import real_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Bool, Float, UInt8

    X = Float[Array, "*shape"]
    Kept = Float[Array, "*shape"] | UInt8[Array, "*shape"]


def _elementwise(
    name: str,
    forward: Callable[[X], tuple[X, Kept]],
    backward: Callable[[Kept, X], X],
) -> Layer:
    """A layer without params from `forward(x) -> (y, kept)` and `backward(kept, dy) -> dx`."""

    def checked(params: tuple[()], x: X) -> tuple[X, Kept]:
        require_float(x)
        return forward(x)

    return layer(
        forward=checked,
        backward=lambda params, kept, dy: ((), backward(kept, dy)),
        name=name,
        formula=FORMULAS[name],
        pointwise=True,
    )


def relu() -> Layer:
    """`y = max(x, 0)`; the derivative at 0 is taken as 0. Keeps a byte an element.

    Example:
      >>> y, kept = relu().forward((), jnp.array([-1.0, 0.0, 2.0]))
      >>> y.tolist(), relu().backward((), kept, jnp.ones(3))[1].tolist()
      ([0.0, 0.0, 2.0], [0.0, 0.0, 1.0])
    """

    def forward(x: X) -> tuple[X, Kept]:
        y = jnp.where(x <= 0, 0, x)
        # Not from `x`: where XLA makes the bytes again, it would keep that beside `y`.
        return y, _side(y > 0, y <= 0)

    def backward(side: Kept, dy: X) -> X:
        return _by_side(side, dy, 0)

    return _elementwise("relu", forward, backward)


def leaky_relu(slope: float = 0.01) -> Layer:
    """`y = x` where `x >= 0`, else `slope * x`. Keeps a byte an element: the sign of `y` would tell
    too, but for a slope of zero or a product that underflows.

    Raises:
      ValueError: `slope` is not finite.

    Example:
      >>> y, kept = leaky_relu(0.5).forward((), jnp.array([-2.0, 2.0]))
      >>> y.tolist(), leaky_relu(0.5).backward((), kept, jnp.ones(2))[1].tolist()
      ([-1.0, 2.0], [0.5, 1.0])
    """
    slope = real_number(slope, "slope")
    if not math.isfinite(slope):
        raise ValueError(f"slope must be finite, got {slope}")

    def times_slope(x: X) -> X | int:
        return slope * x if slope else 0  # where x is infinite, too

    def forward(x: X) -> tuple[X, Kept]:
        return jnp.where(x < 0, times_slope(x), x), _side(x >= 0, x < 0)

    def backward(side: Kept, dy: X) -> X:
        return _by_side(side, dy, times_slope(dy))

    return _elementwise("leaky_relu", forward, backward)


def _side(above: Bool[Array, "*shape"], below: Bool[Array, "*shape"]) -> Kept:
    """On which side of the kink each element is: 1 above, 0 below, 2 neither, which is NaN."""
    byte = jnp.uint8
    return jnp.where(above, byte(1), jnp.where(below, byte(0), byte(2)))


def _by_side(side: Kept, above: X, below: X | int) -> X:
    return jnp.where(side == jnp.uint8(1), above, jnp.where(side == jnp.uint8(0), below, jnp.nan))


def elu(alpha: float = 1.0) -> Layer:
    """`y = x` where `x > 0`, else `alpha (exp(x) - 1)`. Keeps `y`, as `y' = y + alpha` below zero.

    Source: Clevert, Unterthiner and Hochreiter, arXiv:1511.07289.

    Raises:
      ValueError: `alpha` is infinite, or not positive (then the sign of `y` would not tell that of
        `x`).

    Example:
      >>> y, kept = elu().forward((), jnp.array([0.0, 2.0]))
      >>> y.tolist(), elu().backward((), kept, jnp.ones(2))[1].tolist()
      ([0.0, 2.0], [1.0, 1.0])
    """
    alpha = real_number(alpha, "alpha")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if alpha == math.inf:
        raise ValueError(f"alpha must be finite, got {alpha}")

    def forward(x: X) -> tuple[X, Kept]:
        y = jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x)))
        return y, y

    def backward(y: Kept, dy: X) -> X:
        return jnp.where(y > 0, dy, (y + alpha) * dy)

    return _elementwise("elu", forward, backward)


def gelu() -> Layer:
    """`y = x P(x)`, with `P` the standard normal distribution function. Keeps `x`.

    Derivative: `P(x) + x p(x)`, with `p` the normal density.
    Source: Hendrycks and Gimpel, arXiv:1606.08415.

    Example:
      >>> y, kept = gelu().forward((), jnp.array([0.0]))
      >>> y.tolist(), gelu().backward((), kept, jnp.ones(1))[1].tolist()
      ([0.0], [0.5])
    """

    def forward(x: X) -> tuple[X, Kept]:
        return _finite_below(x) * _normal_cdf(x), x

    def backward(x: Kept, dy: X) -> X:
        x = _finite(x)
        return (_normal_cdf(x) + x * _normal_density(x)) * dy

    return _elementwise("gelu", forward, backward)


def _normal_cdf(x: X) -> X:
    return 0.5 * jax.lax.erfc(_for_erfc(x))  # erfc keeps the digits of the left tail


def _normal_density(x: X) -> X:
    u = _for_erfc(x)  # whose exponential is that of erfc: XLA makes it once
    return jnp.exp(-(u * u)) * (2 * jnp.pi) ** -0.5


def _for_erfc(x: X) -> X:
    return x * -(0.5**0.5)


def _finite(x: X) -> X:
    """`x` with the greatest finite numbers for infinite ones."""
    most = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -most, most)


def _finite_below(x: X) -> X:
    return jnp.maximum(x, float(jnp.finfo(x.dtype).min))


def gelu_tanh() -> Layer:
    """The tanh approximation of `gelu`: `y = x (1 + tanh u) / 2`, `u = c (x + 0.044715 x^3)`.

    Keeps `x`. Derivative: `(1 + t) / 2 + x (1 - t^2) u' / 2` with `t = tanh u` and
    `u' = c (1 + 3 * 0.044715 x^2)`, `c = sqrt(2 / pi)`.
    Source: Hendrycks and Gimpel, arXiv:1606.08415; the choice of GPT-2.

    Example:
      >>> y, kept = gelu_tanh().forward((), jnp.array([0.0]))
      >>> y.tolist(), gelu_tanh().backward((), kept, jnp.ones(1))[1].tolist()
      ([0.0], [0.5])
    """
    c, cubic = (2 / jnp.pi) ** 0.5, 0.044715
    far = 10  # where tanh is one, in float64 too

    def forward(x: X) -> tuple[X, Kept]:
        low = jnp.maximum(x, -far)
        return 0.5 * low * (1 + jnp.tanh(c * low * (1 + cubic * low * low))), x

    def backward(x: Kept, dy: X) -> X:
        x = jnp.clip(x, -far, far)
        t = jnp.tanh(c * x * (1 + cubic * x * x))
        du = c * (1 + 3 * cubic * x * x)
        return (0.5 * (1 + t) + 0.5 * x * (1 - t) * (1 + t) * du) * dy

    return _elementwise("gelu_tanh", forward, backward)


def silu() -> Layer:
    """`y = x s(x)`, with `s` the logistic sigmoid (also called swish). Keeps `x`.

    Derivative: `s (1 + x (1 - s))`.

    Example:
      >>> y, kept = silu().forward((), jnp.array([0.0]))
      >>> y.tolist(), silu().backward((), kept, jnp.ones(1))[1].tolist()
      ([0.0], [0.5])
    """

    def forward(x: X) -> tuple[X, Kept]:
        return _finite_below(x) * jax.nn.sigmoid(x), x

    def backward(x: Kept, dy: X) -> X:
        x = _finite(x)
        s = jax.nn.sigmoid(x)
        return s * (1 + x * (1 - s)) * dy

    return _elementwise("silu", forward, backward)


def tanh() -> Layer:
    """`y = tanh(x)`. Keeps `y`, as `y' = (1 - y)(1 + y)`.

    Example:
      >>> y, kept = tanh().forward((), jnp.array([0.0]))
      >>> y.tolist(), tanh().backward((), kept, jnp.ones(1))[1].tolist()
      ([0.0], [1.0])
    """

    def forward(x: X) -> tuple[X, Kept]:
        y = jnp.tanh(x)
        return y, y

    def backward(y: Kept, dy: X) -> X:
        return (1 - y) * (1 + y) * dy

    return _elementwise("tanh", forward, backward)


def sigmoid() -> Layer:
    """`y = 1 / (1 + exp(-x))`. Keeps `y`, as `y' = y (1 - y)`.

    Example:
      >>> y, kept = sigmoid().forward((), jnp.array([0.0]))
      >>> y.tolist(), sigmoid().backward((), kept, jnp.ones(1))[1].tolist()
      ([0.5], [0.25])
    """

    def forward(x: X) -> tuple[X, Kept]:
        y = jax.nn.sigmoid(x)
        return y, y

    def backward(y: Kept, dy: X) -> X:
        return y * (1 - y) * dy

    return _elementwise("sigmoid", forward, backward)


def softplus() -> Layer:
    """`y = log(1 + exp(x))`. Keeps `y`, as `y' = 1 - exp(-y)`, which is `2t / (1 + t)` with
    `t = tanh(y / 2)`: as exact near zero as `expm1`, and faster.

    Example:
      >>> y, kept = softplus().forward((), jnp.array([-1e4, 1e4]))
      >>> y.tolist(), softplus().backward((), kept, jnp.ones(2))[1].tolist()
      ([0.0, 10000.0], [0.0, 1.0])
    """

    def forward(x: X) -> tuple[X, Kept]:
        y = jax.nn.softplus(x)
        return y, y

    def backward(y: Kept, dy: X) -> X:
        t = jnp.tanh(0.5 * y)
        return 2 * t / (1 + t) * dy

    return _elementwise("softplus", forward, backward)
