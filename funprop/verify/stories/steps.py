"""Stories of the forward pass's steps: one is differentiated at a stale value, or not at all.

Each is a forward pass with one equation changed, whose gradient is held against what was found.
All are computed at once: which equation and how is an array, and the forward pass asks it at
every step.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.case import Case, Told
from funprop.verify.evaluate import Evaluate
from funprop.verify.stories import graph
from funprop.verify.subject import is_floating

EDITS = 1500  # more are not tried

AT, SLOPE, OUT, AFTER = range(4)  # the kinds of edit


class Edit(NamedTuple):
    """A change to the forward pass of which the gradient is taken.

    Attributes:
      kind: `AT`: an operand is replaced for its equation's derivative; `SLOPE`: an equation's
        derivative is one; `OUT`: an equation gives its operand; `AFTER`: an equation's value is
        replaced in all that follows.
      place: which operand (`AT`), or which equation.
      other: which of the values of its shape is taken; of `OUT`, which operand.
      told: the story.
    """

    kind: int
    place: int
    other: int
    told: Told


def step(case: Case) -> Told | None:
    """A step of the forward pass differentiated at another value, left out, or taken as one."""
    edits = _edits(case)
    room = graph.NUMBERS // max(sum(np.size(v) for v in case.samples[0].inputs), 1)
    edits = edits[: min(EDITS, room)]
    if not edits:
        return None
    variants = [np.array(column) for column in list(zip(*edits, strict=True))[:3]]
    try:
        found = graph.gradients(case, functools.partial(_edited, case), *variants)
    except Exception:  # a part of the forward pass that cannot be run so: no story of its steps
        return None
    for edit, gradient in zip(edits, found, strict=True):
        if case.close(gradient):
            return edit.told
    return None


# Equations whose derivative does not depend on the value of an operand.
_LINEAR = (
    "add", "sub", "neg", "transpose", "reshape", "broadcast_in_dim", "reduce_sum", "slice",
    "squeeze", "expand_dims", "concatenate", "convert_element_type", "copy", "pad", "rev",
    "dynamic_slice", "gather", "stop_gradient", "cumsum", "split", "add_any", "scatter-add",
)  # fmt: skip


class Step(NamedTuple):
    """An equation at the first sample.

    Attributes:
      where: it stands.
      is_rule: whether it only calls a function that has a `custom_vjp`.
      linear: whether its derivative is the same at every operand.
      number: of the equation; `first`: of its first operand.
      places: of its operands among its inputs.
      operands, output: their values; `output` is `None` if it is not one float.
    """

    where: str
    is_rule: bool
    linear: bool
    number: int
    first: int
    places: list[int]
    operands: list[np.ndarray]
    output: np.ndarray | None


def _walked(case: Case, inputs: list[Any], visit: Any) -> list[Any]:
    """Run the forward pass, `visit(eqn, number, first operand, inputs, run)` at every equation."""
    numbers, operands = itertools.count(), itertools.count()

    def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
        number, mine = next(numbers), [next(operands) for _ in graph.operands(inputs)]
        return visit(eqn, number, mine[0] if mine else -1, inputs, run)

    return graph.evaluate(around)(case.tools.wide_plain, *inputs)


def _steps(case: Case) -> list[Step]:
    found: list[Step] = []

    def run(inputs: list[Any]) -> list[Any]:
        found.clear()
        arrays: list[Any] = []

        def visit(eqn: Any, number: int, first: int, inputs: list[Any], run: Any) -> list[Any]:
            outputs = run(inputs)
            one = len(outputs) == 1 and is_floating(outputs[0]) and not _is_branching(eqn)
            places = [i for i, _ in graph.operands(inputs)]
            linear = eqn.primitive.name in _LINEAR or _is_branching(eqn)
            is_rule = eqn.primitive.name == "custom_vjp_call"
            found.append(
                Step(graph.described(eqn), is_rule, linear, number, first, places, [], None)
            )
            arrays.append(([inputs[i] for i in places], outputs[0] if one else None))
            return outputs

        _walked(case, inputs, visit)
        return arrays

    try:
        with jax.enable_x64(True):
            arrays = jax.tree.map(np.asarray, case.tools.jit(run)(case.samples[0].inputs))
    except Exception:  # a part of the forward pass that cannot be run so: no story of its steps
        return []
    return [
        step._replace(operands=operands, output=output)
        for step, (operands, output) in zip(found, arrays, strict=True)
    ]


def _is_branching(eqn: Any) -> bool:
    return eqn.primitive.name in ("scan", "while", "cond", "shard_map")


def _edits(case: Case) -> list[Edit]:
    """Every edit that makes a difference at the first sample, the likeliest kinds first."""
    by_shape: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for name, arrays in graph.values(case):
        by_shape.setdefault(arrays[0].shape, []).append((name, arrays[0]))

    def others(value: np.ndarray) -> Iterator[tuple[int, str]]:
        seen = [value]
        for i, (name, other) in enumerate(by_shape.get(value.shape, ())):
            if not any(np.allclose(other, s, equal_nan=True) for s in seen):
                seen.append(other)
                yield i, name

    found: list[list[Edit]] = [[], [], [], []]
    for step in _steps(case):
        where, output = step.where, step.output
        if step.is_rule:  # the function that is judged: its own steps say more
            continue
        for n, (place, value) in enumerate(zip(step.places, step.operands, strict=True)):
            for i, name in () if step.linear else others(value):
                told = Told("stale", f"{where} is differentiated at the value of {name}")
                found[AT].append(Edit(AT, step.first + n, i, told))
            if output is not None and value.shape == output.shape:
                told = Told("left out", f"it is the gradient without {where}")
                found[OUT].append(Edit(OUT, step.number, place, told))
                if not step.linear and len(step.places) == 1:
                    sentence = f"the derivative of {where} is missing, as if it were one"
                    found[SLOPE].append(
                        Edit(SLOPE, step.number, 0, Told("missing factor", sentence))
                    )
        for i, name in () if output is None else others(output):
            told = Told("stale", f"what follows {where} is differentiated at the value of {name}")
            found[AFTER].append(Edit(AFTER, step.number, i, told))
    return [edit for kind in found for edit in kind]


def _edited(case: Case, edit: tuple[Any, Any, Any], inputs: list[Any]) -> list[Any]:
    """The outputs of the forward pass with an edit that is told by three numbers."""
    kind, place, other = edit
    bank: dict[tuple[int, ...], list[Any]] = {}
    for _, value in graph.computed(case, inputs):
        bank.setdefault(value.shape, []).append(lax.stop_gradient(value))
    taken = {
        shape: jnp.stack(values)[jnp.minimum(other, len(values) - 1)]
        for shape, values in bank.items()
    }

    def visit(eqn: Any, number: int, first: int, inputs: list[Any], run: Any) -> list[Any]:
        moved, is_moved = list(inputs), jnp.zeros((), bool)
        for n, (i, value) in enumerate(graph.operands(inputs)):
            here = (kind == AT) & (place == first + n)
            moved[i] = value + jnp.where(here, taken[value.shape] - lax.stop_gradient(value), 0)
            is_moved |= here
        outputs = run(inputs)
        if _is_branching(eqn):
            return outputs
        if eqn.primitive.name not in _LINEAR:
            there = Evaluate(wide=True, unroll=True).equation(eqn, moved)
            outputs = [
                _valued(y, jnp.where(is_moved, _moving(t), _moving(y))) if is_floating(y) else y
                for y, t in zip(outputs, there, strict=True)
            ]
        if len(outputs) != 1 or not is_floating(outputs[0]):
            return outputs
        (y,) = outputs
        here = place == number
        for i, value in graph.operands(inputs):
            if value.shape == y.shape:
                y = jnp.where((kind == OUT) & here & (other == i), value, y)
                y = jnp.where((kind == SLOPE) & here, _valued(y, _moving(value)), y)
        shift = taken[y.shape] - lax.stop_gradient(y)
        return [y + jnp.where((kind == AFTER) & here, shift, 0)]

    return _walked(case, inputs, visit)


def _moving(value: Any) -> Any:
    """Zero, with the derivative of `value`."""
    return value - lax.stop_gradient(value)


def _valued(value: Any, moving: Any) -> Any:
    """The value of `value` with the derivative of `moving`, which is zero."""
    return lax.stop_gradient(value) + moving
