"""Where a forward pass has a kink there is no one derivative: relu at zero, ties in a maximum.

Any value between the one-sided derivatives is right there. Two ways to know them: the branches
that the forward pass itself could have taken, and slopes from values on either side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify.judging.judge import Verdict
from funprop.verify.truth import near
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample

LOOKED_AT_OF_MANY = 4  # elements of a large leaf looked at from both sides
APART = 1e-3  # of an input's size: so far tied numbers are moved together


def forgiven(
    verdict: Verdict,
    tools: Instruments,
    samples: list[Sample],
    leaf: int,
    beyond: float = 0.0,
    known: np.ndarray | None = None,
) -> tuple[Verdict, Any]:
    """The verdict with every element accepted that lies between the one-sided derivatives.

    Numbers that are tied with each other, as two equal ones in a maximum are, must add up too to
    what lies between those of moving them all.

    Args:
      beyond: how far outside it may lie, as a share of their distance.
      known: the elements whose truth is not autodiff's: their slopes are known already.

    Returns:
      The verdict, and which elements were accepted so.
    """
    wrong = verdict.wrong & np.isfinite(verdict.got)
    if known is not None:
        wrong &= ~known
    kink = np.zeros(wrong.shape, bool)
    if not (wrong.any() and tools.may_have_kinks):
        return verdict, kink
    looked_at = LOOKED_AT_OF_MANY if tools.many else near.most_places(tools)
    for n, sample in enumerate(samples):
        if not wrong[n].any():
            continue
        low, high = _branches(tools, sample, leaf, verdict.truth[n])
        kink[n] = wrong[n] & _inside(verdict, n, low, high, beyond)
        places = [tuple(map(int, p)) for p in np.argwhere(wrong[n] & ~kink[n])[:looked_at]]
        for place, (low, high, error) in zip(
            places, _one_sided(tools, sample, leaf, places), strict=False
        ):
            if np.isinf(low) or np.isinf(high):  # the values jump: there is no derivative
                kink[(n, *place)] = True
                continue
            noise = error + 1e-7 * (verdict.size + max(abs(low), abs(high)))
            got, truth = verdict.got[n][place], verdict.truth[n][place]
            # Or there is none, and autodiff is wrong: of sign(x) * f(abs(x)), at zero.
            outside = not low - 10 * noise <= truth <= high + 10 * noise
            if np.isfinite(noise) and (outside or high - low > 10 * noise):
                slack = verdict.allowed[n][place] + noise + beyond * (high - low)
                kink[(n, *place)] = low - slack <= got <= high + slack
        kink[n] &= ~_shared_wrongly(verdict, tools, sample, leaf, n, kink[n])
    return verdict._replace(allowed=np.where(kink, np.inf, verdict.allowed)), kink


def _inside(
    verdict: Verdict, n: int, low: np.ndarray, high: np.ndarray, beyond: float
) -> np.ndarray:
    slack = np.where(np.isfinite(verdict.allowed[n]), verdict.allowed[n], 0)
    margin, got = slack + beyond * (high - low), verdict.got[n]
    return (high > low) & (got >= low - margin) & (got <= high + margin)


def _branches(
    tools: Instruments, sample: Sample, leaf: int, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest derivative over the ways in which ties can be decided."""
    found = [truth, *(t[leaf] / sample.unit for t in tools.truths_at_ties(sample))]
    return np.min(found, axis=0), np.max(found, axis=0)


def _one_sided(
    tools: Instruments, sample: Sample, leaf: int, places: list[tuple[int, ...]]
) -> list[tuple[float, float, float]]:
    """The least and the greatest slope at each of the places, and their error: NaN where there is
    none, or where it cannot be had."""
    if not places:
        return []
    try:
        sides = near.at_places(tools, sample, leaf, places)
    except NotWideError:
        return []
    return [tuple(map(float, one)) for one in zip(*sides.hull(_weights(sample)), strict=True)]  # type: ignore[misc]


def _weights(sample: Sample) -> np.ndarray:
    return np.concatenate([d.ravel() for d in sample.dys]) / sample.unit


def _shared_wrongly(
    verdict: Verdict,
    tools: Instruments,
    sample: Sample,
    leaf: int,
    n: int,
    kink: np.ndarray,
) -> np.ndarray:
    """Those of the accepted elements that are tied with each other, where together they are not
    between the slopes of moving them all.

    They are tied with each other, and not with a constant, where the kink stays when all have been
    moved; and then the slope along that move is one, whatever each one's share of it.
    """
    none = np.zeros(kink.shape, bool)
    places = [tuple(map(int, p)) for p in np.argwhere(kink)]
    if not 2 <= len(places) <= near.most_places(tools):
        return none
    i = tools.subject.differentiable[leaf]
    x = np.asarray(sample.inputs[i])
    size = float(np.max(np.abs(x[np.isfinite(x)]), initial=0)) or 1.0
    moved = np.where(kink, x + APART * size, x)
    there = sample._replace(inputs=[*sample.inputs[:i], moved, *sample.inputs[i + 1 :]])
    together = none.copy()
    for place, (low, high, error) in zip(
        places, _one_sided(tools, there, leaf, places), strict=False
    ):
        together[place] = high - low > 10 * (error + 1e-6 * max(abs(low), abs(high)))
    if together.sum() < 2:
        return none
    try:
        low, high, error = near.along(tools, sample, leaf, together.astype(float)).hull(
            _weights(sample)
        )
    except NotWideError:
        return none
    truth = verdict.truth[n][together].sum()
    allowed = np.where(np.isfinite(verdict.allowed[n]), verdict.allowed[n], 0)
    noise = float(error[0]) + allowed[together].sum() + 1e-6 * abs(verdict.got[n][together]).sum()
    if not low[0] - noise <= truth <= high[0] + noise:  # autodiff does not add up so either
        return none
    got = verdict.got[n][together].sum()
    return none if low[0] - 2 * noise <= got <= high[0] + 2 * noise else together
