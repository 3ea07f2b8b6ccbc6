"""Whether indices stay within their arrays.

What JAX does with an index that leaves its array (a gather takes the nearest, a scatter drops it)
no rule promises to follow. Where all indices of the forward pass are within at the given inputs,
other inputs at which some leave are none that somebody means: offsets that end before the tokens
do, ids of rows that a shorter table lacks, places to sample beyond an image's border.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from funprop.verify.judging.at_rest import Given
from funprop.verify.truth.evaluate import Evaluate, NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.internals import equations
from funprop.verify.truth.samples import Sample

_SLICES = ("dynamic_slice", "dynamic_update_slice")


def as_given(given: Given, tools: Instruments, sample: Sample) -> bool:
    """Whether no index leaves its array that is within at the given inputs."""
    if not any(map(_is_indexed, equations(given.tools.wide_plain))):
        return True
    here, there = _leaving(given.tools, given.sample), _leaving(tools, sample)
    return not any(b and not a for a, b in zip(here, there, strict=False))


def _is_indexed(eqn: Any) -> bool:
    name = eqn.primitive.name
    return name == "gather" or name.startswith("scatter") or name in _SLICES


def _leaving(tools: Instruments, sample: Sample) -> list[bool]:
    """Of each gather, scatter and slice outside of loops and branches, whether an index leaves."""
    run = tools.kept("indices", tools, lambda: _any_outside(tools))
    try:
        with jax.enable_x64(True):
            found = tools.kept("leaving", sample, lambda: run(sample.inputs))
            return [bool(outside) for outside in found]
    except NotWideError:
        return []


def _any_outside(tools: Instruments) -> Any:
    def outside(inputs: list[Any]) -> list[Any]:
        found: list[Any] = []

        def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            if _is_indexed(eqn):
                starts, room = _starts_and_room(eqn, inputs)
                found.append(jnp.any((starts < 0) | (starts > jnp.asarray(room, starts.dtype))))
            return run(inputs)

        Evaluate(wide=True, around=around)(tools.wide_plain, *inputs)
        return found

    return tools.jit(outside)


def _starts_and_room(eqn: Any, inputs: list[Any]) -> tuple[Any, list[int]]:
    """Where windows begin, [..., axes], and for each of these axes the last place to begin at."""
    name, params = eqn.primitive.name, eqn.params
    shape = inputs[0].shape
    if name in _SLICES:
        first = 1 if name == "dynamic_slice" else 2
        sizes = params["slice_sizes"] if first == 1 else inputs[1].shape
        starts = jnp.stack([jnp.asarray(start, int) for start in inputs[first:]])
        return starts, [n - size for n, size in zip(shape, sizes, strict=True)]
    numbers = params["dimension_numbers"]
    if name == "gather":
        axes, sizes = numbers.start_index_map, params["slice_sizes"]
    else:
        axes = numbers.scatter_dims_to_operand_dims
        single = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        windows = iter(numbers.update_window_dims)
        sizes = [1 if a in single else inputs[2].shape[next(windows)] for a in range(len(shape))]
    return inputs[1], [shape[a] - sizes[a] for a in axes]
