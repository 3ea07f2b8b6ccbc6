"""Where a forward pass has a kink there is no one derivative: relu at zero, ties in a maximum.

Any value between the one-sided derivatives is right there. Two ways to know them: the branches
that the forward pass itself could have taken, and slopes from values on either side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify.judging.judge import Verdict
from funprop.verify.judging.tied import one_sided, shared_wrongly
from funprop.verify.truth import near
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample

LOOKED_AT_OF_MANY = 4  # elements of a large leaf looked at from both sides


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
            places, one_sided(tools, sample, leaf, places), strict=False
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
        kink[n] &= ~shared_wrongly(verdict, tools, sample, leaf, n, kink[n])
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


def slopes(
    tools: Instruments, sample: Sample, leaf: int, truth: np.ndarray, place: tuple[int, ...]
) -> tuple[float, float] | None:
    """The slopes on either side of a kink at one element; `None` where there is no kink."""
    low, high = (float(v[place]) for v in _branches(tools, sample, leaf, truth))
    if high > low:
        return low, high
    for low, high, error in one_sided(tools, sample, leaf, [place]):
        if high - low > 10 * (error + 1e-7 * max(abs(low), abs(high))):
            return low, high
    return None
