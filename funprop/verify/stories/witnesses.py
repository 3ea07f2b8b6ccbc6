"""Inputs and cotangents that no story was found at: each must hold there too, or it is not told.

A condition on values holds by chance of few elements: three that are wrong may all be the largest
of their rows. So the values of every input that may hold any are put in other places and scaled,
under new cotangents. What an input has in common throughout (zeros, ties, a sign) stays.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from funprop.verify.inputs.properties import free, in_order, within
from funprop.verify.judging import in_bounds
from funprop.verify.judging.at_rest import Given
from funprop.verify.judging.judge import Judgement, Verdict, in_float64, judged
from funprop.verify.judging.measured import measured
from funprop.verify.stories.case import Case
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample, drawn_sample, random_numbers

WITNESSES = 3


def with_witnesses(case: Case) -> Case:
    """The case with samples behind its own that stories must hold at, and read nothing from.

    As it is, where no other inputs can be made, or the truth is not known at them.
    """
    tools, own = case.tools, case.samples
    if tools.many or tools.only_values:
        return case
    samples, found = tools.kept("witnesses", own[0], lambda: _witnesses(tools, own[0]))
    verdicts = [_of_leaf(judgement, case) for judgement in found]
    pairs = [
        (sample, verdict, judgement)
        for sample, verdict, judgement in zip(samples, verdicts, found, strict=True)
        if verdict is not None and np.isfinite(verdict.got[np.isfinite(verdict.truth)]).all()
    ]
    if not pairs:
        return case
    parts = {
        name: np.concatenate([getattr(v, name) for v in (case.verdict, *(p[1] for p in pairs))])
        for name in ("got", "truth", "error", "allowed")
    }
    truths = [
        np.concatenate([t, *(judgement.truths[k] for *_, judgement in pairs)])
        for k, t in enumerate(case.truths)
    ]
    return dataclasses.replace(
        case,
        samples=[*own, *(sample for sample, *_ in pairs)],
        verdict=case.verdict._replace(**parts),
        truths=truths,
        own=len(own),
    )


def _of_leaf(judgement: Judgement, case: Case) -> Verdict | None:
    if case.verdict.exact:
        return None if judgement.exact is None else judgement.exact[case.leaf]
    return judgement.running[case.leaf]


def _witnesses(tools: Instruments, own: Sample) -> tuple[list[Sample], list[Judgement]]:
    """Other samples of the kind of `own`, and what is found at them, one by one."""
    rng = random_numbers(1)
    given = Given(tools, own)
    samples, found = [], []
    for _ in range(WITNESSES):
        sample = drawn_sample(tools, redrawn(tools, own, rng), 1.0, rng)
        try:
            finite = all(np.isfinite(y).all() for y in tools.output(sample))
            if (
                finite
                and given.comparable(tools, sample)
                and in_bounds.as_given(given, tools, sample)
            ):
                judgement = _judged(tools, sample, rng)
                samples.append(sample)
                found.append(judgement)
        except Exception:  # the truth, or the backward pass, may refuse inputs that nobody gave
            continue
    return samples, found


def _judged(tools: Instruments, sample: Sample, rng: np.random.Generator) -> Judgement:
    try:
        return measured(tools, [sample], rng)
    except NotWideError:
        return judged(in_float64(tools, [sample]), tools.eps, tools.constants)


def redrawn(tools: Instruments, own: Sample, rng: np.random.Generator) -> list[np.ndarray]:
    """Other values in the inputs that may hold any."""
    args = tools.args
    moving = [i for i in free(args) if i in tools.subject.differentiable]
    values = [
        within(args[i], _other(v, rng)) if i in moving else v for i, v in enumerate(own.inputs)
    ]
    return in_order(args, values, moving)


def _other(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The numbers in other places, scaled; zeros stay where they are, as they may be a pattern.

    Where no two are equal each is scaled by itself, and has any of the signs that there are.
    """
    known = values[values != 0]
    found = np.array(values)
    scale = rng.uniform(0.7, 1.3, known.shape if len(np.unique(known)) == known.size else ())
    if scale.ndim and np.any(known > 0) and np.any(known < 0):
        scale *= rng.choice([-1.0, 1.0], scale.shape)
    found[values != 0] = scale * rng.permutation(known)
    return found
