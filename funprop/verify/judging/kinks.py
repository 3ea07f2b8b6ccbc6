"""Where a forward pass has a kink there is no one derivative: relu at zero, ties in a maximum.

Any value between the one-sided derivatives is right there. Two ways to know them: the branches
that the forward pass itself could have taken, and differences from either side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify.judging.judge import Verdict
from funprop.verify.truth.differences import one_sided
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample

LOOKED_AT, LOOKED_AT_OF_MANY = 64, 4  # elements of a leaf looked at from both sides


def forgiven(
    verdict: Verdict,
    tools: Instruments,
    samples: list[Sample],
    leaf: int,
    beyond: float = 0.0,
) -> tuple[Verdict, Any]:
    """The verdict with every element accepted that lies between the one-sided derivatives.

    Args:
      beyond: how far outside it may lie, as a share of their distance.

    Returns:
      The verdict, and which elements were accepted so.
    """
    wrong = verdict.wrong & np.isfinite(verdict.got)
    kink = np.zeros(wrong.shape, bool)
    if not (wrong.any() and tools.may_have_kinks):
        return verdict, kink
    looked_at = LOOKED_AT_OF_MANY if tools.many else LOOKED_AT
    for n, sample in enumerate(samples):
        if not wrong[n].any():
            continue
        low, high = _branches(tools, sample, leaf, verdict.truth[n])
        kink[n] = wrong[n] & _inside(verdict, n, low, high, beyond)
        for place in np.argwhere(wrong[n] & ~kink[n])[:looked_at]:
            where = tuple(int(i) for i in place)
            ends = np.array(_one_sided(tools, sample, leaf, where)) / sample.unit
            noise = 1e-7 * (verdict.size + np.abs(ends).max())
            got, truth = verdict.got[n][where], verdict.truth[n][where]
            # Or there is none, and autodiff is wrong: of sign(x) * f(abs(x)), at zero.
            outside = not ends[0] - 10 * noise <= truth <= ends[1] + 10 * noise
            if outside or ends[1] - ends[0] > 10 * noise:
                slack = verdict.allowed[n][where] + noise + beyond * (ends[1] - ends[0])
                kink[(n, *where)] = ends[0] - slack <= got <= ends[1] + slack
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
    tools: Instruments, sample: Sample, leaf: int, where: tuple[int, ...]
) -> tuple[float, float]:
    i = tools.subject.differentiable[leaf]

    def terms(x: np.ndarray) -> np.ndarray:
        inputs = [*sample.inputs[:i], x, *sample.inputs[i + 1 :]]
        ys = tools.values(sample._replace(inputs=inputs))
        return np.concatenate([(y * d).ravel() for y, d in zip(ys, sample.dys, strict=True)])

    return one_sided(terms, sample.inputs[i], where)
