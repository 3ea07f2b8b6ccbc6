"""Stories of the forward pass's steps: one is differentiated at a stale value, or not at all.

Each is a forward pass with one equation changed, whose gradient is held against what was found.
All are computed at once: which equation and how is an array, and the forward pass asks it at
every step.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.stories import graph
from funprop.verify.stories.case import Case, Told
from funprop.verify.stories.edits import AFTER, AT, LINEAR, OUT, SLOPE, edits, is_branching
from funprop.verify.subject import is_floating
from funprop.verify.truth.evaluate import Evaluate

EDITS = 1500  # more are not tried


def step(case: Case) -> Told | None:
    """A step of the forward pass differentiated at another value, left out, or taken as one."""
    room = graph.NUMBERS // max(sum(np.size(v) for v in case.samples[0].inputs), 1)
    tried = edits(case)[: min(EDITS, room)]
    if not tried:
        return None
    variants = [np.array([edit[i] for edit in tried]) for i in (0, 1, 2, 4)]
    try:
        found = graph.gradients(case, "edits", functools.partial(edited, case), *variants)
    except Exception:  # a part of the forward pass that cannot be run so: no story of its steps
        return None
    for edit, gradient in zip(tried, found, strict=True):
        if case.close(gradient):
            return edit.told
    return None


def edited(case: Case, edit: tuple[Any, Any, Any, Any], inputs: list[Any]) -> list[Any]:
    """The outputs of the forward pass with an edit that is told by numbers."""
    kind, place, other, second = edit
    taken, replaced = _Taken(case, inputs), ((place, other), (second[0], second[1]))

    def visit(eqn: Any, ran: graph.Run, inputs: list[Any], run: Any) -> list[Any]:
        moved, is_moved = list(inputs), jnp.zeros((), bool)
        for i, value in graph.operands(inputs):
            for at, which in replaced:
                here = (kind == AT) & (at == ran.first + i)
                shift = taken(value.shape, which, ran.turn) - lax.stop_gradient(value)
                moved[i] = moved[i] + jnp.where(here, shift, 0)
                is_moved |= here
        outputs = run(inputs)
        if is_branching(eqn):
            return outputs
        if eqn.primitive.name not in LINEAR:
            there = Evaluate(wide=True, unroll=True).equation(eqn, moved)
            outputs = [
                _valued(y, jnp.where(is_moved, _moving(t), _moving(y))) if is_floating(y) else y
                for y, t in zip(outputs, there, strict=True)
            ]
        if len(outputs) != 1 or not is_floating(outputs[0]):
            return outputs
        (y,) = outputs
        here = place == ran.equation
        for i, value in graph.operands(inputs):
            if value.shape == y.shape:
                y = jnp.where((kind == OUT) & here & (other == i), value, y)
                y = jnp.where((kind == SLOPE) & here, _valued(y, _moving(value)), y)
        shift = taken(y.shape, other, ran.turn) - lax.stop_gradient(y)
        return [y + jnp.where((kind == AFTER) & here, shift, 0)]

    return graph.walked(case, inputs, visit)


class _Taken:
    """The values of the forward pass that may be taken in another's place, of the same turn."""

    def __init__(self, case: Case, inputs: list[Any]):
        self._by_shape: dict[tuple[int, ...], dict[graph.Key, list[Any]]] = {}
        self._stacks: dict[tuple[tuple[int, ...], int], Any] = {}
        self._taken: dict[tuple[tuple[int, ...], int, int], Any] = {}
        for key, _, value in graph.computed(case, inputs):
            turns = self._by_shape.setdefault(value.shape, {}).setdefault(key, [])
            turns.append(lax.stop_gradient(value))

    def __call__(self, shape: tuple[int, ...], which: Any, turn: int) -> Any:
        """The value of number `which` of its shape, at a turn."""
        key = shape, turn, id(which)
        if key not in self._taken:  # once for all places: most of the time is compiling
            self._taken[key] = self._take(shape, which, turn)
        return self._taken[key]

    def _take(self, shape: tuple[int, ...], which: Any, turn: int) -> Any:
        if (shape, turn) not in self._stacks:
            every = self._by_shape.get(shape, {}).values()
            found = [turns[min(turn, len(turns) - 1)] for turns in every]
            self._stacks[shape, turn] = jnp.stack(found or [jnp.zeros(shape)])
        stack = self._stacks[shape, turn]
        return stack[jnp.minimum(which, len(stack) - 1)]


def _valued(value: Any, moving: Any) -> Any:
    """The value of `value` with the derivative of `moving`, which is zero."""
    return lax.stop_gradient(value) + moving


def _moving(value: Any) -> Any:
    """Zero, with the derivative of `value`."""
    return value - lax.stop_gradient(value)
