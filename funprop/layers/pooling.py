"""Pooling: one number a channel for every window of space. None keeps its input."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from funprop.layer import Layer, layer
from funprop.layers.windows import (
    Numbers,
    Pairs,
    add_views,
    check_input,
    check_padding,
    pad_pairs,
    per_axis,
    views,
    window_size,
)
from funprop.trees import Static, require_float, widen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Array, Float, UInt

    X = Float[Array, "batch *space c"]
    Y = Float[Array, "batch *out c"]
    Row = Float[Array, "batch c"]
    Place = UInt[Array, "batch *out c"]


def max_pool(
    window: tuple[int, ...],
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "valid",
) -> Layer:
    """The greatest number in every window; of equal ones the first counts, as in XLA.

    Keeps where in the window it stood: one byte an output, for windows of up to 256 places.
    Backward puts each `dy` there.

    Args:
      window: one number a space axis.
      stride: from one window to the next, one number or one a space axis; `None` for the window's
        own size, so that windows do not overlap.
      padding: "valid" for none, "same" for `ceil(size / stride)` windows, or a pair (before, after)
        for each space axis, smaller than the window; what is added is never the greatest.

    Shapes: `x [batch, *space, c]`, `y [batch, *out, c]`.

    Raises:
      ValueError: a number is not positive or there is not one a space axis; padding is none of
        those, or as large as the window; or, at forward, `x` has another rank or less space than
        the window.
      TypeError: a number is no integer, or `x` is not of floating dtype.

    Example:
      >>> x = jnp.array([3.0, 5.0, 5.0, 1.0]).reshape(1, 4, 1)
      >>> y, kept = max_pool((2,)).forward((), x)
      >>> y.ravel().tolist(), max_pool((2,)).backward((), kept, y)[1].ravel().tolist()
      ([5.0, 5.0], [0.0, 5.0, 5.0, 0.0])
    """
    window, strides, pairs = _geometry(window, stride, padding)
    dtype = np.min_scalar_type(math.prod(window) - 1)

    def forward(params: tuple[()], x: X) -> tuple[Y, tuple[Place, Static]]:
        sizes = check_input(x, len(window))
        first, *rest = views(x, window, strides, pairs(sizes), -math.inf)
        y, place = first, jnp.zeros(first.shape, dtype)
        for i, view in enumerate(rest, 1):
            greater = ~(view <= y) & (y == y)  # the first NaN is greater than all, as in XLA
            y, place = jnp.where(greater, view, y), jnp.where(greater, dtype.type(i), place)
        return y, (place, Static(sizes))

    def backward(params: tuple[()], residuals: tuple[Place, Static], dy: Y) -> tuple[tuple[()], X]:
        place, sizes = residuals[0], residuals[1].value
        parts = [jnp.where(place == dtype.type(i), widen(dy), 0) for i in range(math.prod(window))]
        dx = add_views(parts, sizes, window, strides, pairs(sizes))
        return (), dx.astype(dy.dtype)

    return layer(forward=forward, backward=backward, name="max_pool")


def average_pool(
    window: tuple[int, ...],
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "valid",
    count_include_pad: bool = False,
) -> Layer:
    """The mean of every window. Keeps nothing; backward gives each place its share of `dy`.

    Args:
      window, stride, padding: as in `max_pool`.
      count_include_pad: whether the zeros of the padding count. Without it (other than in Flax and
        PyTorch) a window at the edge is the mean of what is there, and no edge is darkened.

    Shapes: `x [batch, *space, c]`, `y [batch, *out, c]`.

    Raises:
      ValueError, TypeError: as `max_pool`.

    Example:
      >>> x = jnp.array([3.0, 5.0, 1.0]).reshape(1, 3, 1)
      >>> pool = average_pool((2,), padding="same")
      >>> y, kept = pool.forward((), x)
      >>> y.ravel().tolist(), pool.backward((), kept, y)[1].ravel().tolist()
      ([4.0, 1.0], [2.0, 2.0, 1.0])
    """
    window, strides, pairs = _geometry(window, stride, padding)

    def shares(sizes: Numbers) -> np.ndarray:
        """One over how many numbers each window has, `[*out, 1]`."""
        size = math.prod(window)
        if count_include_pad:
            return np.full((1,) * (len(window) + 1), 1 / size)
        counts = np.ones((1, 1))
        for n, k, s, (before, after) in zip(sizes, window, strides, pairs(sizes), strict=True):
            start = np.arange(0, before + n + after - k + 1, s) - before
            inside = np.minimum(start + k, n) - np.maximum(start, 0)
            counts = counts[..., None] * inside
        return 1 / counts[0, 0][..., None]

    def forward(params: tuple[()], x: X) -> tuple[Y, Static]:
        sizes = check_input(x, len(window))
        total = functools.reduce(operator.add, views(widen(x), window, strides, pairs(sizes), 0.0))
        y = total * jnp.asarray(shares(sizes), total.dtype)
        return y.astype(x.dtype), Static(sizes)

    def backward(params: tuple[()], kept: Static, dy: Y) -> tuple[tuple[()], X]:
        sizes = kept.value
        share = widen(dy) * jnp.asarray(shares(sizes), widen(dy).dtype)
        parts = [share] * math.prod(window)
        dx = add_views(parts, sizes, window, strides, pairs(sizes))
        return (), dx.astype(dy.dtype)

    return layer(forward=forward, backward=backward, name="average_pool")


def global_average_pool() -> Layer:
    """The mean over space: `[batch, *space, c] -> [batch, c]`. Keeps nothing.

    Raises:
      ValueError: at forward, `x` has no space axes or no space.
      TypeError: `x` is not of floating dtype.

    Example:
      >>> y, kept = global_average_pool().forward((), jnp.array([[[1.0], [3.0]]]))
      >>> y.tolist(), global_average_pool().backward((), kept, y)[1].tolist()
      ([[2.0]], [[[1.0], [1.0]]])
    """

    def forward(params: tuple[()], x: X) -> tuple[Row, Static]:
        _check_space(x)
        return widen(x).mean(tuple(range(1, x.ndim - 1))).astype(x.dtype), Static(x.shape[1:-1])

    def backward(params: tuple[()], kept: Static, dy: Row) -> tuple[tuple[()], X]:
        sizes = kept.value
        share = (widen(dy) / math.prod(sizes)).astype(dy.dtype)
        share = share.reshape(dy.shape[0], *(1,) * len(sizes), dy.shape[1])
        return (), jnp.broadcast_to(share, (dy.shape[0], *sizes, dy.shape[1]))

    return layer(forward=forward, backward=backward, name="global_average_pool")


def global_max_pool() -> Layer:
    """The greatest number over space: `[batch, *space, c] -> [batch, c]`; of equal ones the first.

    Keeps where in space it stood: one integer an output.

    Raises:
      ValueError: at forward, `x` has no space axes or no space.
      TypeError: `x` is not of floating dtype.

    Example:
      >>> y, kept = global_max_pool().forward((), jnp.array([[[1.0], [3.0]]]))
      >>> y.tolist(), global_max_pool().backward((), kept, y)[1].tolist()
      ([[3.0]], [[[0.0], [3.0]]])
    """

    def forward(params: tuple[()], x: X) -> tuple[Row, tuple[Place, Static]]:
        _check_space(x)
        flat = x.reshape(x.shape[0], -1, x.shape[-1])  # [batch, places, c]
        place = jnp.argmax(flat, 1, keepdims=True)
        y = jnp.take_along_axis(flat, place, 1)
        return y[:, 0], (place.astype(_smallest(flat)), Static(x.shape[1:-1]))

    def backward(
        params: tuple[()], residuals: tuple[Place, Static], dy: Row
    ) -> tuple[tuple[()], X]:
        place, sizes = residuals[0], residuals[1].value
        places = jnp.arange(math.prod(sizes), dtype=place.dtype)[:, None]
        dx = jnp.where(place == places, dy[:, None], 0)
        return (), dx.reshape(dy.shape[0], *sizes, dy.shape[1])

    return layer(forward=forward, backward=backward, name="global_max_pool")


def _smallest(flat: Float[Array, "batch places c"]) -> np.dtype:
    return np.min_scalar_type(flat.shape[1] - 1)


def _check_space(x: X) -> None:
    if x.ndim < 3 or math.prod(x.shape[1:-1]) == 0:
        raise ValueError(f"x must have a batch axis, space and a channel axis, got shape {x.shape}")
    require_float(x)


def _geometry(
    window: tuple[int, ...],
    stride: int | Sequence[int] | None,
    padding: str | Sequence[tuple[int, int]],
) -> tuple[Numbers, Numbers, Callable[[Numbers], Pairs]]:
    """The checked window and strides, and what gives the padding for the sizes of space."""
    window = window_size("window", window)
    strides = window if stride is None else per_axis("stride", stride, len(window))
    pad = check_padding(padding, len(window))
    if not isinstance(pad, str) and any(max(p) >= k for p, k in zip(pad, window, strict=True)):
        raise ValueError(f"padding must be smaller than the window {window}, got {padding}")
    return window, strides, lambda sizes: pad_pairs(pad, sizes, window, strides)
