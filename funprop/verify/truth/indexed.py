"""Gathers, scatters and slices: how much room there is for what they take."""

from __future__ import annotations

from typing import Any

_SLICES = ("dynamic_slice", "dynamic_update_slice")


def is_slice(eqn: Any) -> bool:
    """Whether it takes one window, with a number for each axis."""
    return eqn.primitive.name in _SLICES


def is_indexed(eqn: Any) -> bool:
    """Whether the equation's integers are places in an array."""
    name = eqn.primitive.name
    return name == "gather" or name.startswith("scatter") or is_slice(eqn)


def room_of(eqn: Any) -> list[int]:
    """For each axis that it is told a place of, the last place for a window to begin at."""
    name, params = eqn.primitive.name, eqn.params
    shape = eqn.invars[0].aval.shape
    if is_slice(eqn):
        sizes = params["slice_sizes"] if name == "dynamic_slice" else eqn.invars[1].aval.shape
        return [n - size for n, size in zip(shape, sizes, strict=True)]
    numbers = params["dimension_numbers"]
    if name == "gather":
        axes, sizes = numbers.start_index_map, params["slice_sizes"]
    else:
        axes = numbers.scatter_dims_to_operand_dims
        single = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        updates, windows = eqn.invars[2].aval.shape, iter(numbers.update_window_dims)
        sizes = [1 if a in single else updates[next(windows)] for a in range(len(shape))]
    return [shape[a] - sizes[a] for a in axes]
