"""What the values of an input seem to promise, so that those made from it keep it.

Positive numbers stay positive, zeros among other numbers stay zero; probabilities, masks,
directions, symmetric matrices, grids and whatever else is in `PROMISES` stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from funprop.verify.subject import is_floating


def drawn(leaf: Any) -> np.ndarray:
    """A leaf as float64, or as it is where it is not of floating dtype."""
    return np.asarray(leaf).astype(np.float64) if is_floating(leaf) else np.asarray(leaf)


def is_free(leaf: Any, but: Sequence[Callable[[np.ndarray], bool]] = ()) -> bool:
    """Whether the values of a leaf look as if any others would do, `but` for some promises."""
    promises = [promise for promise in PROMISES if promise not in but]
    if not is_floating(leaf):
        return False
    values = np.asarray(leaf)
    values = values if values.dtype in (np.float32, np.float64) else drawn(leaf)
    return not any(promise(values) for promise in promises)


def _is_empty_or_infinite(values: np.ndarray) -> bool:
    return values.size == 0 or not np.isfinite(values).all()


def _is_whole(values: np.ndarray) -> bool:
    """A mask, one-hot labels, counts."""
    few = values.ravel()[:16]  # of many, most fail in the first few
    whole = all(np.array_equal(v, np.round(v)) for v in (few, values))
    return values.size > 1 and whole and bool(np.ptp(values) > 0)


def _is_distribution(values: np.ndarray) -> bool:
    """Probabilities along an axis; equal numbers in a row are as likely a weight's first values."""
    if values.ndim == 1 and np.ptp(values) == 0:
        return False
    return bool(np.all(values >= 0)) and any(
        n > 1 and _all_lines(values, axis, lambda v, axis: v.sum(axis))
        for axis, n in enumerate(values.shape)
    )


def _is_normalised(values: np.ndarray) -> bool:
    """Vectors of length one along an axis: directions, rotations."""
    if values.ndim == 1 and np.ptp(values) == 0:
        return False
    return any(
        n > 1 and _all_lines(values, axis, lambda v, axis: np.sqrt(np.square(v).sum(axis)))
        for axis, n in enumerate(values.shape)
    )


def _all_lines(values: np.ndarray, axis: int, size: Callable[[np.ndarray, int], Any]) -> bool:
    """Whether all lines along an axis have size one; of many, most fail in the first few."""
    few = values[tuple(slice(None) if a == axis else slice(4) for a in range(values.ndim))]
    return all(np.allclose(size(part, axis), 1, atol=1e-2) for part in (few, values))


def _is_symmetric(values: np.ndarray) -> bool:
    square = values.ndim >= 2 and values.shape[-1] == values.shape[-2] > 1
    return (
        square
        and bool(np.ptp(values) > 0)
        and all(np.allclose(v, np.swapaxes(v, -1, -2)) for v in (values[..., :4, :4], values))
    )


def _is_sorted(values: np.ndarray) -> bool:
    """Grids, quantiles, times: sorted along the last axis, where there is more than one number."""
    if not values.ndim or values.shape[-1] < 4 or not values.size:
        return False
    few = values.reshape(-1, values.shape[-1])[:1]  # of many rows, most fail in the first
    return all(_is_monotonic(np.diff(v, axis=-1)) for v in (few, values))


def _is_monotonic(steps: np.ndarray) -> bool:
    return bool(np.all(steps > 0) or np.all(steps < 0))


def _is_tiled(values: np.ndarray) -> bool:
    """Every number twice, as the angles of a rotary embedding, or every row the same."""
    if values.size < 4 or np.ptp(values) == 0:
        return False
    for axis, n in enumerate(values.shape):
        moved = np.moveaxis(values, axis, 0)
        if n > 1 and _equal(moved[:-1], moved[1:]):
            return True
        halves = n % 2 == 0 and n > 2
        if halves and (_equal(moved[: n // 2], moved[n // 2 :]) or _equal(moved[::2], moved[1::2])):
            return True
    return False


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all is equal; of many numbers the first differ, where they are not."""
    return np.array_equal(a[:1], b[:1]) and np.array_equal(a, b)


PROMISES = (
    _is_empty_or_infinite,
    _is_whole,
    _is_distribution,
    _is_normalised,
    _is_symmetric,
    _is_sorted,
    _is_tiled,
)


def redrawable(args: Sequence[Any]) -> list[int]:
    """Those that are free, and those of which `within` keeps all that they promise: whole numbers
    that are no mask, sorted ones."""
    few = [i for i, a in enumerate(args) if is_floating(a) and np.isin(drawn(a), (-1, 0, 1)).all()]
    found = free(args, but=(_is_whole, _is_sorted))
    return [i for i in found if i not in few or is_free(args[i])]


def free(args: Sequence[Any], but: Sequence[Callable[[np.ndarray], bool]] = ()) -> list[int]:
    """Which of the arguments look as if any other values would do, `but` for some promises."""
    found = [i for i, leaf in enumerate(args) if is_free(leaf, but)]
    together: set[int] = set()  # sines and cosines of the same angles
    for i, j in itertools.combinations(found, 2):
        a, b = np.asarray(args[i]), np.asarray(args[j])
        if a.shape == b.shape and a.size > 1:
            few = a.ravel()[:16], b.ravel()[:16]
            if all(np.allclose(u * u + v * v, 1, atol=1e-2) for u, v in (few, (a, b))):
                together |= {i, j}
    return [i for i in found if i not in together]


def within(leaf: Any, values: np.ndarray) -> np.ndarray:
    """`values` brought into the range that the leaf's own values seem to promise."""
    own = drawn(leaf)
    if np.all(own > 0):
        values = np.where(values == 0, np.min(own), np.abs(values))
        if np.all(own < 1) and own.size > 1:
            values = np.clip(values, np.min(own) / 2, (1 + np.max(own)) / 2)
    elif np.all(own >= 0) and own.size > 1:
        values = np.abs(values)
    elif np.all(own < 0) and own.size > 1:
        values = np.where(values == 0, np.max(own), -np.abs(values))
    if 2 <= np.sum(own == 0) < own.size:  # a pattern, such as that of a triangular matrix
        values = values * (own != 0) if values.shape == own.shape else values
    if _is_whole(own):
        values = np.round(values)
    if _is_sorted(own) and values.shape == own.shape:
        up = np.sort(values, axis=-1)
        values = up if own.flat[0] < own.flat[1] else up[..., ::-1]
        return values if _is_sorted(values) else own
    return values


def in_order(
    args: Sequence[Any], values: Sequence[Any], places: Sequence[int] | None = None
) -> list[Any]:
    """`values` with those of arguments that bound each other sorted as the given ones are.

    Arguments of one shape of which every number of the one is below that of the other: the bounds
    of an interval. `places` are those that may hold any values, where that is known.
    """
    found = list(values)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i in free(args) if places is None else places:
        if np.shape(values[i]) == args[i].shape:
            by_shape.setdefault(args[i].shape, []).append(i)
    for places in by_shape.values():
        chain = sorted(places, key=lambda i: float(np.mean(drawn(args[i]))))
        pairs = itertools.pairwise(chain)
        if len(chain) > 1 and all(np.all(drawn(args[i]) < drawn(args[j])) for i, j in pairs):
            rows = np.sort(np.stack([np.asarray(values[i]) for i in chain]), axis=0)
            if not np.all(rows[1:] > rows[:-1]):  # nothing lies between
                rows = [drawn(args[i]) for i in chain]
            for i, row in zip(chain, rows, strict=True):
                found[i] = row
    return found
