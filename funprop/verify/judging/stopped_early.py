"""Rules of solvers that stop loosely, judged where these have come to rest.

Such a rule gives the derivative of the equation that is solved, at a result that does not quite
solve it: it is off by what is left to go, as the result is. The derivative of the loop as it stops
is another, and no better one. So two things are asked. Both run on until they are at rest, is the
rule the derivative of the function? And as it runs, is it no further from there than stopping early
explains: a few times of how far the rule itself moves when its loops go on?
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from funprop.verify.judging.judge import FACTOR, Verdict, compared, stacked
from funprop.verify.subject import floats, is_floating
from funprop.verify.truth import near
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.instruments import EPS64, Instruments
from funprop.verify.truth.internals import without_unused
from funprop.verify.truth.rested import at_rest, stops_early
from funprop.verify.truth.samples import Sample

TINY = 2.0**-45  # so little hardly moves a result, but for what a search along a line makes of it
NEAR = 0.25  # of itself a result may be from rest: what is further off is no solution
VAGUE = 0.05  # of its size a slope may be unknown; what is known no better is asked for at rest


class Rested(NamedTuple):
    """A function and its rule at rest, in float64.

    Attributes:
      values: `inputs -> float outputs`, NaN where it does not come to rest.
      hands: the rule's gradients, [sample, *leaf] of each leaf.
      moves: how far from these they are where the loops stop.
      stops: how far the outputs are from rest where the loops stop, relative.
      eps: how far the outputs at rest may be off, relative: a search along a line that compares
        values moves no more where these agree to rounding.
    """

    values: Callable[[list[Any]], list[np.ndarray]]
    hands: list[np.ndarray] | None
    moves: list[np.ndarray]
    stops: float
    eps: float

    def may_judge(self, verdict: Verdict) -> bool:
        """Whether a gradient with this verdict is to be judged at rest: one that is as it should be
        where the loops stop, so far as is known, only where that is close to rest."""
        return not verdict.ok or self.stops <= VAGUE

    def judged(
        self, k: int, hand: np.ndarray, slopes: Callable[..., tuple[Verdict, Any]]
    ) -> tuple[Verdict, str]:
        """The verdict on a leaf's gradient, and what is to be said of it.

        Args:
          k: which leaf; `hand`: the gradient as it runs.
          slopes: holds gradients, `hand=`, against the slopes at rest.
        """
        found, _ = slopes(hand=hand, eps=self.eps)
        if self.hands is None:
            most = self.stops * found.size
        else:
            exact, _ = slopes(hand=self.hands[k], eps=self.eps)
            if not exact.ok:
                return exact, "judged at rest: its loops were run until nothing moved"
            most = float(np.max(np.abs(self.moves[k]), initial=0))
        allowed = found.allowed + FACTOR * most
        verdict = compared(found.got, found.truth, allowed, found.size, False)
        off = most / (found.size or 1.0)
        early = f"its loops stop early, which moves the gradient by {off:.0e} of its size"
        return verdict, f"judged as at rest: {early}"


def rested(tools: Instruments, samples: list[Sample]) -> Rested | None:
    """The function and its rule at rest; `None` where they do not come there from the inputs, or
    from far off: a loop that halves until it is below one is no solver that stops early."""
    try:
        with jax.enable_x64(True):
            plain, backward, _ = tools.wide_jaxprs
            if not stops_early(plain):
                return None
            plain, backward = without_unused(plain), without_unused(backward)
            held = near.Held(plain, at_rest(plain))
            stops = held.stops(samples[0].inputs)
            run = tools.jit(lambda inputs: held(inputs, stops))
            stopped = floats(Evaluate(wide=True)(plain, *samples[0].inputs))

        def values(inputs: list[Any]) -> list[np.ndarray]:
            with jax.enable_x64(True):
                return [np.asarray(y, np.float64) for y in run(inputs)]

        here = values(samples[0].inputs)
    except Exception:  # what runs in no float64, or fails as it likes beyond its end
        return None
    if not all(np.isfinite(y).all() for y in here):
        return None
    far = _apart([np.asarray(y) for y in stopped], here)
    if far > NEAR:
        return None
    try:
        eps = max(EPS64, *(2 * _apart(values(inputs), here) for inputs in _all_but(samples[0])))
    except Exception:
        return None
    n, units = len(tools.subject.differentiable), [s.unit for s in samples]
    found = []
    try:
        with jax.enable_x64(True):
            for evaluate in (at_rest(backward), Evaluate(wide=True)):
                run_rule = _of_rule(tools, evaluate, backward, n)
                found.append(stacked([run_rule(s.inputs, s.dys) for s in samples], units))
    except Exception:  # a rule that runs in no float64: the outputs say how far it may be off
        return Rested(values, None, [], far, eps)
    if not all(np.isfinite(g).all() for g in found[0]):
        return None
    moves = [np.abs(a - b) for a, b in zip(*found, strict=True)]
    return Rested(values, found[0], moves, far, eps)


def _apart(values: list[np.ndarray], others: list[np.ndarray]) -> float:
    """The largest distance, relative to the largest number."""
    apart, size = (
        max((float(np.max(np.abs(v), initial=0)) for v in arrays), default=0.0)
        for arrays in ([a - b for a, b in zip(values, others, strict=True)], others)
    )
    return apart / (size + 1e-300)


def _all_but(sample: Sample) -> list[list[Any]]:
    """Inputs that are all but the sample's."""
    return [[v * (1 + n * TINY) if is_floating(v) else v for v in sample.inputs] for n in (1, 2, 3)]


def _of_rule(tools: Instruments, evaluate: Evaluate, backward: Any, n: int) -> Callable[..., Any]:
    return tools.jit(lambda inputs, dys: evaluate(backward, *inputs, *dys)[:n])


def is_vague(verdict: Verdict) -> bool:
    """Whether so little is known of the slopes that a wrong gradient could pass."""
    return bool(np.any(~(verdict.allowed <= VAGUE * verdict.size)))
