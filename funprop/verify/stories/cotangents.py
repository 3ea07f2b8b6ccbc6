"""Stories of a cotangent on its way: at one place it is multiplied, moved, summed, or cut."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from funprop.verify.stories import graph
from funprop.verify.stories.case import Case, Told
from funprop.verify.stories.extremes import extremes
from funprop.verify.stories.flow import Change, Flow, always, flow
from funprop.verify.stories.inputs import along, in_part, moves
from funprop.verify.stories.products import reordered
from funprop.verify.stories.reductions import values_otherwise
from funprop.verify.stories.slopes import pieces, slopes


def on_its_way(case: Case) -> Told | None:
    """One step of the backward pass sends on a wrong cotangent; the rest is right."""
    if (found := flow(case)) is None or not found.alive():
        return None
    return found.first_that_fits(itertools.chain.from_iterable(kind(found) for kind in KINDS))


def scaled(flow: Flow) -> Iterator[Change]:
    """Multiplied by a value of the forward pass once too often, or not at all."""
    bank = list(_distinct_values(flow))
    for i in _distinct_places(flow):
        where, shape = flow.places[i].where, flow.places[i].values[0].shape
        for name, values in bank:
            if _fits_in(values[0].shape, shape):
                for power, words in ((-1, "lacks"), (1, "has once too often")):
                    sentence = f"what comes through {where} {words} the factor {name}"
                    told = Told("factor", sentence), Told("factor of a term", sentence)
                    yield Change(i, told, _times(flow, i, [v**power for v in values]))


def exchanged(flow: Flow) -> Iterator[Change]:
    """A value of the forward pass in the place of another that the derivative has as a factor."""
    bank = list(_distinct_values(flow))
    for i in _distinct_places(flow):
        where, shape = flow.places[i].where, flow.places[i].values[0].shape
        alike = [(name, values) for name, values in bank if values[0].shape == shape]
        for (name, values), (other, others) in itertools.permutations(alike, 2):
            sentence = f"what comes through {where} has {other} in the place of {name}"
            ratios = [o / v for o, v in zip(others, values, strict=True)]
            yield Change(i, always("stale", sentence), _times(flow, i, ratios))


def reduced_elsewhere(flow: Flow) -> Iterator[Change]:
    """A factor that the derivative has, of a value that is reduced along another axis."""
    variants = values_otherwise(flow.case)
    values = {key: arrays for key, _, arrays in graph.values(flow.case)} if variants else {}
    places = list(_distinct_places(flow))
    for variant, others in variants:
        for key, other in others.items():
            same = values.get(key)
            if same is None or same[0].shape != other[0].shape or _same(same[0], other[0]):
                continue
            plain = [o / v for o, v in zip(other, same, strict=True)]
            of_logs = [np.exp(o - v) for o, v in zip(other, same, strict=True)]
            for i, ratios in itertools.product(places, (plain, of_logs)):
                if flow.places[i].values[0].shape == other[0].shape:
                    yield Change(i, (variant.told, variant.told), _times(flow, i, ratios))


def _times(flow: Flow, i: int, factors: list[np.ndarray]) -> Callable[[int], np.ndarray]:
    return lambda s: flow.places[i].cotangents[s] * factors[s]


def displaced(flow: Flow) -> Iterator[Change]:
    """Transposed, reversed or shifted along an axis."""
    for i in _distinct_places(flow):
        shape = flow.places[i].values[0].shape
        for kind, words, move in moves(shape):
            if kind == "transposed" and flow.case.verdict.truth.ndim - 1 < len(shape):
                kind = "wrong axis"  # it is summed afterwards
            yield _changed(flow, i, kind, f"is {words}", move)


def summed(flow: Flow) -> Iterator[Change]:
    """Summed or averaged along an axis that should be kept."""
    rows = {y.shape[:1] for y in flow.case.tools.outputs}
    for i in _distinct_places(flow):
        shape = flow.places[i].values[0].shape
        for axis in (a for a, n in enumerate(shape) if n > 1):
            is_batch = axis == 0 and shape[:1] in rows
            for words, reduce in (("summed", np.sum), ("averaged", np.mean)):
                mixed = functools.partial(along, reduce=reduce, axis=axis)
                kind = "leak" if is_batch else "wrong axis"
                yield _changed(flow, i, kind, f"is {words} over axis {axis}", mixed)


def cut(flow: Flow) -> Iterator[Change]:
    """Without one end of an axis, or of one end alone."""
    for i in _distinct_places(flow):
        for axis in (a for a, n in enumerate(flow.places[i].values[0].shape) if n > 1):
            for name, place in (("first", 0), ("last", -1)):
                for alone in (False, True):
                    counted = "is counted alone" if alone else "is not counted"
                    words = f"at the {name} place along axis {axis} {counted}"
                    kept = functools.partial(in_part, axis=axis, place=place, alone=alone)
                    yield _changed(flow, i, "missing term", words, kept)


# Those that say most first.
KINDS: tuple[Callable[[Flow], Iterator[Change]], ...] = (
    pieces,
    slopes,
    extremes,
    reordered,
    scaled,
    cut,
    displaced,
    summed,
    exchanged,
    reduced_elsewhere,
)


def _changed(flow: Flow, i: int, kind: str, words: str, change: Callable[[Any], Any]) -> Change:
    """The cotangent at a place as a function of what it should be."""
    place = flow.places[i]
    told = always(kind, f"what comes through {place.where} {words}")
    return Change(i, told, lambda s: change(place.cotangents[s]))


def _distinct_places(flow: Flow) -> Iterator[int]:
    """The places that the gradient comes through; a value that is used once is one place."""
    seen: list[Any] = []
    for i in flow.alive():
        place = flow.places[i]
        value, cotangent = place.values[0], place.cotangents[0]
        if any(np.array_equal(value, v) and np.array_equal(cotangent, c) for v, c in seen):
            continue
        seen.append((value, cotangent))
        yield i


def _distinct_values(flow: Flow) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The values that the forward pass computes, and the exponentials of logarithms among them.

    Constants are left out.
    """
    seen: list[np.ndarray] = []
    logarithms = _logarithms(flow)
    for i, place in enumerate(flow.places):
        candidates = [] if place.is_use else [(place.where, place.values)]
        if i in logarithms:
            candidates.append(
                (f"the exponential of {place.where}", [np.exp(v) for v in place.values])
            )
        for name, values in candidates:
            flat = np.concatenate([v.ravel() for v in values])
            if any(_same(values[0], other) for other in seen) or not np.isfinite(flat).all():
                continue
            if np.ptp(flat) > 0:
                seen.append(values[0])
                yield name, values


def _logarithms(flow: Flow) -> set[int]:
    """The places of logarithms: of the outputs of `log`, and of sums with one."""
    found: set[int] = set()
    sums = ("add", "sub", "neg", "reshape", "broadcast_in_dim", "squeeze")
    for step in flow.steps:
        values = [flow.places[i].values[0] for i in step.operands]
        of_logs = any(_spread(flow.places[i].values[0], v) for v in values for i in found)
        is_sum = step.primitive in sums and of_logs
        if is_sum or step.primitive in ("log", "log1p"):
            found.update(step.outputs)
    return found


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-9, atol=0)


def _spread(small: np.ndarray, large: np.ndarray) -> bool:
    """Whether `large` is `small`, repeated along axes or not."""
    fits = _fits_in(small.shape, large.shape)
    return fits and np.array_equal(np.broadcast_to(small, large.shape), large)


def _fits_in(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether an array of shape `small` multiplies one of shape `large` place by place."""
    if len(small) > len(large):
        return False
    return all(a in (1, b) for a, b in zip(reversed(small), reversed(large), strict=False))
