"""Stories of another point: the gradient with an input or the cotangent moved or replaced."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from funprop.verify.stories.axes import roll
from funprop.verify.stories.case import Case, Told
from funprop.verify.stories.regions import repeated
from funprop.verify.truth.samples import Sample


def overwritten(case: Case) -> Told | None:
    """Of several contributions to a row only one is kept."""
    return _first_that_fits(case, _one_contribution_a_row(case))


def _one_contribution_a_row(case: Case) -> Iterator[tuple[Told, list[Sample]]]:
    """The cotangent only where an index stands for the last, or for the first, time."""
    for i, _ in repeated(case):
        for name, backwards in (("last", True), ("first", False)):
            samples = []
            for s in case.samples:
                index = s.inputs[i]
                flat = index.ravel()[::-1] if backwards else index.ravel()
                kept = np.zeros(flat.size, bool)
                kept[np.unique(flat, return_index=True)[1]] = True
                kept = (kept[::-1] if backwards else kept).reshape(index.shape)
                dys = [
                    d * kept.reshape((*kept.shape, *[1] * (d.ndim - kept.ndim)))
                    if d.shape[: kept.ndim] == kept.shape
                    else d
                    for d in s.dys
                ]
                samples.append(s._replace(dys=dys))
            path = case.tools.subject.paths[i]
            sentence = (
                f"of the contributions to a row that {path} names more than once only the "
                f"{name} is kept"
            )
            yield Told("overwritten", sentence), samples


def moved(case: Case) -> Told | None:
    """The gradient with an input or the cotangent transposed, shifted or reversed."""
    return _first_that_fits(case, itertools.chain(_inputs_moved(case), _cotangents_moved(case)))


def replaced(case: Case) -> Told | None:
    """The gradient with an input replaced: by zero, one, another or the output."""
    return _first_that_fits(case, _inputs_replaced(case))


def partial_sum(case: Case) -> Told | None:
    """The sum over an axis of the cotangent without one end of it, or of one end alone."""
    return _first_that_fits(case, _cotangents_in_part(case))


def _cotangents_in_part(case: Case) -> Iterator[tuple[Told, list[Sample]]]:
    for i, spec in enumerate(case.tools.dys if case.tools.subject.free_cotangent else ()):
        for axis in (a for a, n in enumerate(spec.shape) if n > 1):
            for name, place in (("first", 0), ("last", -1)):
                for alone in (False, True):
                    words = "alone is counted" if alone else "is not counted"
                    sentence = f"the {name} place along axis {axis} of the cotangent {words}"
                    kept = functools.partial(in_part, axis=axis, place=place, alone=alone)
                    told = Told("missing term", sentence)
                    yield told, _with(case, "dys", i, lambda v, _, kept=kept: kept(v))


def in_part(value: np.ndarray, axis: int, place: int, alone: bool) -> np.ndarray:
    """`value` with zero at one place along an axis, or everywhere else."""
    there = np.zeros(value.shape, bool)
    np.moveaxis(there, axis, 0)[place] = True
    return np.where(there == alone, value, 0.0)


def _first_that_fits(case: Case, points: Iterator[tuple[Told, list[Sample]]]) -> Told | None:
    for told, samples in points:
        truth = case.truth_at(samples)
        if truth is not None and case.close(truth):
            return told
    return None


def _inputs_moved(case: Case) -> Iterator[tuple[Told, list[Sample]]]:
    for i, name, leaf in _float_inputs(case):
        for kind, words, move in moves(leaf.shape):
            told = Told(kind, f"it is the gradient with {name} {words}")
            yield told, _with(case, "inputs", i, lambda v, _, move=move: move(v))


def _cotangents_moved(case: Case) -> Iterator[tuple[Told, list[Sample]]]:
    for i, spec in enumerate(case.tools.dys if case.tools.subject.free_cotangent else ()):
        for kind, words, move in moves(spec.shape):
            reduces = case.verdict.truth.ndim - 1 < len(spec.shape)
            if kind == "transposed" and reduces:
                kind, words = "wrong axis", "transposed: it is summed over the wrong axis"
            told = Told(kind, f"the cotangent is used {words}")
            yield told, _with(case, "dys", i, lambda v, _, move=move: move(v))
    for i, j in itertools.combinations(range(len(case.tools.dys)), 2):
        if case.tools.dys[i].shape == case.tools.dys[j].shape:
            told = Told("swapped", f"the cotangents of outputs {i} and {j} are swapped")
            yield told, [s._replace(dys=_swapped(s.dys, i, j)) for s in case.samples]


def _swapped(values: list[Any], i: int, j: int) -> list[Any]:
    found = list(values)
    found[i], found[j] = values[j], values[i]
    return found


def moves(shape: tuple[int, ...]) -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    """Ways to put the numbers of an array in other places: kind, words, function."""
    for order in itertools.permutations(range(len(shape))) if len(shape) < 5 else ():
        same = tuple(shape[a] for a in order) == shape
        if same and order != tuple(range(len(shape))):
            yield "transposed", "transposed", functools.partial(np.transpose, axes=order)
    for axis in (a for a, n in enumerate(shape) if n > 1):
        yield "reversed", f"reversed along axis {axis}", functools.partial(np.flip, axis=axis)
        for by in (1, -1):
            for filled in (False, True):
                shifted = functools.partial(roll, step=by, axis=axis, filled=filled)
                yield "shifted", f"shifted by one along axis {axis}", shifted
    if len(shape) > 2:  # of a kernel, the axes that are not channels
        yield "reversed", "reversed along axes 0 and 1", functools.partial(np.flip, axis=(0, 1))


def _inputs_replaced(case: Case) -> Iterator[tuple[Told, list[Sample]]]:
    outputs = case.tools.output(case.samples[0])
    rows = {y.shape[:1] for y in case.tools.outputs}
    for i, name, leaf in _float_inputs(case):
        for words, make in (("set to zero", np.zeros_like), ("set to one", np.ones_like)):
            told = Told("stale", f"it is the gradient with {name} {words}")
            yield told, _with(case, "inputs", i, lambda v, _, make=make: make(v))
        for axis in (a for a, n in enumerate(leaf.shape) if n > 1):
            for words, reduce in (("summed", np.sum), ("averaged", np.mean)):
                kind = "leak" if axis == 0 and leaf.shape[:1] in rows else "wrong axis"
                told = Told(kind, f"it is the gradient with {name} {words} over axis {axis}")
                mixed = functools.partial(along, reduce=reduce, axis=axis)
                yield told, _with(case, "inputs", i, lambda v, _, mixed=mixed: mixed(v))
        for j, other, value in _float_inputs(case):
            if j != i and value.shape == leaf.shape:
                told = Told("stale", f"it is the gradient with {name} replaced by {other}")
                yield told, _with(case, "inputs", i, lambda _, s, j=j: s.inputs[j])
        for n, y in enumerate(outputs):
            if y.shape == leaf.shape:
                told = Told("stale", f"it is the gradient with {name} replaced by the output")
                yield told, _with(case, "inputs", i, lambda _, s, n=n: case.tools.output(s)[n])


def along(value: np.ndarray, reduce: Callable[..., Any], axis: int) -> np.ndarray:
    """The sum or mean along an axis, in every place along it."""
    return np.broadcast_to(reduce(value, axis, keepdims=True), value.shape)


def _float_inputs(case: Case) -> Iterator[tuple[int, str, np.ndarray]]:
    for i, leaf in enumerate(case.samples[0].inputs):
        if isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.floating):
            yield i, case.tools.subject.called(i), leaf


def _with(case: Case, what: str, i: int, change: Callable[[Any, Sample], Any]) -> list[Sample]:
    """The samples with `change(value, sample)` in the place of one of their arrays."""
    samples = []
    for s in case.samples:
        values = list(getattr(s, what))
        values[i] = change(values[i], s)
        samples.append(s._replace(**{what: values}))
    return samples
