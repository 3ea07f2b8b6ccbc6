"""Softmax and its logarithm. The one keeps its output, the other what that is made of.

Where a number is `inf`, or all are `-inf`, both are NaN, as in JAX and PyTorch: there is no limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.trees import require_float
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float

    X = Float[Array, "*shape"]


@told(FORMULAS["softmax"])
def softmax(axis: int = -1) -> Layer:
    """`y_i = exp(x_i) / sum_j exp(x_j)` along `axis`.

    Backward: `dx_i = y_i (dy_i - sum_j y_j dy_j)`, from `dy_i/dx_j = y_i (delta_ij - y_j)`.

    Example:
      >>> y, kept = softmax().forward((), jnp.zeros((1, 2)))
      >>> y.tolist(), softmax().backward((), kept, jnp.array([[1.0, 0.0]]))[1].tolist()
      ([[0.5, 0.5]], [[0.25, -0.25]])
    """
    axis = whole_number(axis, "axis")

    def forward(params: tuple[()], x: X) -> tuple[X, X]:
        require_float(x)
        y = jax.nn.softmax(x, axis)
        return y, y

    def backward(params: tuple[()], y: X, dy: X) -> tuple[tuple[()], X]:
        return (), y * (dy - (y * dy).sum(axis, keepdims=True))

    return layer(forward=forward, backward=backward, name="softmax", pointwise=axis == -1)


@told(FORMULAS["log_softmax"])
def log_softmax(axis: int = -1) -> Layer:
    """`y_i = x_i - log sum_j exp(x_j)` along `axis`.

    Backward: `dx_i = dy_i - exp(y_i) sum_j dy_j`. Keeps `exp(x_i - max x)` and their sum.

    Example:
      >>> y, kept = log_softmax().forward((), jnp.zeros((1, 2)))
      >>> log_softmax().backward((), kept, jnp.array([[1.0, 0.0]]))[1].tolist()
      [[0.5, -0.5]]
    """
    axis = whole_number(axis, "axis")

    def forward(params: tuple[()], x: X) -> tuple[X, tuple[X, X]]:
        require_float(x)
        z = x - jax.lax.stop_gradient(x.max(axis, keepdims=True, initial=-jnp.inf))
        e = jnp.exp(z)
        total = e.sum(axis, keepdims=True)
        return z - jnp.log(total), (e, total)

    def backward(params: tuple[()], kept: tuple[X, X], dy: X) -> tuple[tuple[()], X]:
        e, total = kept
        return (), dy - e * (dy.sum(axis, keepdims=True) / total)

    return layer(forward=forward, backward=backward, name="log_softmax", pointwise=axis == -1)
