"""The four gradients that a judgement needs: the hand-written one and autodiff's as they run, and
both in exact arithmetic (float64), compiled once for inputs of one shape."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from funprop import trees
from funprop.verify.subject import Subject, first_line, floats, of_floats
from funprop.verify.truth.evaluate import Evaluate, NotWideError, not_known, through_bits
from funprop.verify.truth.in_numpy import quickest
from funprop.verify.truth.programs import MANY, jit_of
from funprop.verify.truth.samples import Sample
from funprop.verify.truth.traces import EPS32, EPS64, Traces

__all__ = ["EPS32", "EPS64", "Instruments"]

# Two gradients that are as near to each other, in units in the last place, are right or wrong
# together: a gradient may be more units from the truth than this (`judging.judge.UNITS`).
ROUNDINGS = 4.0


class Instruments(Traces):
    """What can be measured of a subject at inputs of one shape and dtype.

    Attributes:
      many: whether it is of so many numbers that it is examined at the given inputs only.
      only_values: whether the forward pass has no derivative of JAX's that could be asked.
    """

    def __init__(self, subject: Subject, args: Sequence[Any], like: Traces | None = None):
        super().__init__(subject, args, like)
        numbers = sum(np.size(a) for a in args) + trees.size(self.outputs)
        self.only_values = False
        self.many, self.soonest = numbers > MANY, jit_of(numbers)
        self.jit = self.soonest if self.many else functools.partial(quickest, jit=self.soonest)
        self.judged = jit_of(numbers, judged=True)
        self._memory: dict[tuple[str, int], tuple[Any, Any]] = {}

    def working(self, values: Sequence[Any]) -> list[Any]:
        """Values in the dtypes that the subject was given."""
        return [_as(v, d) for v, d in zip(values, self.dtypes, strict=True)]

    def working_dys(self, sample: Sample) -> list[Any]:
        """The sample's cotangents in the dtypes of the outputs."""
        return [_as(d, spec.dtype) for d, spec in zip(sample.dys, self.dys, strict=True)]

    # ------------------------------------------------------------------ in the working precision

    def hand(self, sample: Sample) -> list[np.ndarray]:
        """The hand-written gradient as it runs."""
        return self._running(sample)[0]

    def auto(self, sample: Sample) -> list[np.ndarray]:
        """The gradient by `jax.vjp` of the plain forward pass, in the working precision.

        Raises:
          NotWideError: a part of the forward pass has no derivative.
        """
        return self._running(sample)[1]

    def plain(self, sample: Sample) -> list[np.ndarray]:
        """The outputs of the plain forward pass as it runs."""
        return self._running(sample)[2]

    def differentiated(self, sample: Sample) -> list[np.ndarray]:
        """The outputs of the forward pass while it is differentiated, if these may be others."""
        return self._running(sample)[3]

    def _running(self, sample: Sample) -> tuple[list[np.ndarray], ...]:
        return self.kept("running", sample, lambda: self._measured_running(sample))

    def _measured_running(self, sample: Sample) -> tuple[list[np.ndarray], ...]:
        """Of a program that is compiled soonest, if both gradients are the same in it, to a few
        roundings; else of one that rounds as a user's does."""
        if self.only_values:
            return self._run(self._hand_and_plain, sample)
        if not self.many and self._looks_right(sample):
            found = self._run(self._hand_and_auto_soonest, sample)
            if self._agree(*found):
                return found
        return self._run(self._hand_and_auto, sample)

    def _looks_right(self, sample: Sample) -> bool:
        """Whether it is worth a program to see whether both gradients agree as they run."""
        try:
            pairs = zip(self.exact(sample), self.truth(sample), strict=True)
        except NotWideError:
            return False
        return all(_near(g, t, EPS32) for g, t in pairs)

    def _agree(self, hand: Any, auto: Any, plain: Any, ys: Any) -> bool:
        gradients = zip(hand, auto, self.units, strict=True)
        outputs = zip(ys, plain, strict=True) if ys else ()
        return all(_near(h, a, ROUNDINGS * unit) for h, a, unit in gradients) and all(
            _near(y, p, ROUNDINGS * self.eps) for y, p in outputs
        )

    def _run(self, function: Callable[..., Any], sample: Sample) -> tuple[list[np.ndarray], ...]:
        found = function(self.working(sample.inputs), self.working_dys(sample))
        return tuple(_float64(part) for part in found)

    @functools.cached_property
    def _hand_and_auto(self) -> Callable[..., Any]:
        return self.judged(self._both)

    @functools.cached_property
    def _hand_and_auto_soonest(self) -> Callable[..., Any]:
        return self.soonest(self._both)

    def _both(self, inputs: list[Any], dys: list[Any]) -> tuple[list[Any], ...]:
        auto_and_outputs = self.pulled(Evaluate(), self.plain_jaxpr, inputs, dys)
        hand, ys = self.ran(inputs, dys)
        return hand, *auto_and_outputs, ys

    @functools.cached_property
    def _hand_and_plain(self) -> Callable[..., Any]:
        def both(inputs: list[Any], dys: list[Any]) -> tuple[list[Any], ...]:
            hand, ys = self.ran(inputs, dys)
            return hand, [], floats(Evaluate()(self.plain_jaxpr, *inputs)), ys

        return self.judged(both)

    def pulled(
        self, run: Evaluate, jaxpr: Any, inputs: list[Any], dys: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """The derivative of a jaxpr, and its float outputs.

        Raises:
          NotWideError: JAX has none.
        """
        if through_bits(jaxpr):
            raise NotWideError("the bits of a number have no derivative in JAX")
        if name := not_known(jaxpr):
            raise NotWideError(f"{name} may have a derivative of its own")
        places = self.subject.differentiable
        forward = of_floats(functools.partial(run, jaxpr), inputs, places)
        ys, pullback = jax.vjp(forward, *(inputs[i] for i in places))
        return list(pullback([d.astype(y.dtype) for d, y in zip(dys, ys, strict=True)])), ys

    def kept(self, what: str, sample: Any, measure: Callable[[], Any]) -> Any:
        """What was measured at a sample before, or is now."""
        key = (what, id(sample))
        if key not in self._memory:
            self._memory[key] = (sample, measure())  # with the sample, or its id may be used again
        return self._memory[key][1]

    # ------------------------------------------------------------------------- in float64

    def truth(self, sample: Sample) -> list[np.ndarray]:
        """The derivative of what the plain forward pass computes, in float64.

        Raises:
          NotWideError: a part of the forward pass cannot run in float64, or has no derivative.
        """
        return self._in_float64(sample)[0]

    def truths_at_ties(self, sample: Sample) -> list[list[np.ndarray]]:
        """As `truth`, where floats are equal decided for the first, and for the last.

        None where the forward pass has no kinks, or cannot be run so.
        """
        if not self.may_have_kinks:
            return []
        found = []
        for first in (True, False):
            with jax.enable_x64(True), contextlib.suppress(NotWideError):
                run = _wide(self._truth_by_ties, np.bool_(first), sample.inputs, sample.dys)
                found.append(_float64(run))
        return found

    def output(self, sample: Sample) -> list[np.ndarray]:
        """The outputs of the plain forward pass in float64."""
        return self._in_float64(sample)[1]

    def exact(self, sample: Sample) -> list[np.ndarray]:
        """The hand-written gradient, every step of it in float64.

        Raises:
          NotWideError: a part of it cannot run in float64.
        """
        found = self._in_float64(sample)
        if len(found) < 3:
            raise NotWideError("a part of the backward pass cannot run in float64")
        return found[2]

    def values(self, sample: Sample) -> list[np.ndarray]:
        """The outputs of the plain forward pass in float64, nothing differentiated."""
        with jax.enable_x64(True):
            return _float64(_wide(self._output, sample.inputs))

    def _in_float64(self, sample: Sample) -> tuple[list[np.ndarray], ...]:
        def measure() -> tuple[list[np.ndarray], ...]:
            with jax.enable_x64(True):
                for function in (self._all, self._truth):
                    try:
                        found = _wide(function, sample.inputs, sample.dys)
                        return tuple(_float64(part) for part in found)
                    except NotWideError as error:
                        reason = error
                raise reason

        return self.kept("float64", sample, measure)

    @functools.cached_property
    def _all(self) -> Callable[..., Any]:
        def measured(inputs: list[Any], dys: list[Any]) -> tuple[list[Any], ...]:
            run, (plain, backward, _) = Evaluate(wide=True), self.wide_jaxprs
            exact = run(backward, *inputs, *dys)[: len(self.subject.differentiable)]
            return *self.pulled(run, plain, inputs, dys), exact

        return self.jit(measured)

    @functools.cached_property
    def _truth(self) -> Callable[..., Any]:
        return self.jit(lambda *args: self.pulled(Evaluate(wide=True), self.wide_jaxprs[0], *args))

    @functools.cached_property
    def _truth_by_ties(self) -> Callable[..., Any]:
        def truth(first: Any, inputs: list[Any], dys: list[Any]) -> list[Any]:
            run = Evaluate(wide=True, first=first)
            return self.pulled(run, self.wide_jaxprs[0], inputs, dys)[0]

        return self.jit(truth)

    @functools.cached_property
    def _output(self) -> Callable[..., Any]:
        return self.jit(lambda inputs: floats(Evaluate(wide=True)(self.wide_jaxprs[0], *inputs)))


def _wide(run: Callable[..., Any], *args: Any) -> Any:
    try:
        return run(*args)
    except NotWideError:
        raise
    except Exception as error:  # a primitive that has no derivative, or takes no float64
        raise NotWideError(first_line(error)) from error


def _as(value: Any, dtype: Any) -> Any:
    """In this dtype; on the host, where it is not such an array of JAX's already."""
    ready = isinstance(value, jax.Array) and value.dtype == dtype
    return value if ready else np.asarray(value, dtype)


def _near(a: np.ndarray, b: np.ndarray, unit: float) -> bool:
    """Whether two arrays are finite, and the same to so much of their largest number."""
    return bool(np.max(np.abs(a - b), initial=0) <= unit * np.max(np.abs(b), initial=0) < np.inf)


def _float64(values: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(value).astype(np.float64) for value in values]
