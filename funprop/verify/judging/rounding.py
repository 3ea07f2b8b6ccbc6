"""Float64 rounds too: at large numbers, what should cancel leaves something behind.

With scores in the ten thousands `p * (dp - sum(p * dp))` is zero in exact arithmetic, and in
float64 as large as the last bits of `dp`, times those scores. Autodiff of the plain forward pass
may happen to cancel to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify.judging.judge import FACTOR, Verdict
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample

LITTLE = 1e-5  # of the leaf's size: no more is forgiven
NEAR = (1 + 2.0**-46, 1 - 2.0**-47, 1 + 2.0**-48)  # equal numbers stay equal, zeros zero


def rounded(verdict: Verdict, tools: Instruments, samples: list[Sample], leaf: int) -> Verdict:
    """The verdict with so much more allowed as rounding moves the gradient, in float64: measured at
    inputs that are all larger or smaller by a few units in the last place, where a wrong gradient
    is as wrong, and what is rounded is rounded otherwise."""
    if not np.max(np.where(verdict.wrong, verdict.error, 0)) <= LITTLE * verdict.size:
        return verdict
    moved = np.zeros(verdict.error.shape)
    for n, sample in enumerate(samples):
        for by in NEAR:
            near = sample._replace(inputs=_scaled(tools, sample, by))
            try:
                found = tools.exact(near)[leaf], tools.truth(near)[leaf]
            except NotWideError:
                return verdict
            for value, before in zip(found, (verdict.got[n], verdict.truth[n]), strict=True):
                moved[n] = np.fmax(moved[n], np.abs(value / sample.unit - before))
    # Of all elements together: one alone may be rounded alike by chance.
    most = np.max(moved, initial=0, where=np.isfinite(moved))
    return verdict._replace(allowed=np.fmax(verdict.allowed, FACTOR * most))


def _scaled(tools: Instruments, sample: Sample, by: float) -> list[Any]:
    moving = tools.subject.differentiable
    return [v * by if i in moving else v for i, v in enumerate(sample.inputs)]
