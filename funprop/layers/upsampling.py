"""Upsampling: space made larger by a whole number, with no params. Keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np

from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.layers.windows import check_input, per_axis, space_axes
from funprop.trees import Static, widen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from funprop.typing import Array, Float

    X = Float[Array, "batch *space c"]
    Y = Float[Array, "batch *out c"]


@told(FORMULAS["upsample"])
def upsample(
    factor: int | Sequence[int], method: Literal["nearest", "bilinear"] = "nearest"
) -> Layer:
    """Space `factor` times as large: `[batch, *space, c] -> [batch, *(space * factor), c]`.

    "nearest" repeats every element, and backward sums over its copies. "bilinear" interpolates
    along one axis after the other, `y[j] = sum_i m[j,i] x[i]`, as `jax.image.resize` does; backward
    multiplies with the transposes, `dx[i] = sum_j m[j,i] dy[j]`.

    Args:
      factor: one number, or one a space axis.
      method: "nearest" or "bilinear" (for any number of space axes).

    Raises:
      ValueError: `factor` is not positive; `method` is neither; or, at forward, `x` has no space
        axes or not one for each factor.
      TypeError: `factor` is of no integers, or `x` is not of floating dtype.

    Example:
      >>> y, kept = upsample(2).forward((), jnp.array([[[1.0], [3.0]]]))
      >>> y.ravel().tolist(), upsample(2).backward((), kept, y)[1].ravel().tolist()
      ([1.0, 1.0, 3.0, 3.0], [2.0, 6.0])
      >>> upsample(2, "bilinear").forward((), jnp.array([[[1.0], [3.0]]]))[0].ravel().tolist()
      [1.0, 1.5, 2.5, 3.0]
    """
    if method not in ("nearest", "bilinear"):
        raise ValueError(f"method must be 'nearest' or 'bilinear', got {method!r}")
    axes = space_axes(factor=factor)
    per_axis("factor", factor, 1 if axes is None else axes)  # for its checks

    def forward(params: tuple[()], x: X) -> tuple[Y, Static]:
        sizes = check_input(x, None)
        factors = per_axis("factor", factor, len(sizes))
        for axis, (n, f) in enumerate(zip(sizes, factors, strict=True), 1):
            if method == "nearest":
                x = jnp.repeat(x, f, axis)
            else:
                x = _along(axis, _interpolation(n, f), x)
        return x, Static(sizes)

    def backward(params: tuple[()], kept: Static, dy: Y) -> tuple[tuple[()], X]:
        sizes = kept.value
        factors = per_axis("factor", factor, len(sizes))
        if method == "nearest":
            copies = tuple(range(2, 2 * len(sizes) + 1, 2))
            split = [size for pair in zip(sizes, factors, strict=True) for size in pair]
            parts = widen(dy).reshape(dy.shape[0], *split, dy.shape[-1])
            return (), parts.sum(copies).astype(dy.dtype)
        for axis, (n, f) in enumerate(zip(sizes, factors, strict=True), 1):
            dy = _along(axis, _interpolation(n, f).T, dy)
        return (), dy

    return layer(forward=forward, backward=backward, name="upsample")


def _interpolation(size: int, factor: int) -> np.ndarray:
    """`m [size * factor, size]`: the weights of the two elements between whose centres an output's
    centre lies; beyond the outermost centres, of the outermost element alone."""
    centres = (np.arange(size * factor) + 0.5) / factor - 0.5
    distance = np.abs(np.clip(centres, 0, size - 1)[:, None] - np.arange(size))
    return np.maximum(1 - distance, 0)


def _along(axis: int, matrix: np.ndarray, x: X) -> X:
    """`matrix` times every line of `x` along `axis`."""
    product = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 1))
    return jnp.moveaxis(product, -1, axis)
