"""When is a gradient right? When it is as close to the truth as autodiff is, within a factor.

Two questions are asked. Is the *mathematics* right: is the hand-written backward pass, every step
of it in float64, the derivative of the forward pass? And is it right *as it runs*: in the working
precision, is it as close to the truth as autodiff is? The first has no rounding to hide behind;
the second finds what is lost to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from funprop.verify.instruments import EPS32, EPS64, Instruments, Sample

# A gradient may be this many times as far from the truth as autodiff in the same precision is ...
FACTOR = 4.0
# ... and this many units in the last place, of the size that the gradient has there, beside.
UNITS = 16.0


class Verdict(NamedTuple):
    """What was found for one leaf at some samples; arrays have the samples in front.

    Attributes:
      got, truth: the gradients, divided by the sample's unit.
      error, allowed: their distance, and what is allowed; infinite where nothing can be said.
      size: of the leaf's largest element, by which errors are reported.
      exact: whether `got` is the exact gradient, or the one that runs in the working precision.
    """

    got: np.ndarray
    truth: np.ndarray
    error: np.ndarray
    allowed: np.ndarray
    size: float
    exact: bool

    @property
    def wrong(self) -> np.ndarray:
        """Which elements are beyond what is allowed."""
        return self.error > self.allowed

    @property
    def ok(self) -> bool:
        """Whether every element is within what is allowed."""
        return not self.wrong.any()

    @property
    def worst(self) -> tuple[int, ...]:
        """The element that is furthest beyond what is allowed; the number of its sample first."""
        if not self.error.size:
            return ()
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(np.isfinite(self.allowed), self.error / self.allowed, 0)
        excess = np.nan_to_num(excess, nan=0.0, posinf=np.inf)
        return tuple(int(i) for i in np.unravel_index(np.argmax(excess), self.error.shape))

    def relative(self, values: np.ndarray) -> float:
        """The worst element's value of `error` or `allowed`, in units of the leaf's size."""
        return float(values[self.worst]) / (self.size or 1.0) if values.size else 0.0


class Sizes(NamedTuple):
    """How large the gradients are, to say what a small error is: for each leaf.

    Attributes:
      element: each element's size over cotangents and nearby inputs.
      leaf: that of the largest element, and of output over input.
      conditioning: autodiff's own error in units in the last place of `leaf`.
    """

    element: list[np.ndarray]
    leaf: list[float]
    conditioning: list[float]


def stacked(per_sample: Sequence[Sequence[np.ndarray]], samples: Sequence[Sample]) -> list:
    """Gradients of many samples, each divided by its unit, as one array a leaf."""
    leaves = zip(*per_sample, strict=True)
    return [np.stack([g / s.unit for g, s in zip(parts, samples, strict=True)]) for parts in leaves]


def sizes(
    truths: Sequence[np.ndarray],
    tools: Instruments,
    samples: Sequence[Sample],
    autos: Sequence[np.ndarray] | None = None,
) -> Sizes:
    """The sizes of the gradients at these samples.

    Over random cotangents and inputs nearby, an element is seldom small by cancellation, so that
    the root mean square of its values is a measure of the terms that it is a sum of. Where the
    whole gradient is zero by cancellation, the size of output over input takes its place.
    """
    element, leaf, conditioning = [], [], []
    outputs = [
        sum(float(np.sum(np.square(y * d))) for y, d in zip(tools.output(s), s.dys, strict=True))
        / s.unit**2
        for s in samples
    ]
    for k, i in enumerate(tools.subject.differentiable):
        truth = truths[k]
        known = np.where(np.isfinite(truth), truth, 0)
        element.append(np.sqrt(np.mean(np.square(known), axis=0)))
        norms = [float(np.sqrt(np.nansum(np.square(s.inputs[i])))) for s in samples]
        ratios = [
            np.sqrt(y) / x for y, x in zip(outputs, norms, strict=True) if x and np.isfinite(y)
        ]
        dimensional = float(np.median(ratios)) if ratios else 0.0
        leaf.append(float(np.max(element[-1], initial=0)) + dimensional)
        error = np.abs(autos[k] - truth[: len(autos[k])]) if autos is not None else np.zeros(1)
        worst = float(np.max(np.where(np.isfinite(error), error, 0), initial=0))
        conditioning.append(worst / (tools.eps * leaf[-1]) if leaf[-1] else 0.0)
    return Sizes(element, leaf, conditioning)


def mathematics(
    got: Sequence[np.ndarray], truths: Sequence[np.ndarray], size: Sizes, constants: float
) -> list[Verdict]:
    """Is the exact hand-written gradient the derivative?

    Allowed are constants that are written to float32's precision, and float64's own rounding,
    multiplied as autodiff multiplies that of the working precision.
    """
    verdicts = []
    for g, t, element, leaf, conditioning in zip(got, truths, *size, strict=True):
        rounding = UNITS * constants + FACTOR * EPS64 * conditioning
        verdicts.append(compared(g, t, UNITS * EPS32 * element + rounding * leaf, leaf, True))
    return verdicts


def as_it_runs(
    got: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    autos: Sequence[np.ndarray],
    size: Sizes,
    eps: float,
) -> list[Verdict]:
    """Is the hand-written gradient in the working precision as good as autodiff's there?"""
    verdicts = []
    for g, t, a, leaf, conditioning in zip(got, truths, autos, *size[1:], strict=True):
        allowed = (UNITS + FACTOR * conditioning) * eps * leaf
        # Where autodiff overflows, nobody is asked to do better.
        verdicts.append(compared(g, t, np.where(np.isfinite(a), allowed, np.inf), leaf, False))
    return verdicts


def compared(
    got: np.ndarray, truth: np.ndarray, allowed: np.ndarray, leaf: float, exact: bool
) -> Verdict:
    """The verdict on gradients that may be so far from the truth; infinite where it is unknown."""
    known = np.isfinite(truth) & np.isfinite(np.broadcast_to(allowed, truth.shape))
    with np.errstate(invalid="ignore"):
        error = np.where(np.isfinite(got), np.abs(got - truth), np.inf)
    return Verdict(
        got,
        truth,
        np.where(known, error, 0.0),
        np.where(known, allowed, np.inf),
        leaf,
        exact,
    )
