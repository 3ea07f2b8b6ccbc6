"""When is a gradient right? When it is as close to the truth as autodiff is, within a factor.

Two questions are asked. Is the *mathematics* right: is the hand-written backward pass, every step
of it in float64, the derivative of the forward pass? And is it right *as it runs*: in the working
precision, is it as close to the truth as autodiff is? The first has no rounding to hide behind;
the second finds what is lost to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import EPS32, EPS64, Instruments
from funprop.verify.truth.samples import Sample

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
        if any(self.allowed.strides):
            with np.errstate(divide="ignore", invalid="ignore"):
                excess = np.where(np.isfinite(self.allowed), self.error / self.allowed, 0)
            excess = np.nan_to_num(excess, nan=0.0, posinf=np.inf)
        else:  # one number is allowed of all
            excess = self.error
        return tuple(int(i) for i in np.unravel_index(np.argmax(excess), self.error.shape))

    def at_first(self, n: int) -> Verdict:
        """The verdict at the first `n` samples."""
        parts = {name: getattr(self, name)[:n] for name in ("got", "truth", "error", "allowed")}
        return self._replace(**parts)

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


class Measurements(NamedTuple):
    """The gradients at each sample, those that share the inputs of the first in front.

    Lists of samples, of leaves, of arrays: NumPy's, or JAX's inside a compiled program.

    Attributes:
      units, inputs, dys: of the samples; the inputs that are differentiated, the cotangents.
      outputs: of the forward pass, in float64.
      truths: the derivatives, in float64.
      exact: the hand-written gradients, every step in float64; `None` where that cannot be had.
      hands, autos: in the working precision, at the first of the samples only; or of none.
    """

    units: Sequence[float]
    inputs: Sequence[Sequence[Any]]
    dys: Sequence[Sequence[Any]]
    outputs: Sequence[Sequence[Any]]
    truths: Sequence[Sequence[Any]]
    exact: Sequence[Sequence[Any]] | None
    hands: Sequence[Sequence[Any]] = ()
    autos: Sequence[Sequence[Any]] = ()


def in_float64(tools: Instruments, samples: Sequence[Sample]) -> Measurements:
    """What can be measured in float64 at samples.

    Raises:
      NotWideError: the truth cannot be had.
    """
    truths = [tools.truth(s) for s in samples]
    try:
        exact = [tools.exact(s) for s in samples]
    except NotWideError:
        exact = None
    return Measurements(
        [s.unit for s in samples],
        [[s.inputs[i] for i in tools.subject.differentiable] for s in samples],
        [s.dys for s in samples],
        [tools.output(s) for s in samples],
        truths,
        exact,
    )


class Judgement(NamedTuple):
    """What follows from the measurements: the truth, and a verdict for each leaf.

    Attributes:
      truths: by leaf, with the samples in front.
      exact: is the mathematics right? `None` where that cannot be known.
      running: is it right as it runs?
      size: of the gradients.
    """

    truths: list[Any]
    exact: list[Verdict] | None
    running: list[Verdict]
    size: Sizes


def judged(
    found: Measurements,
    eps: float,
    constants: float,
    xp: Any = np,
    units: Sequence[float] | None = None,
) -> Judgement:
    """The verdicts on what was measured.

    Args:
      found: the gradients.
      eps: the rounding unit of the working precision; in float64 `autos` are the truth at inputs
        that were rounded to float32.
      constants: how far the constants in the exact gradients are rounded, relative.
      xp: NumPy; or `jax.numpy` inside a compiled program.
      units: the rounding unit that is asked of each leaf, if it is not `eps` of all.
    """
    n = len(found.hands)
    truths, hands, autos = (
        stacked(parts, found.units, xp) for parts in (found.truths, found.hands, found.autos)
    )
    here = [t[:n] for t in truths]
    size = sizes(found, truths, autos, eps, xp)
    running = []
    if n and eps > EPS64:
        running = as_it_runs(hands, here, autos, size, eps, xp, units)
    elif n:
        size = size._replace(conditioning=[c * EPS64 / EPS32 for c in size.conditioning])
        tight = size._replace(element=[0.01 * e for e in size.element])
        running = mathematics(hands, here, tight, 16 * EPS64, xp)
        running = [v._replace(exact=False) for v in running]
    exact = None
    if found.exact is not None:
        exact = mathematics(stacked(found.exact, found.units, xp), truths, size, constants, xp)
    return Judgement(truths, exact, running, size)


def stacked(per_sample: Sequence[Sequence[Any]], units: Sequence[float], xp: Any = np) -> list[Any]:
    """Gradients of many samples, each divided by its unit, as one array a leaf."""
    units = units[: len(per_sample)]
    leaves = zip(*per_sample, strict=True)
    return [
        xp.stack([xp.asarray(g, np.float64) / u for g, u in zip(parts, units, strict=True)])
        for parts in leaves
    ]


def sizes(
    found: Measurements, truths: Sequence[Any], autos: Sequence[Any], eps: float, xp: Any = np
) -> Sizes:
    """The sizes of the gradients at these samples.

    Over random cotangents and inputs nearby, an element is seldom small by cancellation, so that
    the root mean square of its values is a measure of the terms that it is a sum of. Where the
    whole gradient is zero by cancellation, the size of output over input takes its place.
    """
    element, leaf, conditioning = [], [], []
    outputs = [
        xp.sqrt(sum(xp.sum(xp.square(y * d)) for y, d in zip(ys, dys, strict=True))) / u
        for ys, dys, u in zip(found.outputs, found.dys, found.units, strict=True)
    ]
    for k, truth in enumerate(truths):
        # Sample by sample: XLA's reduction over so short an axis takes twenty times as long.
        parts = [t[k] / u for t, u in zip(found.truths, found.units, strict=True)]
        parts = [xp.where(xp.isfinite(t), t, 0) for t in parts]
        # In units of the largest: the square of 1e-180 would be zero.
        top = xp.max(xp.stack([xp.max(xp.abs(t), initial=0) for t in parts]))
        squares = sum(xp.square(t / xp.where(top > 0, top, 1)) for t in parts)
        element.append(top * xp.sqrt(squares / len(parts)))
        norms = [xp.sqrt(xp.nansum(xp.square(inputs[k]))) for inputs in found.inputs]
        leaf.append(xp.max(element[-1], initial=0) + _ratio(outputs, norms, xp))
        error = xp.abs(autos[k] - truth[: len(autos[k])]) if autos else np.zeros(1)
        worst = xp.max(xp.where(xp.isfinite(error), error, 0), initial=0)
        conditioning.append(xp.where(leaf[-1] > 0, worst / (eps * leaf[-1]), 0.0))
    return Sizes(element, leaf, conditioning)


def _ratio(outputs: Sequence[Any], norms: Sequence[Any], xp: Any) -> Any:
    """The median size of output over input, of the samples at which there is one."""
    ys, xs = xp.stack(outputs), xp.stack(norms)
    ratios = xp.sort(xp.where((xs > 0) & xp.isfinite(ys), ys / xs, xp.inf))
    n = xp.sum(xp.isfinite(ratios))  # what is infinite is sorted behind
    low, high = ratios[xp.maximum(n - 1, 0) // 2], ratios[xp.minimum(n // 2, len(ratios) - 1)]
    return xp.where(n > 0, (low + high) / 2, 0.0)


def mathematics(
    got: Sequence[Any], truths: Sequence[Any], size: Sizes, constants: float, xp: Any = np
) -> list[Verdict]:
    """Is the exact hand-written gradient the derivative?

    Allowed are constants that are written to float32's precision, and float64's own rounding,
    multiplied as autodiff multiplies that of the working precision.
    """
    verdicts = []
    for g, t, element, leaf, conditioning in zip(got, truths, *size, strict=True):
        rounding = UNITS * constants + FACTOR * EPS64 * conditioning
        allowed = UNITS * EPS32 * element + rounding * leaf
        verdicts.append(compared(g, t, allowed, leaf, True, xp))
    return verdicts


def as_it_runs(
    got: Sequence[Any],
    truths: Sequence[Any],
    autos: Sequence[Any],
    size: Sizes,
    eps: float,
    xp: Any = np,
    units: Sequence[float] | None = None,
) -> list[Verdict]:
    """Is the hand-written gradient in the working precision as good as autodiff's there?"""
    verdicts = []
    units = units or [eps] * len(got)
    for g, t, a, leaf, conditioning, unit in zip(got, truths, autos, *size[1:], units, strict=True):
        allowed = (UNITS * unit + FACTOR * conditioning * eps) * leaf
        # Where autodiff overflows, nobody is asked to be near; but to give a number of the size.
        forgiving = xp.where(xp.isfinite(a), allowed, allowed + xp.abs(t))
        verdicts.append(compared(g, t, forgiving, leaf, False, xp))
    return verdicts


def compared(got: Any, truth: Any, allowed: Any, leaf: Any, exact: bool, xp: Any = np) -> Verdict:
    """The verdict on gradients that may be so far from the truth; infinite where it is unknown."""
    known = xp.isfinite(truth) & xp.isfinite(xp.broadcast_to(allowed, truth.shape))
    with np.errstate(invalid="ignore"):
        error = xp.where(xp.isfinite(got), xp.abs(got - truth), xp.inf)
    return Verdict(
        got,
        truth,
        xp.where(known, error, 0.0),
        xp.where(known, allowed, xp.inf),
        leaf,
        exact,
    )
