"""Pooling: one number a channel for every window of space. None keeps its input."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.layers.materialised import materialised
from funprop.layers.windows import (
    Numbers,
    Pairs,
    add_views,
    check_input,
    check_padding,
    pad_pairs,
    per_axis,
    space_axes,
    views,
)
from funprop.trees import Static, require_float, widen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from funprop.typing import Array, Float, UInt

    X = Float[Array, "batch *space c"]
    Y = Float[Array, "batch *out c"]
    Row = Float[Array, "batch c"]
    Place = UInt[Array, "batch *out c"]


@told(FORMULAS["max_pool"])
def max_pool(
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[tuple[int, int]] = "valid",
) -> Layer:
    """The greatest number in every window; of equal ones the first counts, as in XLA.

    Keeps where in the window it stood: one byte an output, for windows of up to 256 places.
    Backward puts each `dy` there.

    Args:
      window: one number for every space axis of `x`, or one a space axis.
      stride: from one window to the next, one number or one a space axis; `None` for the window's
        own size, so that windows do not overlap.
      padding: "valid" for none, "same" for `ceil(size / stride)` windows, one number for every
        side, or a pair (before, after) for each space axis, smaller than the window; what is added
        is never the greatest.

    Shapes: `x [batch, *space, c]`, `y [batch, *out, c]`.

    Raises:
      ValueError: a number is not positive or there is not one a space axis; padding is none of
        those, or as large as the window; or, at forward, `x` has another rank or less space than
        the window.
      TypeError: a number is no integer, or `x` is not of floating dtype.

    Example:
      >>> x = jnp.array([3.0, 5.0, 5.0, 1.0]).reshape(1, 4, 1)
      >>> y, kept = max_pool(2).forward((), x)
      >>> y.ravel().tolist(), max_pool(2).backward((), kept, y)[1].ravel().tolist()
      ([5.0, 5.0], [0.0, 5.0, 5.0, 0.0])
    """
    of = _geometry(window, stride, padding)

    def forward(params: tuple[()], x: X) -> tuple[Y, tuple[Place, Static]]:
        sizes, (window, strides, pairs) = of(x)
        dtype = np.min_scalar_type(math.prod(window) - 1)
        # Where all is -inf, what counts is the first that is not of the padding.
        inside = _first_inside(sizes, window, strides, pairs).astype(dtype)

        def greatest(x: X) -> tuple[Y, Place]:
            first, *rest = views(x, window, strides, pairs, -math.inf)
            y, place = first, jnp.broadcast_to(inside[None], first.shape)
            for i, view in enumerate(rest, 1):
                greater = ~(view <= y) & (y == y)  # the first NaN is greater than all, as in XLA
                y, place = jnp.where(greater, view, y), jnp.where(greater, dtype.type(i), place)
            return y, place

        place = materialised(lambda x: greatest(x)[1], x)
        return greatest(x)[0], (place, Static((sizes, window, strides, pairs)))

    def backward(params: tuple[()], residuals: tuple[Place, Static], dy: Y) -> tuple[tuple[()], X]:
        place, (sizes, window, strides, pairs) = residuals[0], residuals[1].value
        places = map(place.dtype.type, range(math.prod(window)))
        parts = [jnp.where(place == i, widen(dy), 0) for i in places]
        return (), add_views(parts, sizes, window, strides, pairs).astype(dy.dtype)

    return layer(forward=forward, backward=backward, name="max_pool")


@told(FORMULAS["average_pool"])
def average_pool(
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[tuple[int, int]] = "valid",
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
      >>> pool = average_pool(2, padding="same")
      >>> y, kept = pool.forward((), x)
      >>> y.ravel().tolist(), pool.backward((), kept, y)[1].ravel().tolist()
      ([4.0, 1.0], [2.0, 2.0, 1.0])
    """
    of = _geometry(window, stride, padding)

    def shares(sizes: Numbers, window: Numbers, strides: Numbers, pairs: Pairs) -> np.ndarray:
        """One over how many numbers each window has, `[1, *out, 1]`."""
        if count_include_pad:
            return np.full((1,) * (len(window) + 2), 1 / math.prod(window))
        counts = np.ones((1, 1))
        for n, k, s, (before, after) in zip(sizes, window, strides, pairs, strict=True):
            start = np.arange(0, before + n + after - k + 1, s) - before
            inside = np.minimum(start + k, n) - np.maximum(start, 0)
            counts = counts[..., None] * inside
        return 1 / counts[0, 0][None, ..., None]

    def forward(params: tuple[()], x: X) -> tuple[Y, Static]:
        sizes, (window, strides, pairs) = of(x)
        total = functools.reduce(operator.add, views(widen(x), window, strides, pairs, 0.0))
        y = total * jnp.asarray(shares(sizes, window, strides, pairs), total.dtype)
        return y.astype(x.dtype), Static((sizes, window, strides, pairs))

    def backward(params: tuple[()], kept: Static, dy: Y) -> tuple[tuple[()], X]:
        window = kept.value[1]
        share = widen(dy) * jnp.asarray(shares(*kept.value), widen(dy).dtype)
        dx = add_views([share] * math.prod(window), *kept.value)
        return (), dx.astype(dy.dtype)

    return layer(forward=forward, backward=backward, name="average_pool")


@told(FORMULAS["global_average_pool"])
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


@told(FORMULAS["global_max_pool"])
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
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])  # [batch, places, c]
        place = jnp.argmax(flat, 1, keepdims=True)
        y = jnp.take_along_axis(flat, place, 1)
        return y[:, 0], (place.astype(_smallest(flat)), Static(x.shape[1:-1]))

    def backward(
        params: tuple[()], residuals: tuple[Place, Static], dy: Row
    ) -> tuple[tuple[()], X]:
        place, sizes = residuals[0], residuals[1].value
        places = jnp.arange(math.prod(sizes), dtype=place.dtype)[None, :, None]
        dx = jnp.where(place == places, dy[:, None], 0)
        return (), dx.reshape(dy.shape[0], *sizes, dy.shape[1])

    return layer(forward=forward, backward=backward, name="global_max_pool")


def _smallest(flat: Float[Array, "batch places c"]) -> np.dtype:
    return np.min_scalar_type(flat.shape[1] - 1)


def _check_space(x: X) -> None:
    require_float(x)
    if x.ndim < 3 or math.prod(x.shape[1:-1]) == 0:
        raise ValueError(f"x must have a batch axis, space and a channel axis, got shape {x.shape}")


def _geometry(
    window: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: str | int | Sequence[tuple[int, int]],
) -> Callable[[X], tuple[Numbers, tuple[Numbers, Numbers, Pairs]]]:
    """From `x` to the sizes of its space, and the window, strides and padding for it."""
    axes = space_axes(window=window, stride=stride, padding=padding)

    def checked(axes: int) -> tuple[Numbers, Numbers, str | Pairs]:
        numbers = per_axis("window", window, axes)
        strides = numbers if stride is None else per_axis("stride", stride, axes)
        pad = check_padding(padding, axes)
        if not isinstance(pad, str) and any(max(p) >= k for p, k in zip(pad, numbers, strict=True)):
            raise ValueError(f"padding must be smaller than the window {window}, got {padding}")
        return numbers, strides, pad

    checked(1 if axes is None else axes)

    def of(x: X) -> tuple[Numbers, tuple[Numbers, Numbers, Pairs]]:
        sizes = check_input(x, axes)
        numbers, strides, pad = checked(len(sizes))
        return sizes, (numbers, strides, pad_pairs(pad, sizes, numbers, strides))

    return of


def _first_inside(sizes: Numbers, window: Numbers, strides: Numbers, pairs: Pairs) -> np.ndarray:
    """The first place of each window that is not of the padding, `[*out, 1]`."""
    first = np.zeros((), int)
    for n, k, s, (before, after) in zip(sizes, window, strides, pairs, strict=True):
        start = np.arange(0, before + n + after - k + 1, s)
        first = first[..., None] * k + np.maximum(before - start, 0)
    return first[..., None]
