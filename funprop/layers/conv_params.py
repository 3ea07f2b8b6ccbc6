"""The params of convolutions: made, checked, and the bias's cotangent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from funprop.drawing import split
from funprop.layers.windows import Numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Float, Key

    Y = Float[Array, "batch *out o"]


class ConvParams(NamedTuple):
    """The params of `conv` and `conv_transpose`.

    Attributes:
      w: weights, `[*kernel, i, o]`, with `i` the inputs of one group.
      b: biases, `[o]`, or `None`.
    """

    w: Any
    b: Any

    roles = {"w": "weight", "b": "bias"}


def initial(
    key: Key[Array, ""],
    w_shape: Numbers,
    dtype: Any,
    bias: bool,
    w_init: Callable[..., Array],
    b_init: Callable[..., Array],
) -> ConvParams:
    w_key, b_key = split(key)
    b = b_init(b_key, w_shape[-1:], dtype) if bias else None
    return ConvParams(w_init(w_key, w_shape, dtype), b)


def places(dy: Y) -> Float[Array, "b t o"]:
    return dy.reshape(len(dy), math.prod(dy.shape[1:-1]), dy.shape[-1])


def pull_b(b: Float[Array, " o"] | None, dy: Y) -> Float[Array, " o"] | None:
    return None if b is None else dy.reshape(-1, dy.shape[-1]).sum(0).astype(b.dtype)


def check_params(params: Any, kernel: Numbers, channels: int, groups: int) -> None:
    if not isinstance(params, ConvParams):
        raise TypeError(f"params must be ConvParams(w, b), got {type(params).__name__}")
    shape = jnp.shape(params.w)
    if shape[:-2] != kernel:
        raise ValueError(f"w must have shape {(*kernel, 'i', 'o')}, got {shape}")
    if shape[-2] * groups != channels:
        raise ValueError(
            f"x must have {shape[-2] * groups} channels to go with w of shape {shape} in "
            f"{groups} groups, got {channels}"
        )
