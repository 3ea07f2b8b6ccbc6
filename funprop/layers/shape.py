"""Layers that only rearrange: their residual is the shape they came from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from funprop.formula import told
from funprop.layer import Layer, layer, named
from funprop.layers.formulas import FORMULAS
from funprop.trees import Static, require_array
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Shaped


@told(FORMULAS["reshape"])
def reshape(*shape: int) -> Layer:
    """`[batch, ...] -> [batch, *shape]`: every example to `shape`; one axis may be -1.

    Raises:
      ValueError: an axis is neither positive nor -1, or more than one is -1; or, at forward, an
        example does not have as many numbers as `shape`.

    Example:
      >>> import jax.numpy as jnp
      >>> y, was = reshape(2, -1).forward((), jnp.zeros((5, 6)))
      >>> y.shape, reshape(2, -1).backward((), was, y)[1].shape
      ((5, 2, 3), (5, 6))
    """
    shape = tuple(whole_number(axis, "shape") for axis in shape)
    if any(axis < 1 and axis != -1 for axis in shape) or shape.count(-1) > 1:
        raise ValueError(f"shape must have positive axes and at most one -1, got {shape}")

    def forward(
        params: tuple[()], x: Shaped[Array, "batch ..."]
    ) -> tuple[Shaped[Array, "batch ..."], Static]:
        require_array(x)
        if x.ndim < 1:
            raise ValueError("x must have a batch axis, got a scalar")
        have, want = math.prod(x.shape[1:]), abs(math.prod(shape))
        if have % want if -1 in shape else have != want:
            raise ValueError(f"an example of shape {x.shape[1:]} does not reshape to {shape}")
        filled = tuple(have // want if axis == -1 else axis for axis in shape)
        return x.reshape(x.shape[0], *filled), Static(x.shape)

    def backward(
        params: tuple[()], was: Static, dy: Shaped[Array, "batch ..."] | None
    ) -> tuple[tuple[()], Shaped[Array, "batch ..."] | None]:
        return (), None if dy is None else dy.reshape(was.value)  # integers have no cotangent

    return layer(forward=forward, backward=backward, name="reshape")


def flatten() -> Layer:
    """`[batch, ...] -> [batch, n]`: every example in one row.

    Example:
      >>> import jax.numpy as jnp
      >>> flatten().forward((), jnp.zeros((5, 2, 3)))[0].shape
      (5, 6)
    """
    return named("flatten", reshape(-1))
