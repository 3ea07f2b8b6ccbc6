"""Which of many calls was first to give what is not finite, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop import trees
from funprop.nonfinite.equations import first_equation
from funprop.nonfinite.numbers import numbers_by_leaf
from funprop.nonfinite.report import FirstBad
from funprop.nonfinite.watch import Seen

if TYPE_CHECKING:
    from funprop.typing import PyTree

PARTS = ("inputs", "targets", "weights")


def first_bad(seen: Sequence[Seen], params: PyTree, batch: PyTree) -> FirstBad | None:
    """What was first, of the first part of the batch that has a loss or a gradient gone bad."""
    found = _suspect(seen)
    if found is None:
        return None
    if found.sick == "x" and (cause := bad_input(batch)) is not None:
        return cause
    if found.sick and (cause := bad_param(params)) is not None:
        return cause
    why = "" if found.run is None else _why(found.during, *found.run)
    leaf, kind, told = "", "activation", found.gives
    if found.during == "backward" and found.given.finite and not found.kept.finite:
        largest = _of_forward(seen, found)
        return FirstBad("residual", "forward", found.path, "", found.kept, largest, why)
    if found.during == "backward":
        kind = "cotangent"
        wrong = [(name, g) for name, g in found.gradients.items() if not g.finite]
        if found.gives.finite and wrong:
            kind, (leaf, told) = "gradient", wrong[0]
            leaf = leaf or "params"
    return FirstBad(kind, found.during, found.path, leaf, told, found.given.largest, why)


def _of_forward(seen: Sequence[Seen], found: Seen) -> float:
    """The largest number that the call was given forward."""
    same = ((s.part, s.trail, s.during) == (found.part, found.trail, "forward") for s in seen)
    return next((s.given.largest for s, is_it in zip(seen, same, strict=True) if is_it), 0.0)


def _suspect(seen: Sequence[Seen]) -> Seen | None:
    for part in sorted({each.part for each in seen}):
        calls = [each for each in seen if each.part == part]
        for during in ("forward", "backward"):
            these = [each for each in calls if each.during == during]
            if not these:
                continue
            whole = these[-1]  # the root ends last
            wrong = whole.gradients.values() if during == "backward" else (whole.gives,)
            if not all(numbers.finite for numbers in wrong):
                return _first(these)
    return None


def _first(calls: Sequence[Seen]) -> Seen | None:
    """The first whose infinity or NaN is not taken away by what it is given to, as a mask of `-inf`
    by a softmax."""
    first = found = None
    for call in calls:
        if call.bad and found is None:
            found = call
            first = first or call
        elif not (call.bad or call.layer.children or call.given.finite):
            found = None
    return found or first


def bad_input(batch: PyTree) -> FirstBad | None:
    """A leaf of the batch that is not finite, where it has weight."""
    weights = np.asarray(batch[2]) if len(batch) == 3 else None
    named = {
        name: _with_weight(part, weights, whole_example=name == "inputs")
        for name, part in zip(PARTS, batch, strict=False)
    }
    for path, found in numbers_by_leaf(named).items():
        if not found.finite:
            return FirstBad("input", "", path or "the whole", "", found, found.largest, "")
    return None


def _with_weight(part: PyTree, weights: Any, *, whole_example: bool) -> PyTree:
    """`part` with zeros where nothing weighs: there it may hold anything."""
    if weights is None:
        return part

    def one(leaf: Any) -> Any:
        leaf, heavy = np.asarray(leaf), weights != 0
        if not trees.is_float(leaf):
            return leaf
        if whole_example or heavy.shape != leaf.shape[: heavy.ndim]:
            heavy = heavy.any(tuple(range(1, heavy.ndim)))
        heavy = heavy.reshape(heavy.shape + (1,) * (leaf.ndim - heavy.ndim))
        return np.where(heavy, leaf, np.zeros_like(leaf))

    return jax.tree.map(one, part)


def bad_param(params: PyTree) -> FirstBad | None:
    """A leaf of params that is not finite."""
    for path, found in numbers_by_leaf(params).items():
        if not found.finite:
            return FirstBad("parameter", "", path or "params", "", found, found.largest, "")
    return None


def _why(during: str, function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What in a layer made it: what it says itself where it knows its numbers, or the equation."""

    def outputs(*args: Any) -> Any:
        both = function(*args)
        return both[0] if during == "forward" else both[::-1]  # dx before dparams

    try:
        function(*args)
    except (ValueError, TypeError) as error:  # of a label out of range, say
        return " ".join(str(error).split())
    try:
        found = first_equation(outputs, *args)
    except Exception:  # of what cannot be run so, it cannot be told
        return ""
    return "" if found is None or found.given is not None else str(found)
