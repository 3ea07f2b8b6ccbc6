"""Stories of axes: transposed, reversed, shifted, summed or mixed along the wrong one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from funprop.verify.stories.case import Case, Told
from funprop.verify.truth.evaluate import NotWideError


def transposed(case: Case) -> Told | None:
    """The right numbers, transposed or in another order of axes."""
    truth = case.verdict.truth
    axes = range(1, truth.ndim)
    for order in itertools.permutations(axes):
        if order == tuple(axes) or truth.ndim > 5:
            continue
        moved = np.transpose(truth, (0, *order))
        if case.close(moved.reshape(truth.shape)):
            return Told("transposed", "transposed")
    for axis in axes:
        if case.moved(functools.partial(np.flip, axis=axis), axis):
            return Told("reversed", f"reversed along axis {axis - 1}")
    return None


def halves(case: Case) -> Told | None:
    """The right numbers, the two halves along an axis exchanged."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        half, odd = divmod(truth.shape[axis], 2)
        half_way = functools.partial(np.roll, shift=half, axis=axis)
        if half > 1 and not odd and case.moved(half_way, axis):
            return Told("swapped", f"its halves along axis {axis - 1} are swapped")
    return None


def shifted(case: Case) -> Told | None:
    """The right numbers, one place off along an axis; or made from cotangents that are."""
    for axis in range(1, case.verdict.truth.ndim):
        for step, filled in itertools.product((1, -1), (False, True)):
            if case.moved(functools.partial(roll, step=step, axis=axis, filled=filled), axis):
                return Told("shifted", f"shifted by one along axis {axis - 1}")
    return None


def cleared(case: Case) -> Told | None:
    """The right numbers, and zero at one end of an axis, or at both."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        for words, ends in (("last place", [-1]), ("first place", [0]), ("borders", [0, -1])):
            if truth.shape[axis] > len(ends) and case.moved(
                functools.partial(_without, ends=ends, axis=axis), axis
            ):
                return Told("region", f"zero at the {words} along axis {axis - 1}")
    return None


def _without(array: np.ndarray, ends: list[int], axis: int) -> np.ndarray:
    kept = np.array(array)
    np.moveaxis(kept, axis, 0)[ends] = 0
    return kept


def roll(array: np.ndarray, step: int, axis: int, filled: bool) -> np.ndarray:
    """Shifted along an axis: around its end, or `filled` with zero from there."""
    rolled = np.roll(array, step, axis)
    if filled:
        np.moveaxis(rolled, axis, 0)[0 if step > 0 else -1] = 0
    return rolled


def reduced(case: Case) -> Told | None:
    """Summed or averaged along an axis of its own."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        for name, reduce in (("summed", np.sum), ("averaged", np.mean)):
            over = functools.partial(_spread, reduce=reduce, axis=axis)
            if truth.shape[axis] > 1 and case.moved(over, axis):
                kind = "leak" if axis == 1 and _is_batch(case) else "wrong axis"
                return Told(kind, f"{name} over axis {axis - 1}, which it should keep")
    return None


def _spread(array: np.ndarray, reduce: Callable[..., Any], axis: int) -> np.ndarray:
    return np.broadcast_to(reduce(array, axis, keepdims=True), array.shape)


def _is_batch(case: Case) -> bool:
    """Whether the leaf's first axis is one of examples: an output has it too."""
    rows = case.verdict.truth.shape[1:2]
    return any(y.shape[:1] == rows for y in case.tools.outputs)


def diagonal(case: Case) -> Told | None:
    """Only what an element does to the output in its own place, and nothing to the others."""
    n = case.verdict.truth[0].size
    same = [y.size for y in case.tools.dys] == [n] and case.tools.subject.free_cotangent
    if not same or not 1 < n <= 64:
        return None
    own = []
    for sample in case.samples:
        found = np.zeros(n)
        for i in range(n):
            spot = np.zeros(n)
            spot[i] = sample.dys[0].flat[i]
            spot = sample._replace(dys=[spot.reshape(sample.dys[0].shape)])
            found[i] = case.tools.truth(spot)[case.leaf].flat[i]
        own.append(found.reshape(case.verdict.truth.shape[1:]) / sample.unit)
    if case.close(np.stack(own)):
        return Told("missing term", "what an element does to the output in other places is missing")
    return None


def coupled(case: Case) -> Told | None:
    """Elements mixed along an axis along which the forward pass mixes none."""
    if not case.tools.subject.free_cotangent:
        return None
    for i, dy in enumerate(case.samples[0].dys):
        for axis in range(min(dy.ndim, 4)):
            n = dy.shape[axis]
            for a in [a for a, m in enumerate(case.verdict.truth.shape[1:]) if m == n > 1]:
                try:
                    found = _reach(case, i, axis, a)
                except NotWideError:
                    return None
                if told := _told_of(case, found, a):
                    return told
    return None


END = 24  # places at each end of a long axis are looked at


class _Reach(NamedTuple):
    """Which places along an axis of the leaf each place along an axis of an output goes to.

    Attributes:
      got, truth: [place of the output, place of the leaf].
      as_much: whether along the other axes it goes to all that it should.
    """

    got: np.ndarray
    truth: np.ndarray
    as_much: bool


def _reach(case: Case, output: int, axis: int, of_leaf: int) -> _Reach:
    sample = case.samples[0]
    got, truth = [], []
    places = _looked_at(sample.dys[output].shape[axis])
    for place in places:
        only = [np.zeros_like(d) for d in sample.dys]
        at = (*(slice(None) for _ in range(axis)), place)
        only[output][at] = sample.dys[output][at]
        alone = sample._replace(dys=only)
        others = tuple(b for b in range(case.verdict.truth.ndim - 1) if b != of_leaf)
        for found, gradient in ((got, case.tools.exact(alone)), (truth, case.tools.truth(alone))):
            reached = np.abs(gradient[case.leaf]).max(others)[places]
            found.append(reached > 1e-6 * case.verdict.size)
    first = [np.zeros_like(d) for d in sample.dys]
    first[output].flat[0] = sample.dys[output].flat[0]
    spot = sample._replace(dys=first)
    reached, should = (f(spot)[case.leaf] != 0 for f in (case.tools.exact, case.tools.truth))
    return _Reach(np.array(got), np.array(truth), bool(np.all(reached | ~should)))


def _looked_at(n: int) -> np.ndarray:
    """The places along an axis; of a long one those at its ends."""
    return np.arange(n) if n <= 2 * END else np.concatenate([np.arange(END), np.arange(n - END, n)])


def _told_of(case: Case, reach: _Reach, axis: int) -> Told | None:
    got, truth = reach.got, reach.truth
    apart = ~np.eye(len(got), dtype=bool)
    if not np.any(got & ~truth & apart) or not truth.any():
        return None
    if not np.any(truth & apart):
        what = "examples leak" if axis == 0 else "elements leak"
        if reach.as_much:
            sentence = (
                f"{what} into each other along axis {axis}, along which forward mixes nothing"
            )
            return Told("leak", sentence)
        sentence = f"it sums along axis {axis}, along which forward mixes nothing"
        return Told("wrong axis", sentence)
    past, coming = np.tril(apart), np.triu(apart)  # of the leaf, seen from the output
    for here, there, words in (
        (past, coming, ("behind", "before")),
        (coming, past, ("before", "behind")),
    ):
        if not np.any(truth & here) or np.any(truth & there):
            continue
        sentence = f"along axis {axis} it goes to places {words[0]}"
        if np.array_equal(got, truth.T):
            return Told("reversed", f"{sentence}, and forward takes from those {words[1]}")
        if np.any(got & there):
            return Told("leak", f"{sentence} too, and forward takes from those {words[1]} alone")
    return None
