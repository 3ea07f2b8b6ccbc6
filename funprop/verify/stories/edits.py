"""Which changes of the forward pass's steps are tried as stories, and what each tells."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from funprop.verify.stories import graph
from funprop.verify.stories.case import Case, Told
from funprop.verify.subject import is_floating
from funprop.verify.truth import internals

AT, SLOPE, OUT, AFTER = range(4)  # the kinds of edit
EXCHANGES = 300  # more pairs of operands are not tried


class Edit(NamedTuple):
    """A change to the forward pass of which the gradient is taken, in every turn of a scan alike.

    Attributes:
      kind: `AT`: an operand is replaced for its equation's derivative; `SLOPE`: an equation's
        derivative is one; `OUT`: an equation gives its operand; `AFTER`: an equation's value is
        replaced in all that follows.
      place: which operand (`AT`), or which equation.
      other: which of the values of its shape is taken; of `OUT`, which operand.
      told: the story.
      second: of `AT`, place and other of an operand that is replaced too.
    """

    kind: int
    place: int
    other: int
    told: Told
    second: tuple[int, int] = (-1, 0)


Turns = list[np.ndarray]  # a value, as it is in each turn of a scan


class Step(NamedTuple):
    """An equation at the first sample, in every turn of the scans that it stands in.

    Attributes:
      where: it stands; `primitive`: what it does.
      is_rule: whether it only calls a function that has a `custom_vjp`.
      linear: whether its derivative is the same at every operand.
      piecewise: whether its derivative is one or zero, as a maximum's is.
      moves: whether any of its operands depends on the leaf.
      number: of the equation; `first`: of its first operand.
      places: of its operands among its inputs.
      operands, output: their values, one a turn; `output` is empty if it is not one float.
    """

    where: str
    primitive: str
    is_rule: bool
    linear: bool
    piecewise: bool
    moves: bool
    number: int
    first: int
    places: list[int]
    operands: list[Turns]
    output: Turns


# Equations whose derivative does not depend on the value of an operand.
LINEAR = (
    "add", "sub", "neg", "transpose", "reshape", "broadcast_in_dim", "reduce_sum", "slice",
    "squeeze", "expand_dims", "concatenate", "convert_element_type", "copy", "pad", "rev",
    "dynamic_slice", "gather", "stop_gradient", "cumsum", "split", "add_any", "scatter-add",
)  # fmt: skip

PIECEWISE = ("max", "min", "clamp", "select_n", "sign", "floor", "ceil", "round")


def is_branching(eqn: Any) -> bool:
    """Whether the equation runs others that are seen on their own, or not at all."""
    return eqn.primitive.name in ("scan", "while", "cond", "shard_map")


def _is_piecewise(eqn: Any) -> bool:
    """Whether the equation, or each one that it calls, passes a number on or does not."""
    if not internals.only_calls(eqn):
        return eqn.primitive.name in PIECEWISE
    inner = [e for jaxpr in internals.inner_jaxprs(eqn) for e in internals.equations(jaxpr)]
    inner = [e for e in inner if not internals.only_calls(e)]
    whole = [
        e for e in inner if e.primitive.name not in ("convert_element_type", "broadcast_in_dim")
    ]
    return bool(whole) and all(_is_piecewise(e) for e in whole)


def steps(case: Case) -> list[Step]:
    """Every equation of the forward pass; none where it cannot be run in float64."""
    return case.tools.kept(f"steps {case.leaf}", case.samples[0], lambda: _steps(case))


def _steps(case: Case) -> list[Step]:
    tools = case.tools
    found, every = tools.kept("program of steps", tools, lambda: _running(case))

    def arrays_of(inputs: list[Any]) -> Any:
        return jax.tree.map(np.asarray, every(inputs))

    try:
        with jax.enable_x64(True):
            first = case.samples[0]
            arrays = tools.kept("arrays of steps", first, lambda: arrays_of(first.inputs))
            others = arrays_of(case.with_other_leaf())
    except Exception:  # a part of the forward pass that cannot be run so: no story of its steps
        return []
    steps = {n: s._replace(operands=[[] for _ in s.places], output=[]) for n, s in found.items()}
    for (number, operands, output), (_, moved, _) in zip(arrays, others, strict=True):
        n = int(number)
        if not all(map(np.array_equal, operands, moved)):
            steps[n] = steps[n]._replace(moves=True)
        for turns, value in zip(steps[n].operands, operands, strict=True):
            turns.append(value)
        steps[n].output.extend(output)
    return list(steps.values())


def _running(case: Case) -> tuple[dict[int, Step], Callable[..., Any]]:
    """Every equation, once the program has run, which gives their operands and outputs."""
    found: dict[int, Step] = {}

    def run(inputs: list[Any]) -> list[Any]:
        found.clear()
        arrays: list[Any] = []

        def visit(eqn: Any, ran: graph.Run, inputs: list[Any], run: Any) -> list[Any]:
            outputs = run(inputs)
            one = len(outputs) == 1 and is_floating(outputs[0]) and not is_branching(eqn)
            places = [i for i, _ in graph.operands(inputs)]
            name, where = eqn.primitive.name, graph.described(eqn)
            kinds = (
                name == "custom_vjp_call",
                name in LINEAR or is_branching(eqn),
                _is_piecewise(eqn),
                False,
            )
            step = Step(where, name, *kinds, ran.equation, ran.first, places, [], [])
            found.setdefault(ran.equation, step)
            arrays.append((ran.equation, [inputs[i] for i in places], outputs[:1] if one else []))
            return outputs

        graph.walked(case, inputs, visit)
        return arrays

    return found, case.tools.jit(run)


def edits(case: Case) -> list[Edit]:
    """Every edit that makes a difference at the first sample, the likeliest kinds first."""
    bank = case.tools.kept("bank", case.samples[0], lambda: _Bank(case))
    found: list[list[Edit]] = [[], [], [], []]
    uses: list[tuple[Step, int, Turns]] = []
    for step in steps(case):
        where, output = step.where, step.output
        if step.is_rule:  # the function that is judged: its own steps say more
            continue
        for place, value in zip(step.places, step.operands, strict=True):
            if not step.linear and value[0].size > 1:
                uses.append((step, place, value))
            for i, name in () if step.linear else bank.others(value):
                if step.piecewise:
                    told = Told("region", f"{where} passes a cotangent on by the value of {name}")
                else:
                    told = Told("stale", f"{where} is differentiated at the value of {name}")
                found[AT].append(Edit(AT, step.first + place, i, told))
            if output and value[0].shape == output[0].shape:
                found[OUT].append(Edit(OUT, step.number, place, _without(step)))
                if not step.linear and len(step.places) == 1:
                    found[SLOPE].append(Edit(SLOPE, step.number, 0, _straight(step)))
        for i, name in bank.others(output) if output else ():
            told = Told("stale", f"what follows {where} is differentiated at the value of {name}")
            found[AFTER].append(Edit(AFTER, step.number, i, told))
    return [*itertools.chain(*found), *itertools.islice(_exchanges(uses, bank), EXCHANGES)]


class _Bank:
    """The values that the forward pass computes, by shape: names, turns, and which are the same."""

    def __init__(self, case: Case):
        by_shape: dict[tuple[int, ...], dict[graph.Key, tuple[str, Turns]]] = {}
        for key, name, arrays in graph.values(case):
            own = by_shape.setdefault(arrays[0].shape, {})
            own.setdefault(key, (name, []))[1].append(arrays[0])
        self._kinds: dict[tuple[int, ...], list[Turns]] = {}
        self._kind_of: dict[int, tuple[Turns, int]] = {}
        self._found = {
            shape: [(name, self.kind(turns)) for name, turns in values.values()]
            for shape, values in by_shape.items()
        }

    def kind(self, value: Turns) -> int:
        """The same number for values of a shape that are the same."""
        if id(value) not in self._kind_of:
            kinds = self._kinds.setdefault(value[0].shape, [])
            same = (i for i, other in enumerate(kinds) if _same(other, value))
            kind = next(same, len(kinds))
            if kind == len(kinds):
                kinds.append(value)
            self._kind_of[id(value)] = value, kind  # with the value, or its id may be used again
        return self._kind_of[id(value)][1]

    def others(self, value: Turns) -> Iterator[tuple[int, str]]:
        """Numbers and names of the values of a shape, those that are the same left out."""
        seen = {self.kind(value)}
        for i, (name, kind) in enumerate(self._found.get(value[0].shape, ())):
            if kind not in seen:
                seen.add(kind)
                yield i, name

    def find(self, value: Turns) -> tuple[int, str] | None:
        """Number and name of this value."""
        for i, (name, kind) in enumerate(self._found.get(value[0].shape, ())):
            if kind == self.kind(value):
                return i, name
        return None


def _same(a: Turns, b: Turns) -> bool:
    """Whether two values agree in every turn; one outside of a scan is the same in each."""
    turns = zip(*(v if len(v) > 1 else v * max(len(a), len(b)) for v in (a, b)), strict=False)
    return all(np.allclose(x, y, equal_nan=True) for x, y in turns)


def _without(step: Step) -> Told:
    """The gradient without a step."""
    where = step.where
    if step.piecewise and step.moves:
        return Told("region", f"the gradient is not stopped by {where}")
    if step.primitive in ("mul", "div"):
        return Told("factor", f"it is the gradient without the factor of {where}")
    if step.primitive in ("add", "sub"):
        return Told("missing term", f"it is the gradient without the term of {where}")
    return Told("left out", f"it is the gradient without {where}")


def _straight(step: Step) -> Told:
    """A step's derivative is one."""
    if step.piecewise and step.moves:
        return Told("region", f"the gradient passes {step.where} also where it should be stopped")
    return Told("missing factor", f"the derivative of {step.where} is missing, as if it were one")


def _exchanges(uses: list[tuple[Step, int, Turns]], bank: _Bank) -> Iterator[Edit]:
    """Two operands, each in the place of the other."""
    for (first, i, a), (second, j, b) in itertools.combinations(uses, 2):
        if a[0].shape != b[0].shape or bank.kind(a) == bank.kind(b):
            continue
        here, there = bank.find(a), bank.find(b)
        if here is None or there is None:
            continue
        sentence = (
            f"{first.where} is differentiated at the value of {there[1]}, "
            f"and {second.where} at that of {here[1]}"
        )
        told = Told("swapped", sentence)
        yield Edit(AT, first.first + i, there[0], told, (second.first + j, here[0]))
