"""A part looked at beyond the given inputs: is it wrong at those that people forget?"""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify import stories
from funprop.verify.inputs import points
from funprop.verify.inputs.branches import other_branches
from funprop.verify.judging import from_values, in_bounds, kinks
from funprop.verify.judging.at_rest import Given
from funprop.verify.judging.judge import in_float64, judged
from funprop.verify.judging.rounding import rounded
from funprop.verify.judging.rows import wrong
from funprop.verify.report import Check
from funprop.verify.stories.case import Case
from funprop.verify.subject import Subject, first_line, is_floating
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample, drawn_sample


def at_other_inputs(
    subject: Subject, tools: Instruments, given: list[Sample], rng: np.random.Generator
) -> tuple[dict[int, Check], list[str]]:
    """Leaves that are wrong in exact arithmetic at other inputs: the first such inputs found.

    A backward pass that does not take inputs of other shapes is not wrong: that is only noted.
    """
    start = Given(tools, given[0])
    notes: list[str] = []
    for point in (
        *points.same_shape(subject, rng),
        *other_branches(subject, tools.thresholds, rng),
        *_unseen(tools, given),
    ):
        found, said = _at(start, tools, point, rng)
        notes += said
        if found:
            return found, notes
    for point in points.other_shapes(subject, rng):
        try:
            args = [
                np.asarray(v, a.dtype) if is_floating(a) else v
                for v, a in zip(point.inputs, subject.args, strict=True)
            ]
            there = Instruments(subject, args, tools).traced()
        except Exception as error:  # whatever a backward pass raises at a shape
            notes.append(
                f"{subject.name}: backward does not take {point.name}, as forward does: "
                f"{first_line(error)}"
            )
            continue
        found, said = _at(start, there, point, rng)
        notes += said
        if found:
            return found, notes
    return {}, notes


def _at(
    given: Given, tools: Instruments, point: points.Point, rng: np.random.Generator
) -> tuple[dict[int, Check], list[str]]:
    """The leaves that are wrong there, and notes of what cannot be judged."""
    subject = tools.subject
    if tools is given.tools and all(map(_same, point.inputs, given.sample.inputs)):
        return {}, []  # all that was tried is not to be, as the given inputs promise
    samples = [drawn_sample(tools, point.inputs, 1.0, rng) for _ in range(2)]
    near = points.nearby(point.inputs, rng, subject.differentiable)
    if all(map(np.array_equal, near, point.inputs)):  # zeros have nothing nearby
        near = point.inputs
    samples.append(drawn_sample(tools, near, 1.0, rng))
    try:
        if not all(np.isfinite(y).all() for s in samples for y in tools.output(s)):
            return {}, []  # outside the domain of the forward pass
        if not given.comparable(tools, *samples):
            return {}, []
        truths, exact, *_ = judged(in_float64(tools, samples), tools.eps, tools.constants)
    except NotWideError:
        return {}, []
    found, notes = {}, []
    for k, verdict in enumerate(exact or ()):
        verdict, _, known = from_values.settled(verdict, tools, samples, k, given=False)
        if not verdict.ok:  # inputs that nobody gave are full of ties, several at once
            verdict, _ = kinks.forgiven(verdict, tools, samples, k, beyond=0.5, known=known)
        if not verdict.ok:
            verdict, note = from_values.stepless(verdict, tools, samples, k)
            notes += [f"{subject.leaf(k)}, with {point.name}: {note}"] if note else []
            verdict = rounded(verdict, tools, samples, k)
        if not verdict.ok:
            if not given.as_near(tools, *samples):
                return {}, []
            if not all(in_bounds.as_given(given, tools, sample) for sample in samples):
                return {}, []
            told = stories.told(Case(tools, samples, k, verdict, truths))
            found[k] = wrong(subject, k, verdict, told, point.name)
    return found, notes


def _same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def _unseen(tools: Instruments, given: list[Sample]) -> list[points.Point]:
    """NaN in the places that the forward pass does not look at: padding, what a mask hides."""
    truths = [tools.truth(s) for s in given]
    inputs, hidden = list(given[0].inputs), []
    for k, i in enumerate(tools.subject.differentiable):
        unseen = np.all([t[k] == 0 for t in truths], axis=0)
        if not unseen.any():
            continue
        filled: list[Any] = list(given[0].inputs)
        filled[i] = np.where(unseen, np.nan, filled[i])
        try:
            same = all(
                np.array_equal(a, b)
                for a, b in zip(
                    tools.values(given[0]),
                    tools.values(given[0]._replace(inputs=filled)),
                    strict=True,
                )
            )
        except NotWideError:
            return []
        if same:
            inputs[i] = filled[i]
            hidden.append(tools.subject.called(i))
    name = f"NaN where forward does not look at {' and '.join(hidden)}"
    return [points.Point(name, inputs)] if hidden else []
