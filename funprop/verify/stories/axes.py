"""Stories of axes: transposed, reversed, shifted, summed or mixed along the wrong one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from funprop.verify.stories.case import Case, Told
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.samples import Sample


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
        if case.close(np.flip(truth, axis)):
            return Told("reversed", f"reversed along axis {axis - 1}")
    return None


def halves(case: Case) -> Told | None:
    """The right numbers, the two halves along an axis exchanged."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        half, odd = divmod(truth.shape[axis], 2)
        if half > 1 and not odd and case.close(np.roll(truth, half, axis)):
            return Told("swapped", f"its halves along axis {axis - 1} are swapped")
    return None


def shifted(case: Case) -> Told | None:
    """The right numbers, one place off along an axis; or made from cotangents that are."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        for step in (1, -1):
            if any(case.close(moved) for moved in rolls(truth, step, axis)):
                return Told("shifted", f"shifted by one along axis {axis - 1}")
    return None


def rolls(array: np.ndarray, step: int, axis: int) -> Iterator[np.ndarray]:
    rolled = np.roll(array, step, axis)
    yield rolled
    filled = np.array(rolled)
    edge = [slice(None)] * array.ndim
    edge[axis] = slice(0, 1) if step > 0 else slice(-1, None)
    filled[tuple(edge)] = 0
    yield filled


def reduced(case: Case) -> Told | None:
    """Summed or averaged along an axis of its own."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        for name, value in (
            ("summed", np.sum(truth, axis, keepdims=True)),
            ("averaged", np.mean(truth, axis, keepdims=True)),
        ):
            if truth.shape[axis] > 1 and case.close(np.broadcast_to(value, truth.shape)):
                kind = "leak" if axis == 1 and _is_batch(case) else "wrong axis"
                return Told(kind, f"{name} over axis {axis - 1}, which it should keep")
    return None


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
    sample = case.samples[0]
    for i, dy in enumerate(sample.dys):
        for axis in range(min(dy.ndim, 4)):
            n = dy.shape[axis]
            if n < 2:
                continue
            only = [np.zeros_like(d) for d in sample.dys]
            first = [slice(None)] * dy.ndim
            first[axis] = slice(0, 1)
            only[i][tuple(first)] = dy[tuple(first)]
            try:
                one = sample._replace(dys=only)
                got, truth = case.tools.exact(one)[case.leaf], case.tools.truth(one)[case.leaf]
            except NotWideError:
                return None
            axes = [a for a in range(truth.ndim) if truth.shape[a] == n]
            for a in axes:
                others = [slice(None)] * truth.ndim
                others[a] = slice(1, None)
                leaked = np.abs(got[tuple(others)])
                if np.any(truth[tuple(others)]) or not np.any(leaked > 1e-6 * case.verdict.size):
                    continue
                if _mixes_at_the_other_end(case, i, axis, a):
                    return Told(
                        "reversed",
                        f"along axis {a} it goes to places behind, and forward takes from those "
                        "before",
                    )
                if _mixes_as_truth(case, one, a, got, truth):
                    what = (
                        "examples leak into each other"
                        if a == 0
                        else "elements leak into each other"
                    )
                    return Told("leak", f"{what} along axis {a}, along which forward mixes nothing")
                return Told(
                    "wrong axis", f"it sums along axis {a}, along which forward mixes nothing"
                )
    return None


def _mixes_at_the_other_end(case: Case, output: int, axis: int, of_leaf: int) -> bool:
    """Whether the last place along an axis of an output takes from other places of the leaf."""
    sample = case.samples[0]
    only = [np.zeros_like(d) for d in sample.dys]
    last = [slice(None)] * only[output].ndim
    last[axis] = slice(-1, None)
    only[output][tuple(last)] = sample.dys[output][tuple(last)]
    truth = case.tools.truth(sample._replace(dys=only))[case.leaf]
    others = [slice(None)] * truth.ndim
    others[of_leaf] = slice(None, -1)
    return bool(np.any(truth[tuple(others)]))


def _mixes_as_truth(case: Case, one: Sample, axis: int, got: np.ndarray, truth: np.ndarray) -> bool:
    """Whether, along the other axes, it mixes what the forward pass mixes."""
    spot = [np.zeros_like(d) for d in one.dys]
    for d, s in zip(one.dys, spot, strict=True):
        if d.size and np.any(d):
            s.flat[0] = d.flat[0]
    try:
        alone = one._replace(dys=spot)
        got, truth = case.tools.exact(alone)[case.leaf], case.tools.truth(alone)[case.leaf]
    except NotWideError:
        return True
    return bool(np.all((got != 0) | (truth == 0)))
