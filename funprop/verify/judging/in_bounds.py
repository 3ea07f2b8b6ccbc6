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
from funprop.verify.truth.indexed import is_indexed, is_slice, room_of
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.internals import equations
from funprop.verify.truth.samples import Sample


def as_given(given: Given, tools: Instruments, sample: Sample) -> bool:
    """Whether no index leaves its array that is within at the given inputs."""
    if not any(map(is_indexed, equations(given.tools.wide_plain))):
        return True
    here, there = _leaving(given.tools, given.sample), _leaving(tools, sample)
    return not any(b and not a for a, b in zip(here, there, strict=False))


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
            if is_indexed(eqn):
                starts, room = _starts(eqn, inputs), room_of(eqn)
                found.append(jnp.any((starts < 0) | (starts > jnp.asarray(room, starts.dtype))))
            return run(inputs)

        Evaluate(wide=True, around=around)(tools.wide_plain, *inputs)
        return found

    return tools.jit(outside)


def _starts(eqn: Any, inputs: list[Any]) -> Any:
    """Where windows begin, [..., axes]."""
    if not is_slice(eqn):
        return inputs[1]
    first = 1 if eqn.primitive.name == "dynamic_slice" else 2
    return jnp.stack([jnp.asarray(start, int) for start in inputs[first:]])
