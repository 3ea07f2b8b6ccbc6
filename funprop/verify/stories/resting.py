"""The truth of a loop that runs until it is at rest, which JAX does not differentiate in reverse.

Of such a forward pass only values are known, at the given inputs. Where it is at rest one turn of
it has its derivative (`loops`); where that is the one that differences gave, it is known elsewhere
too.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from funprop.verify.judging.judge import FACTOR, UNITS, compared
from funprop.verify.stories.case import Case
from funprop.verify.stories.loops import at_rest, gradients, one_turn
from funprop.verify.stories.witnesses import WITNESSES, redrawn
from funprop.verify.truth.samples import Sample, drawn_sample, random_numbers


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
    size = float(np.sqrt(np.mean(truth**2)))
    allowed = np.full(truth.shape, FACTOR * UNITS * tools.eps * size)
    verdict = compared(got, truth, allowed, size, False)
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
