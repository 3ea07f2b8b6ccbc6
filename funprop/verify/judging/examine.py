"""One part examined: at the given inputs, at those that people forget, and what is wrong told."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from funprop.verify import stories
from funprop.verify.inputs import points, properties
from funprop.verify.judging import from_values, kinks, large, laws, one_sign, shrink
from funprop.verify.judging.at_rest import Given
from funprop.verify.judging.by_differences import by_differences
from funprop.verify.judging.finite import check_finite, check_finite_at, check_runs
from funprop.verify.judging.judge import Judgement, Verdict
from funprop.verify.judging.measured import measured as _measured
from funprop.verify.judging.on_device import rounded
from funprop.verify.judging.other_inputs import at_other_inputs
from funprop.verify.judging.rows import Findings, misfit, row, wrong
from funprop.verify.report import Check, Example
from funprop.verify.stories.case import Case
from funprop.verify.subject import MismatchError, Subject, first_line
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample, drawn_sample, random_numbers


@np.errstate(all="ignore")  # infinities and NaN are what it looks for
def examine(
    subject: Subject,
    seed: int = 0,
    thorough: bool = True,
    tools: Instruments | None = None,
    first: bool = True,
    finite: bool = True,
) -> Findings:
    """Judge every leaf of one part.

    Args:
      subject: the part.
      seed: of cotangents and inputs.
      thorough: whether to look beyond the given inputs.
      tools: made for a part that differs in its name and the values of its inputs only.
      first: whether no such part was examined before.
      finite: whether its outputs need not be looked at.

    Raises:
      ValueError: an output at the given inputs is NaN or infinite.
    """
    rng = random_numbers(seed)
    try:
        tools = tools or traced(subject)
    except Exception as error:  # whatever a backward pass raises that cannot even be traced
        if not finite:
            check_finite(subject)
        if isinstance(error, MismatchError):
            return Findings([misfit(subject, error)], [], [])
        failed = MismatchError(subject.name, f"backward fails: {first_line(error)}")
        return Findings([misfit(subject, failed)], [], [])
    if tools.many and (rows := large.judged_soon(subject, tools, rng)) is not None:
        return Findings(rows, [], [])
    samples = _samples(tools, subject.args, 1 if tools.many else 3, rng)
    if not finite:
        check_finite_at(tools, samples[0])
    here = [s for s in samples if s.inputs is samples[0].inputs]
    try:
        try:
            measured = _measured(tools, samples, rng)
        except NotWideError as error:
            return by_differences(subject, tools, here, str(error), rng)
        except jax.errors.JaxRuntimeError:  # it may refuse inputs that nobody gave it
            if len(here) == len(samples):
                raise
            samples = here
            measured = _measured(tools, samples, rng)
    except jax.errors.JaxRuntimeError as error:  # raised by Python code that it calls
        check_runs(subject)
        failed = MismatchError(subject.name, f"backward fails: {first_line(error)}")
        return Findings([misfit(subject, failed)], [], [])
    verdicts, remarks = _combined(measured, samples, tools)
    bad = [k for k, verdict in enumerate(verdicts) if not verdict.ok]
    checks = []
    for k, (verdict, remark) in enumerate(zip(verdicts, remarks, strict=True)):
        if verdict.ok:
            checks.append(row(subject, k, verdict, remark))
        else:
            case = _case(tools, measured, samples, k, verdict)
            told = stories.told(dataclasses.replace(case, wrong=tuple(bad)))
            checks.append(wrong(subject, k, verdict, told, note=remark, given=len(here)))
    notes: list[str] = []
    examples: list[Example] = []
    beyond = thorough and first and not tools.many and measured.exact is not None
    if beyond and not bad:
        found, notes = at_other_inputs(subject, tools, samples, rng)
        for k, check in found.items():
            checks[k] = check
        bad = list(found)
    if first and not bad:
        found = one_sign.at_one_sign(subject, tools, rng)
        for k, check in found.items():
            checks[k] = check
        bad = list(found)
    if first and not bad:
        checks += [
            Check(subject.name, subject.name, problem=sentence, story=story)
            for story, sentence in laws.broken_laws(
                tools, samples[0], [v.allowed[0] for v in measured.running]
            )
        ]
    if beyond and bad:
        examples = shrink.smallest(tools, bad[0], rng)
    return Findings(checks, notes, examples)


def traced(subject: Subject) -> Instruments:
    """What measures a part at inputs like its own; raises whatever its backward pass raises."""
    tools = Instruments(subject, subject.args)
    tools.backward_jaxpr  # noqa: B018  # now, where it is not taken for a failure of the truth
    return tools


def _samples(tools: Instruments, args: Any, n: int, rng: np.random.Generator) -> list[Sample]:
    """The given inputs under `n` cotangents of several sizes, then `n` inputs nearby."""
    given = [properties.drawn(leaf) for leaf in args]
    samples = [drawn_sample(tools, given, unit, rng) for unit in (1.0, 32.0, 1 / 32)[:n]]
    near = [
        drawn_sample(tools, points.nearby(args, rng, tools.subject.differentiable), 1.0, rng)
        for _ in range(n)
    ]
    return samples + [s for s in near if Given(tools, samples[0]).comparable(tools, s)]


def _combined(
    found: Judgement, samples: list[Sample], tools: Instruments
) -> tuple[list[Verdict], list[str]]:
    """For each leaf the verdict that counts, kinks forgiven, and a note of them."""
    verdicts, notes = [], []
    for k, running in enumerate(found.running):
        said: dict[str, None] = {}
        candidates = [running] if found.exact is None else [found.exact[k], running]
        settled = []
        for verdict in candidates:
            here = samples[: len(verdict.got)]
            verdict, note, known = from_values.settled(verdict, tools, here, k)
            said[note] = None
            if not verdict.ok:
                verdict, kink = kinks.forgiven(verdict, tools, here, k, known=known)
                if kink.any() and not note:
                    at = [int(i) for i in np.argwhere(kink)[0][1:]]
                    said[f"a kink at {at}: any slope between the one-sided ones is accepted"] = None
            if not verdict.ok and not verdict.exact and settled and settled[0].ok:
                verdict, note = rounded(verdict, tools.eps)
                said[note] = None
            settled.append(verdict)
        verdicts.append(next((v for v in settled if not v.ok), settled[-1]))
        notes.append("; ".join(filter(None, said)))
    return verdicts, notes


def _case(
    tools: Instruments, found: Judgement, samples: list[Sample], k: int, verdict: Verdict
) -> Case:
    right = found.exact is not None and found.exact[k].ok
    n = len(verdict.got)
    return Case(tools, samples[:n], k, verdict, [t[:n] for t in found.truths], right)
