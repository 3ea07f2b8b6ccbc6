"""Stories of certain elements: wrong there, right elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from funprop.verify.stories import graph
from funprop.verify.stories.case import Case, Told

MANY = 100  # elements, of which one that is wrong may be the largest, but hardly by chance
CHANCE = 1e-3  # a region that holds all that is wrong by no smaller one is not told


def by_sign(case: Case) -> Told | None:
    """Wrong at every element of one sign of an input or an output, and nowhere else."""
    signs = (region for region in _of_values(case) if region[0].endswith(_SIGNS))
    return _fitting(case, signs, 1.0, 12)


_SIGNS = (" is 0", " is negative", " is positive")


def complement(case: Case) -> Told | None:
    """Zero wherever it should not be, and nowhere else: a mask that is inverted."""
    v = case.verdict
    got, truth = np.abs(v.got) > 1e-6 * v.size, np.abs(v.truth) > 1e-6 * v.size
    if got.any() and truth.any() and np.array_equal(got, ~truth):
        return Told("region", "zero where it should not be, and only there: the mask is inverted")
    return None


_REPEATED = " names more than once"


def at_places(case: Case) -> Told | None:
    """Wrong at every element of certain places along an axis, and nowhere else."""
    return _fitting(case, _of_named_places(case), 1.0, 8)


def by_place(case: Case) -> Told | None:
    """Wrong at certain places, or where something that the forward pass computes is."""
    found = _fitting(case, _of_named_places(case), 0.6, 1)
    if found is None:
        values = [*_of_values(case), *_of_inner_values(case)]
        signs = [region for region in values if region[0].endswith(_SIGNS)]
        found = _fitting(case, iter(signs), 0.9, 1) or _fitting(case, iter(values), 1.0, 1)
    return found


def by_index(case: Case) -> Told | None:
    """Wrong at most elements of certain places along an axis, whatever these are."""
    return _fitting(case, _of_indices(case), 0.6, 1)


def _fitting(
    case: Case, regions: Iterator[tuple[str, np.ndarray]], least: float, elements: int
) -> Told | None:
    """The region that holds all wrong elements and, as a share of it, most; from `least` on."""
    v = case.verdict
    known = np.isfinite(v.truth)
    matters = known & (np.abs(v.truth) + np.abs(np.nan_to_num(v.got)) > 1e-3 * v.size)
    wrong = v.wrong & matters
    if not wrong.any() or (wrong == matters).all() or matters.any(0).sum() < elements:
        return None
    best: tuple[float, str] = (0.0, "")
    once = _of_distinct_inputs(case)
    for name, where in regions:
        where = where & matters
        if not where.any() or (wrong & ~where).any() or (where == matters).all():
            continue
        share = float(wrong.sum() / where.sum())
        if share > best[0] + 1e-9 and by_chance(once(matters), once(wrong), once(where)) < CHANCE:
            best = (share, name)
    if best[0] < least:
        return None
    repeats = best[1].endswith(_REPEATED)
    return Told("overwritten" if repeats else "region", f"only {best[1]}")


def _of_distinct_inputs(case: Case) -> Callable[[np.ndarray], np.ndarray]:
    """Of what is known of each sample, whether it is so at any of those with the same inputs."""
    alike: dict[int, list[int]] = {}
    for i, s in enumerate(case.samples):
        alike.setdefault(id(s.inputs), []).append(i)
    return lambda found: np.stack([found[i].any(0) for i in alike.values()])


def by_chance(matters: np.ndarray, wrong: np.ndarray, where: np.ndarray) -> float:
    """How likely so many elements, drawn from those that matter, are all in a region."""
    n, inside, drawn = (int(m.sum()) for m in (matters, where, wrong))
    if drawn > inside:
        return 1.0
    # inside! (n - drawn)! / (n! (inside - drawn)!)
    terms = [(inside, 1), (n - drawn, 1), (n, -1), (inside - drawn, -1)]
    return math.exp(sum(sign * math.lgamma(k + 1) for k, sign in terms))


def _of_named_places(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    shape = case.verdict.truth.shape
    for axis in range(1, len(shape)):
        index = np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1))
        n = shape[axis] - 1
        if n:
            yield f"at the last place along axis {axis - 1}", np.broadcast_to(index == n, shape)
            yield f"at the first place along axis {axis - 1}", np.broadcast_to(index == 0, shape)
            ends = (index == 0) | (index == n)
            yield f"at the borders along axis {axis - 1}", np.broadcast_to(ends, shape)
    if len(shape) >= 3 and shape[-1] == shape[-2]:
        lower = np.tril(np.ones(shape[-2:], bool))
        for name, where in (
            ("on the diagonal", np.eye(shape[-1], dtype=bool)),
            ("above the diagonal", ~lower),
            ("below the diagonal", np.tril(lower, -1)),
        ):
            yield name, np.broadcast_to(where, shape)
    for i, rows in repeated(case) if len(shape) > 1 else ():
        if rows.shape[-1:] == shape[1:2]:
            where = np.broadcast_to(rows.reshape(*rows.shape, *[1] * (len(shape) - 2)), shape)
            yield f"at rows that {case.tools.subject.paths[i]}{_REPEATED}", where


def _of_indices(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """The wrong places along one axis, whatever they are: `at places 3, 4 along axis 1`."""
    wrong = case.verdict.wrong
    for axis in range(1, wrong.ndim):
        others = tuple(a for a in range(wrong.ndim) if a != axis)
        found = np.flatnonzero(wrong[: case.own].any(others))
        if 0 < len(found) <= wrong.shape[axis] / 2:  # else it says less than where it is right
            index = np.arange(wrong.shape[axis]).reshape(-1, *[1] * (wrong.ndim - axis - 1))
            where = np.broadcast_to(np.isin(index, found), wrong.shape)
            yield f"at {listed(found)} along axis {axis - 1}", where


def listed(places: np.ndarray) -> str:
    """`place 3`, `places 3 to 7`, `places 1, 4, 5`."""
    if len(places) == 1:
        return f"place {places[0]}"
    if len(places) > 2 and np.all(np.diff(places) == 1):
        return f"places {places[0]} to {places[-1]}"
    few = ", ".join(map(str, places[:6]))
    return f"places {few}" + (", ..." if len(places) > 6 else "")


def _of_values(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """Where an input or an output, whose axes the leaf has too, is negative, zero, large."""
    shape = case.verdict.truth.shape
    values = _stack([s.inputs[case.place] for s in case.samples], shape)
    if values is not None:
        name = case.short
        yield from _by_value(case, name, values, own=True)
    for i, path in enumerate(case.tools.subject.paths):
        if i == case.place:
            continue
        other = _stack([s.inputs[i] for s in case.samples], shape)
        if other is None:
            continue
        whole = not np.issubdtype(np.asarray(case.samples[0].inputs[i]).dtype, np.floating)
        if whole or len(np.unique(other)) <= 2:
            for value in np.unique(other)[:8]:
                yield f"where {path} is {value:g}", other == value
        else:
            yield from _by_value(case, path, other)
    for i, y in enumerate(zip(*(case.tools.output(s) for s in case.samples), strict=True)):
        output = _stack(list(y), shape)
        if output is not None:
            yield from _by_value(
                case, f"output {i}" if len(case.tools.dys) > 1 else "the output", output
            )


def _of_inner_values(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """As `_of_values`, of what the forward pass computes on its way."""
    for _, name, arrays in graph.values(case):
        values = _stack(arrays, case.verdict.truth.shape)
        if values is not None:
            yield from _by_value(case, name, values)


def _by_value(
    case: Case, name: str, values: np.ndarray, own: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    yield f"where {name} is 0", values == 0
    yield f"where {name} is negative", values < 0
    yield f"where {name} is positive", values > 0
    for what, measured in ((name, values), (f"|{name}|", np.abs(values))):
        for bound in (0.5, 1.0, 2.0, 3.0, 6.0, *_bounds(case, measured, own)):
            yield f"where {what} is above {bound:g}", measured > bound
            yield f"where {what} is below {bound:g}", measured < bound


def _bounds(case: Case, values: np.ndarray, own: bool) -> Iterator[float]:
    """Round numbers between the values at wrong elements and those at the others."""
    wrong, known = case.verdict.wrong[: case.own], np.isfinite(case.verdict.truth[: case.own])
    values = values[: case.own]
    few = wrong.any(0).sum() < 2  # by chance it is the largest of some values, but hardly of many
    if few and not (own and wrong.size >= MANY):
        return
    inside, outside = values[wrong], values[~wrong & known]
    for low, high in (
        (np.max(outside, initial=-np.inf), np.min(inside)),
        (np.max(inside), np.min(outside, initial=np.inf)),
    ):
        if np.isfinite(high - low) and high > low:
            digits = math.ceil(-math.log10(high - low))
            yield round((low + high) / 2, digits)


def _stack(values: list[Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """Values of every sample over the elements of the leaf, leading axes first."""
    try:
        arrays = [np.asarray(v).astype(np.float64) for v in values]
    except (TypeError, ValueError):
        return None
    own = arrays[0].shape
    if not own or own != shape[1 : 1 + len(own)]:
        return None
    return np.stack(
        [
            np.broadcast_to(a.reshape(*own, *[1] * (len(shape) - 1 - len(own))), shape[1:])
            for a in arrays
        ]
    )


def repeated(case: Case) -> Iterator[tuple[int, np.ndarray]]:
    """For each integer input, which rows of the leaf it names more than once."""
    rows = case.verdict.truth.shape[1] if case.verdict.truth.ndim > 1 else 0
    for i, leaf in enumerate(case.samples[0].inputs):
        if (
            not isinstance(leaf, np.ndarray)
            or not np.issubdtype(leaf.dtype, np.integer)
            or not leaf.size
        ):
            continue
        if rows and leaf.min() >= 0 and leaf.max() < rows:
            counts = [np.bincount(s.inputs[i].ravel(), minlength=rows) for s in case.samples]
            yield i, np.stack(counts) > 1
