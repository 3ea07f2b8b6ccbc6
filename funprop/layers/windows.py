"""What layers with a window that slides over space share: numbers per axis, padding, and views."""

from __future__ import annotations

import itertools
import numbers as numbers_abc
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from funprop import trees
from funprop.values import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from funprop.typing import Array, Float

Numbers: TypeAlias = tuple[int, ...]  # one a space axis
Pairs: TypeAlias = tuple[tuple[int, int], ...]  # (before, after), one a space axis


class Slide(NamedTuple):
    """How the window of a convolution slides, one entry a space axis.

    Attributes:
      stride: from one window to the next.
      padding: zeros before and after.
      dilation: from one place in the window to the next.
      groups: into which the channels of input and output are divided.
    """

    stride: Numbers
    padding: Pairs
    dilation: Numbers
    groups: int


def space_axes(**numbers: Any) -> int | None:
    """How many space axes are meant, by the first that has a number for each of them; `None` where
    all are one number for all axes, so that it is as many as `x` has.

    Example:
      >>> space_axes(kernel=3, stride=(2, 1)), space_axes(kernel=3, stride=2)
      (2, None)
    """
    for value in numbers.values():
        if isinstance(value, tuple | list):
            return len(value)
    return None


def per_axis(name: str, value: int | Sequence[int], axes: int) -> Numbers:
    """One number a space axis, from one for all of them or from a sequence."""
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        numbers: tuple[Any, ...] = (value,) * axes
    else:
        numbers = tuple(value)
    if any(isinstance(n, bool) or not isinstance(n, numbers_abc.Integral) for n in numbers):
        raise TypeError(f"{name} must be of integers, got {short(value)}")
    if len(numbers) != axes or not axes:
        raise ValueError(f"{name} must have one number for {axes} space axes, got {short(value)}")
    if min(numbers) < 1:
        raise ValueError(f"{name} must be at least 1, got {short(value)}")
    return tuple(int(n) for n in numbers)


def check_padding(padding: Any, axes: int) -> str | Pairs:
    """The name "same" or "valid", or a pair for each axis; one number is meant for every side."""
    if isinstance(padding, str) and padding.lower() in ("same", "valid"):
        return padding.lower()
    if isinstance(padding, numbers_abc.Integral) and not isinstance(padding, bool):
        padding = ((padding, padding),) * axes
    pairs = tuple(padding) if isinstance(padding, tuple | list) else ()
    if len(pairs) != axes or any(not isinstance(p, tuple | list) or len(p) != 2 for p in pairs):
        raise ValueError(
            f"padding must be 'same', 'valid', a number or a pair for each of {axes} space axes, "
            f"got {short(padding)}"
        )
    if any(not isinstance(n, numbers_abc.Integral) for n in itertools.chain(*pairs)):
        raise TypeError(f"padding must be of integers, got {short(padding)}")
    if min(itertools.chain(*pairs)) < 0:
        raise ValueError(f"padding must be at least 0, got {short(padding)}")
    return tuple((int(before), int(after)) for before, after in pairs)


def kernel_numbers(kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int | None, Any]:
    """How many space axes are meant, if that is said, and what gives, for so many, the window,
    strides, padding and dilations, checked."""
    axes = space_axes(kernel=kernel, stride=stride, dilation=dilation, padding=padding)

    def numbers(axes: int) -> tuple[Numbers, Numbers, str | Pairs, Numbers]:
        window, strides = per_axis("kernel", kernel, axes), per_axis("stride", stride, axes)
        return window, strides, check_padding(padding, axes), per_axis("dilation", dilation, axes)

    numbers(1 if axes is None else axes)
    return axes, numbers


def check_input(x: Any, axes: int | None) -> Numbers:
    """The sizes of the space axes of `x`, `axes` of them or any number; raise where it is not
    `[batch, *space, channels]`."""
    trees.require_float(x)
    wanted = "space" if axes is None else f"{axes} space axes"
    if x.ndim < 3 if axes is None else x.ndim != axes + 2:
        raise ValueError(
            f"x must have a batch axis, {wanted} and a channel axis, got shape {tuple(x.shape)}"
        )
    return tuple(x.shape[1:-1])


def extent(sizes: Numbers, spacing: Numbers) -> Numbers:
    """How far `size` elements reach of which each is `spacing` after the last."""
    return tuple((n - 1) * d + 1 for n, d in zip(sizes, spacing, strict=True))


def pad_pairs(padding: str | Pairs, sizes: Numbers, window: Numbers, stride: Numbers) -> Pairs:
    """The padding in numbers; raise where the window is larger than the padded input.

    "same" pads so that there are `ceil(size / stride)` windows, an odd one at the end, as XLA does.
    """
    if padding == "valid":
        pairs = ((0, 0),) * len(sizes)
    elif isinstance(padding, str):
        needed = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, k, s in zip(sizes, window, stride, strict=True)
        ]
        pairs = tuple((total // 2, total - total // 2) for total in needed)
    else:
        pairs = padding
    padded = tuple(before + n + after for n, (before, after) in zip(sizes, pairs, strict=True))
    if any(n < 1 for n in sizes) or any(k > n for k, n in zip(window, padded, strict=True)):
        raise ValueError(
            f"x must be at least as large as the window {window}, got {padded} with its padding"
        )
    return pairs


def views(
    x: Float[Array, "batch *space c"],
    window: Numbers,
    stride: Numbers,
    padding: Pairs,
    fill: float,
    dilation: Numbers | None = None,
) -> list[Float[Array, "batch *out c"]]:
    """For each place in the window, in row-major order, what stands there in every window."""
    apart = (1,) * len(window) if dilation is None else dilation
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *_no_gaps(padding), (0, 0, 0)])
    reach = [
        (n - k) // s * s + 1
        for n, k, s in zip(padded.shape[1:-1], extent(window, apart), stride, strict=True)
    ]
    return [
        lax.slice(
            padded,
            (0, *place, 0),
            (x.shape[0], *map(sum, zip(place, reach, strict=True)), x.shape[-1]),
            (1, *stride, 1),
        )
        for place in _places(window, apart)
    ]


def add_views(
    parts: list[Float[Array, "batch *out c"]],
    sizes: Numbers,
    window: Numbers,
    stride: Numbers,
    padding: Pairs,
    dilation: Numbers | None = None,
) -> Float[Array, "batch *space c"]:
    """The transpose of `views`: each part is added where its view was read, in order of places.

    A part is spread out with `stride - 1` zeros between its elements and shifted to its place; what
    falls into the padding is cut off (negative padding in `lax.pad`).
    """
    apart = (1,) * len(window) if dilation is None else dilation
    reach = extent(parts[0].shape[1:-1], stride)
    total = None
    for place, part in zip(_places(window, apart), parts, strict=True):
        spread = [
            (at - before, n - (at - before) - r, s - 1)
            for at, (before, _), n, r, s in zip(place, padding, sizes, reach, stride, strict=True)
        ]
        term = lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
        total = term if total is None else total + term
    assert total is not None  # a window has at least one place
    return total


def _places(window: Numbers, apart: Numbers) -> Iterable[Numbers]:
    return itertools.product(*(range(0, k * d, d) for k, d in zip(window, apart, strict=True)))


def _no_gaps(padding: Pairs) -> list[tuple[int, int, int]]:
    return [(before, after, 0) for before, after in padding]
