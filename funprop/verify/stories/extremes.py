"""Stories of a maximum along an axis: its cotangent goes to other places than the largest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from funprop.verify.stories.flow import Change, Flow, always

Choice = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def extremes(flow: Flow) -> Iterator[Change]:
    """What comes through a maximum goes to the first, to the last, to all, or to the minimum."""
    for step in flow.steps:
        if step.primitive not in ("reduce_max", "reduce_min") or not step.operands:
            continue
        i, axes = step.operands[0], step.params["axes"]
        place, out = flow.places[i], flow.places[step.outputs[0]]
        if not place.alive:
            continue
        opposite = np.min if step.primitive == "reduce_max" else np.max
        choices: list[tuple[str, str, Choice]] = [
            ("stale", "the opposite extreme", functools.partial(_extreme, reduce=opposite)),
            ("region", "all places", lambda value, axes: np.ones(value.shape, bool)),
            ("region", "the first place", functools.partial(_end, end=0)),
            ("region", "the last place", functools.partial(_end, end=-1)),
        ]
        for kind, name, choice in choices:

            def chosen(s: int, choice=choice, place=place, out=out, axes=axes) -> np.ndarray:
                return choice(place.values[s], axes) * np.expand_dims(out.cotangents[s], axes)

            told = always(kind, f"what comes through {step.where} goes to {name}")
            yield Change(i, told, chosen)


def _extreme(
    value: np.ndarray, axes: tuple[int, ...], reduce: Callable[..., np.ndarray]
) -> np.ndarray:
    return value == reduce(value, axes, keepdims=True)


def _end(value: np.ndarray, axes: tuple[int, ...], end: int) -> np.ndarray:
    there = np.zeros(value.shape, bool)
    index = [slice(None)] * value.ndim
    for axis in axes:
        index[axis] = slice(0, 1) if end == 0 else slice(-1, None)
    there[tuple(index)] = True
    return there
