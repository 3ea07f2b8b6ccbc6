"""The truth of a loop that runs until it is at rest, which JAX does not differentiate in reverse.

Of such a forward pass only values are known, at the given inputs. Where it is at rest one turn of
it has its derivative (`loops`); where that is the one that differences gave, it is known elsewhere
too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.extend.core
import numpy as np

from funprop.verify.judging.at_rest import AT_REST
from funprop.verify.judging.judge import FACTOR, UNITS, Verdict, compared
from funprop.verify.stories.case import Case
from funprop.verify.stories.loops import at_rest, gradients, one_turn
from funprop.verify.stories.witnesses import WITNESSES, redrawn
from funprop.verify.truth.samples import Sample, drawn_sample, random_numbers


def settled(case: Case) -> tuple[Verdict, str]:
    """The verdict on a gradient that is the derivative at rest, and what is to be said of it.

    A loop that ends by a tolerance is not quite at rest, and its own derivative may be much further
    from there than its result: a rule gives that of the equation that the loop solves.
    """
    truth = _known(case, case.samples)
    if truth is None or truth.shape != case.verdict.got.shape:
        return case.verdict, ""
    verdict = _verdict(case, case.verdict.got, truth)
    moves = _last_turn(case)
    if not verdict.ok or moves >= AT_REST:
        return case.verdict, ""
    return verdict, f"judged as at rest: one turn more of its loop would move it by {moves:.0e}"


def _last_turn(case: Case) -> float:
    """How far one turn more moves what the loop carries, relative."""
    with jax.enable_x64(True):
        rest = one_turn(case)
        inputs = rest.turn.samples[0].inputs
        (new,) = jax.extend.core.jaxpr_as_fun(rest.turn.tools.wide_plain)(*inputs)
    before = np.concatenate([np.ravel(inputs[i]) for i in rest.carried])
    return float(np.max(np.abs(new - before)) / (np.max(np.abs(before)) + 1e-300))


def _verdict(case: Case, got: np.ndarray, truth: np.ndarray) -> Verdict:
    size = float(np.sqrt(np.mean(truth**2)))
    allowed = np.full(truth.shape, FACTOR * UNITS * case.tools.eps * size)
    return compared(got, truth, allowed, size, False)


def with_truth(case: Case) -> Case | None:
    """The case with the truth of one turn at rest, at other inputs too; `None` if it has none."""
    if at_rest(case) is None:
        return None
    tools, rng = case.tools, random_numbers(1)
    own = [s for s in case.samples if _known(case, [s]) is not None]
    more: list[Sample] = []
    for _ in range(WITNESSES):
        sample = drawn_sample(tools, redrawn(tools, own[0], rng), 1.0, rng)
        if _known(case, [sample]) is not None:
            more.append(sample)
    if len(own) < len(case.samples) or not more:
        return None
    samples = [*own, *more]
    truth = _known(case, samples)
    assert truth is not None
    got = np.stack([tools.hand(s)[case.leaf] / s.unit for s in samples])
    verdict = _verdict(case, got, truth)
    return dataclasses.replace(case, samples=samples, verdict=verdict, truths=[truth], own=len(own))


def _known(case: Case, samples: list[Sample]) -> np.ndarray | None:
    """The gradient of one turn at rest; `None` where the loop is not."""
    try:
        with jax.enable_x64(True):
            rest = one_turn(dataclasses.replace(case, samples=samples))
            (truth,) = gradients(rest, [s.inputs[-1][None] for s in rest.case.samples])
    except Exception:  # inputs that nobody gave, at which it may fail as it likes
        return None
    return truth if np.isfinite(truth).all() else None
