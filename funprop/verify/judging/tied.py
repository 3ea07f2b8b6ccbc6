"""Numbers that are tied with each other, as equal ones in a maximum are: together they get what
arrives once, whatever each one's share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from funprop.verify.judging.judge import UNITS, Verdict
from funprop.verify.truth import near
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample

APART = 1e-3  # of an input's size: so far tied numbers are moved together

Place = tuple[int, ...]


def one_sided(
    tools: Instruments, sample: Sample, leaf: int, places: list[Place]
) -> list[tuple[float, float, float]]:
    """The least and the greatest slope at each of the places, and their error: NaN where there is
    none; an empty list where they cannot be had."""
    if not places:
        return []
    try:
        sides = near.at_places(tools, sample, leaf, places)
    except NotWideError:
        return []
    return [tuple(map(float, one)) for one in zip(*sides.hull(weights(sample)), strict=True)]  # type: ignore[misc]


def weights(sample: Sample) -> np.ndarray:
    """What each term of the outputs counts for."""
    return np.concatenate([d.ravel() for d in sample.dys]) / sample.unit


def shared_wrongly(
    verdict: Verdict, tools: Instruments, sample: Sample, leaf: int, n: int, kink: np.ndarray
) -> np.ndarray:
    """Those of the accepted elements of a leaf that are tied with others, its own or another
    leaf's, where together they are not between the slopes of moving them all.

    They are tied with each other, and not with a constant, where the kink stays when all have been
    moved; and then the slope along that move is one, whatever each one's share of it.
    """
    none = np.zeros(kink.shape, bool)
    together = _tied(tools, sample, leaf, kink)
    if sum(int(t.sum()) for t in together) < 2 or not (together[leaf] & kink).any():
        return none
    try:
        sides = near.along(tools, sample, [t.astype(float) for t in together])
        gots = (tools.exact if verdict.exact else tools.hand)(sample)
        truths = tools.truth(sample)
    except NotWideError:
        return none
    low, high, error = (float(v[0]) for v in sides.hull(weights(sample)))
    got, truth, size = (
        sum(float(f(v[t]).sum()) for v, t in zip(values, together, strict=True)) / sample.unit
        for values, f in ((gots, np.asarray), (truths, np.asarray), (gots, np.abs))
    )
    allowed = np.where(np.isfinite(verdict.allowed[n]), verdict.allowed[n], 0)
    rounding = 1e-6 if verdict.exact else UNITS * tools.eps
    noise = error + allowed[together[leaf]].sum() + rounding * size
    if not low - noise <= truth <= high + noise:  # autodiff does not add up so either
        return none
    return none if low - 2 * noise <= got <= high + 2 * noise else together[leaf] & kink


def _tied(tools: Instruments, sample: Sample, leaf: int, kink: np.ndarray) -> list[np.ndarray]:
    """In each leaf the elements, equal to accepted ones, that have a kink still where all of these
    have been moved; none anywhere where they are too many to be looked at."""
    places = tools.subject.differentiable
    values = [np.asarray(sample.inputs[i]) for i in places]
    equal = [np.isin(v, values[leaf][kink]) for v in values]
    found = [np.zeros(v.shape, bool) for v in values]
    if not 2 <= sum(int(e.sum()) for e in equal) <= near.most_places(tools):
        return found
    x = values[leaf]
    size = float(np.max(np.abs(x[np.isfinite(x)]), initial=0)) or 1.0
    inputs = list(sample.inputs)
    for i, v, e in zip(places, values, equal, strict=True):
        inputs[i] = np.where(e, v + APART * size, v)
    there = sample._replace(inputs=inputs)
    for k, e in enumerate(equal):
        for place in _still(tools, there, k, [tuple(map(int, p)) for p in np.argwhere(e)]):
            found[k][place] = True
    return found


def _still(tools: Instruments, sample: Sample, leaf: int, places: list[Place]) -> Iterator[Place]:
    """The places with a kink."""
    for place, (low, high, error) in zip(
        places, one_sided(tools, sample, leaf, places), strict=False
    ):
        if high - low > 10 * (error + 1e-6 * max(abs(low), abs(high))):
            yield place
