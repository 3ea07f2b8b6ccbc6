"""Stories of one step's derivative: another formula, or another piece of one that has pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from funprop.verify.stories.case import Told
from funprop.verify.stories.flow import Change, Flow, Place, Step, always

# What derivatives of functions of one number look like, in its argument x or its value y.
_FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "1 - {}^2": lambda v: 1 - v * v,
    "1 + {}^2": lambda v: 1 + v * v,
    "{} (1 - {})": lambda v: v * (1 - v),
    "{} (1 + {})": lambda v: v * (1 + v),
    "1 - {}": lambda v: 1 - v,
    "1 + {}": lambda v: 1 + v,
    "{}": lambda v: v,
    "-{}": lambda v: -v,
    "2 {}": lambda v: 2 * v,
    "{}^2": lambda v: v * v,
    "-{}^2": lambda v: -v * v,
    "3 {}^2": lambda v: 3 * v * v,
    "1 / {}": lambda v: 1 / v,
    "-1 / {}": lambda v: -1 / v,
    "1 / (2 {})": lambda v: 1 / (2 * v),
    "1 / {}^2": lambda v: 1 / (v * v),
    "-1 / {}^2": lambda v: -1 / (v * v),
    "exp({})": np.exp,
    "1 / (1 + exp(-{}))": lambda v: 1 / (1 + np.exp(-v)),
    "cos({})": np.cos,
    "sin({})": np.sin,
}


class Slope(NamedTuple):
    """A formula for a step's derivative, in its argument or its value."""

    formula: str
    of: str
    values: list[np.ndarray]

    @property
    def text(self) -> str:
        return self.formula.replace("{}", self.of)


class Unary(NamedTuple):
    """A step that does the same to every number: its places, and its derivative where known."""

    step: Step
    place: int
    argument: Place
    output: Place
    derivative: np.ndarray


def slopes(flow: Flow) -> Iterator[Change]:
    """The derivative of a step has another formula than it should, or is taken elsewhere."""
    for unary in _unary(flow):
        if len(unary.step.operands) > 1 and not _only_argument(flow, unary):
            continue
        candidates = list(_slopes(unary))
        right = [slope for slope in candidates if _is(slope.values[0], unary.derivative)]
        candidates += _elsewhere(flow, unary, right)
        for slope in () if not right else candidates:
            if not any(_is(slope.values[0], r.values[0]) for r in right):
                kind, words = _told(slope, right)
                told = tuple(
                    Told(kind or name, f"the derivative of {unary.step.where} is taken as {words}")
                    for name in ("factor", "factor of a term")
                )
                yield Change(
                    unary.place,
                    (told[0], told[1]),
                    lambda s, slope=slope, out=unary.output: slope.values[s] * out.cotangents[s],
                )


def pieces(flow: Flow) -> Iterator[Change]:
    """Where a step passes all or nothing: passed everywhere, or just where it should not be."""
    for unary in _unary(flow):
        known = unary.derivative[np.isfinite(unary.derivative)]
        if not known.size or not np.isin(known, (0.0, 1.0)).all():
            continue
        where, place, out = unary.step.where, flow.places[unary.place], unary.output
        words = f"the cotangent passes {where} also where it should be stopped"
        yield _region(unary.place, words, lambda s, out=out: out.cotangents[s])
        words = f"the cotangent passes {where} just where it should be stopped"
        yield _region(
            unary.place,
            words,
            lambda s, out=out, place=place: out.cotangents[s] - place.cotangents[s],
        )


def _region(i: int, words: str, cotangent: Callable[[int], np.ndarray]) -> Change:
    return Change(i, always("region", words), cotangent)


def _unary(flow: Flow) -> Iterator[Unary]:
    """Steps that take one number to one, seen from each operand of their output's shape."""
    for step in flow.steps:
        if len(step.outputs) != 1:
            continue
        output = flow.places[step.outputs[0]]
        for i in step.operands:
            place = flow.places[i]
            if place.alive and place.values[0].shape == output.values[0].shape:
                yield Unary(step, i, place, output, place.cotangents[0] / output.cotangents[0])


def _only_argument(flow: Flow, unary: Unary) -> bool:
    """Whether the other operands are single constants."""
    others = [flow.places[i] for i in unary.step.operands if i != unary.place]
    return all(p.values[0].size == 1 and len({v.item() for v in p.values}) == 1 for p in others)


def _slopes(unary: Unary) -> Iterator[Slope]:
    for formula, function in _FORMULAS.items():
        for of, place in (("x", unary.argument), ("y", unary.output)):
            yield Slope(formula, of, [function(v) for v in place.values])


def _elsewhere(flow: Flow, unary: Unary, right: list[Slope]) -> Iterator[Slope]:
    """The right formula of other values that the forward pass computes."""
    shape = unary.argument.values[0].shape
    for place in flow.places:
        if not place.is_use and place.values[0].shape == shape:
            for formula in dict.fromkeys(slope.formula for slope in right):
                values = [_FORMULAS[formula](v) for v in place.values]
                yield Slope(formula, f"({place.where})", values)


def _told(slope: Slope, right: list[Slope]) -> tuple[str, str]:
    """The kind, if the formula has one, and the words."""
    best = right[0]
    for other in right:
        if other.formula == slope.formula:
            return "stale", f"{slope.text}, and should be {other.text}"
    for other in right:
        if other.formula.replace("-", "+") == slope.formula.replace("-", "+"):
            return "sign of a term", f"{slope.text}, and should be {other.text}"
    return "", f"{slope.text}, and should be {best.text}"


def _is(a: np.ndarray, b: np.ndarray) -> bool:
    both = np.isfinite(a) & np.isfinite(b)
    return bool(both.any() and np.allclose(a[both], b[both], rtol=1e-9, atol=1e-12))
