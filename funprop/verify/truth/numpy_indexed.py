"""JAX's gathers and scatters, by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def gather(eqn: Any) -> Callable[..., Any]:
    """The function of an array and indices that a `gather` is."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    sizes, single = params["slice_sizes"], numbers.collapsed_slice_dims
    windows = [i for i in range(len(sizes)) if i not in (*single, *numbers.operand_batching_dims)]

    def gathered(x: Any, indices: Any) -> Any:
        starts = _starts(numbers.start_index_map, numbers, numbers.start_indices_batching_dims)
        places, within = _places(x.shape, starts(indices), sizes)
        found = x[places]
        lead = indices.ndim - 1
        if params["mode"].name == "FILL_OR_DROP":
            within = within.reshape(within.shape + (1,) * len(sizes))
            found = np.where(within, found, _fill(params["fill_value"], x.dtype))
        found = found.reshape(found.shape[:lead] + tuple(sizes[i] for i in windows))
        return np.moveaxis(found, range(lead, found.ndim), numbers.offset_dims)

    return gathered


def scatter(ufunc: np.ufunc | None) -> Callable[[Any], Callable[..., Any]]:
    """The scatters that put updates in place, or combine them with what is there."""

    def made(eqn: Any) -> Callable[..., Any]:
        numbers, clips = eqn.params["dimension_numbers"], eqn.params["mode"].name == "CLIP"
        single = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)

        def scattered(x: Any, indices: Any, updates: Any) -> Any:
            axes = numbers.scatter_dims_to_operand_dims
            starts = _starts(axes, numbers, numbers.scatter_indices_batching_dims)
            lead, windows = indices.ndim - 1, numbers.update_window_dims
            updates = np.moveaxis(updates, windows, range(lead, lead + len(windows)))
            updates = np.expand_dims(updates, [lead + i for i in single])
            places, within = _places(x.shape, starts(indices), updates.shape[lead:])
            if not clips and not within.all():
                places = tuple(np.broadcast_to(p, updates.shape)[within] for p in places)
                updates = updates[within]
            x = x.copy()
            if ufunc is None:
                x[places] = updates
            else:
                ufunc.at(x, places, updates)
            return x

        return scattered

    return made


def _starts(
    axes: Sequence[int], numbers: Any, batching: Sequence[int]
) -> Callable[[Any], dict[int, Any]]:
    """Where windows begin along each axis that is indexed, of the indices."""

    def starts(indices: Any) -> dict[int, Any]:
        indices = indices.astype(np.int64)
        found = {axis: indices[..., j] for j, axis in enumerate(axes)}
        counted = np.indices(indices.shape[:-1], sparse=True)
        return found | {
            axis: np.broadcast_to(counted[b], indices.shape[:-1])
            for axis, b in zip(numbers.operand_batching_dims, batching, strict=True)
        }

    return starts


def _places(
    shape: Sequence[int], starts: dict[int, Any], sizes: Sequence[int]
) -> tuple[tuple[Any, ...], Any]:
    """The places of all windows, moved until they are within the array, and which were."""
    within: Any = np.bool_(True)
    places = []
    for axis, offsets in enumerate(np.indices(sizes, sparse=True)):
        start = starts.get(axis)
        if start is not None:
            inside = np.clip(start, 0, shape[axis] - sizes[axis])
            within = within & (inside == start)
            offsets = offsets + inside.reshape(inside.shape + (1,) * len(sizes))
        places.append(offsets)
    return tuple(places), within


def _fill(value: Any, dtype: Any) -> Any:
    if value is not None or dtype == np.float64:
        return np.nan if value is None else value
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max
