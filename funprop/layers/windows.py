"""What layers with a window that slides over space share: numbers per axis, padding, and views."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeAlias

import jax.numpy as jnp
from jax import lax

from funprop import trees

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Float

Numbers: TypeAlias = tuple[int, ...]  # one a space axis
Pairs: TypeAlias = tuple[tuple[int, int], ...]  # (before, after), one a space axis


def window_size(name: str, window: Any) -> Numbers:
    """`window`, one number a space axis; raise where it is no tuple of positive integers."""
    if not isinstance(window, tuple) or not window:
        raise ValueError(f"{name} must be a tuple, one number a space axis, got {window!r}")
    return per_axis(name, window, len(window))


def per_axis(name: str, value: int | Sequence[int], axes: int) -> Numbers:
    """One number a space axis, from one for all of them or from a sequence."""
    numbers = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(numbers) != axes:
        raise ValueError(f"{name} must have one number for {axes} space axes, got {value}")
    if any(not isinstance(number, int) for number in numbers):
        raise TypeError(f"{name} must be of integers, got {value}")
    if min(numbers) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return numbers


def check_padding(padding: Any, axes: int) -> str | Pairs:
    """`padding` as it was given, or with its pairs as tuples."""
    if padding in ("same", "valid"):
        return padding
    pairs = () if isinstance(padding, str | int) else tuple(padding)
    if len(pairs) != axes or any(not isinstance(p, tuple | list) or len(p) != 2 for p in pairs):
        raise ValueError(
            f"padding must be 'same', 'valid' or a pair for each of {axes} space axes, "
            f"got {padding!r}"
        )
    if min(itertools.chain(*pairs)) < 0:
        raise ValueError(f"padding must be at least 0, got {padding}")
    return tuple((before, after) for before, after in pairs)


def check_input(x: Any, axes: int) -> Numbers:
    """The sizes of the space axes of `x`; raise where it is not `[batch, *space, channels]`."""
    if x.ndim != axes + 2:
        raise ValueError(
            f"x must have a batch axis, {axes} space axes and a channel axis, got shape {x.shape}"
        )
    trees.require_float(x)
    return x.shape[1:-1]


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
) -> list[Float[Array, "batch *out c"]]:
    """For each place in the window, in row-major order, what stands there in every window."""
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *_no_gaps(padding), (0, 0, 0)])
    reach = [
        (n - k) // s * s + 1 for n, k, s in zip(padded.shape[1:-1], window, stride, strict=True)
    ]
    return [
        lax.slice(
            padded,
            (0, *place, 0),
            (x.shape[0], *map(sum, zip(place, reach, strict=True)), x.shape[-1]),
            (1, *stride, 1),
        )
        for place in itertools.product(*map(range, window))
    ]


def add_views(
    parts: list[Float[Array, "batch *out c"]],
    sizes: Numbers,
    window: Numbers,
    stride: Numbers,
    padding: Pairs,
) -> Float[Array, "batch *space c"]:
    """The transpose of `views`: each part is added where its view was read, in order of places.

    A part is spread out with `stride - 1` zeros between its elements and shifted to its place; what
    falls into the padding is cut off (negative padding in `lax.pad`).
    """
    reach = extent(parts[0].shape[1:-1], stride)
    total = None
    for place, part in zip(itertools.product(*map(range, window)), parts, strict=True):
        spread = [
            (at - before, n - (at - before) - r, s - 1)
            for at, (before, _), n, r, s in zip(place, padding, sizes, reach, stride, strict=True)
        ]
        term = lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
        total = term if total is None else total + term
    assert total is not None  # a window has at least one place
    return total


def _no_gaps(padding: Pairs) -> list[tuple[int, int, int]]:
    return [(before, after, 0) for before, after in padding]
