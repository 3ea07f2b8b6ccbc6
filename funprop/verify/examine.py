"""One part examined: at the given inputs, at those that people forget, and what is wrong told."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from funprop.verify import kinks, laws, points, promises, shrink, stories
from funprop.verify.by_differences import by_differences
from funprop.verify.case import Case
from funprop.verify.elsewhere import elsewhere
from funprop.verify.evaluate import NotWideError
from funprop.verify.instruments import (
    EPS32,
    EPS64,
    Instruments,
    Sample,
    drawn_sample,
    random_numbers,
)
from funprop.verify.judge import Sizes, Verdict, as_it_runs, mathematics, sizes, stacked
from funprop.verify.report import Check, Example
from funprop.verify.rows import Findings, misfit, row, wrong
from funprop.verify.subject import MismatchError, Subject, first_line, is_floating


class Measured(NamedTuple):
    """A part at some samples: verdicts by leaf, and what they rest on."""

    samples: list[Sample]
    truths: list[np.ndarray]
    exact: list[Verdict] | None
    running: list[Verdict]
    size: Sizes


@np.errstate(all="ignore")  # infinities and NaN are what it looks for
def examine(
    subject: Subject,
    seed: int = 0,
    thorough: bool = True,
    tools: Instruments | None = None,
    first: bool = True,
) -> Findings:
    """Judge every leaf of one part.

    Args:
      subject: the part.
      seed: of cotangents and inputs.
      thorough: whether to look beyond the given inputs.
      tools: made for a part that differs in its name and the values of its inputs only.
      first: whether no such part was examined before.
    """
    rng = random_numbers(seed)
    try:
        tools = tools or Instruments(subject, subject.args)
    except MismatchError as error:
        return Findings([misfit(subject, error)], [], [])
    except Exception as error:  # whatever a backward pass raises that cannot even be traced
        failed = MismatchError(subject.name, f"backward fails: {first_line(error)}")
        return Findings([misfit(subject, failed)], [], [])
    samples = _samples(tools, subject.args, 1 if tools.many else 3, rng)
    try:
        measured = _measured(tools, samples, rng)
    except NotWideError as error:
        here = [s for s in samples if s.inputs is samples[0].inputs]
        return by_differences(subject, tools, here, str(error), rng)
    except jax.errors.JaxRuntimeError as error:  # raised by Python code that it calls
        failed = MismatchError(subject.name, f"backward fails: {first_line(error)}")
        return Findings([misfit(subject, failed)], [], [])
    verdicts, remarks = _combined(measured, tools)
    checks = [
        row(subject, k, verdict, remark)
        if verdict.ok
        else wrong(
            subject, k, verdict, stories.told(_case(tools, measured, k, verdict)), "", remark
        )
        for k, (verdict, remark) in enumerate(zip(verdicts, remarks, strict=True))
    ]
    bad = [k for k, verdict in enumerate(verdicts) if not verdict.ok]
    notes: list[str] = []
    examples: list[Example] = []
    beyond = thorough and first and not tools.many and measured.exact is not None
    if beyond and not bad:
        found, notes = elsewhere(subject, tools, samples, rng)
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
        examples = shrink.smallest(subject, bad[0], rng)
    return Findings(checks, notes, examples)


def _samples(tools: Instruments, args: Any, n: int, rng: np.random.Generator) -> list[Sample]:
    """The given inputs under `n` cotangents of several sizes, then `n` inputs nearby."""
    given = [promises.drawn(leaf) for leaf in args]
    samples = [drawn_sample(tools, given, unit, rng) for unit in (1.0, 32.0, 1 / 32)[:n]]
    return samples + [
        drawn_sample(tools, points.nearby(args, rng, tools.subject.differentiable), 1.0, rng)
        for _ in range(n)
    ]


def _measured(tools: Instruments, samples: list[Sample], rng: Any) -> Measured:
    """The verdicts at samples, those that share the inputs of the first in the dtype as given."""
    truths = stacked([tools.truth(s) for s in samples], samples)
    here = [s for s in samples if s.inputs is samples[0].inputs]
    hands = stacked([tools.hand(s) for s in here], here)
    if tools.eps > EPS64:
        autos = stacked([tools.auto(s) for s in here], here)
    else:  # float64: as far as the truth moves when the inputs are rounded to float32
        rounded = [s._replace(inputs=_jittered(s.inputs, rng)) for s in here]
        autos = stacked([tools.truth(s) for s in rounded], here)
    size = sizes(truths, tools, samples, autos)
    n = len(here)
    if tools.eps > EPS64:
        running = as_it_runs(hands, [t[:n] for t in truths], autos, size, tools.eps)
    else:
        size = size._replace(conditioning=[c * EPS64 / EPS32 for c in size.conditioning])
        tight = [t[:n] for t in truths]
        running = mathematics(
            hands, tight, size._replace(element=[0.01 * e for e in size.element]), 16 * EPS64
        )
        running = [v._replace(exact=False) for v in running]
    try:
        exact = mathematics(
            stacked([tools.exact(s) for s in samples], samples), truths, size, tools.constants
        )
    except NotWideError:
        exact = None
    return Measured(samples, truths, exact, running, size)


def _jittered(inputs: list[Any], rng: Any) -> list[Any]:
    return [
        v * (1 + EPS32 * rng.uniform(-1, 1, v.shape))
        if isinstance(v, np.ndarray) and is_floating(v)
        else v
        for v in inputs
    ]


def _combined(measured: Measured, tools: Instruments) -> tuple[list[Verdict], list[str]]:
    """For each leaf the verdict that counts, kinks forgiven, and a note of them."""
    verdicts, notes = [], []
    for k, running in enumerate(measured.running):
        note = ""
        candidates = [running] if measured.exact is None else [measured.exact[k], running]
        settled = []
        for verdict in candidates:
            if not verdict.ok:
                samples = measured.samples[: len(verdict.got)]
                verdict, kink = kinks.forgiven(verdict, tools, samples, k)
                if kink.any():
                    at = [int(i) for i in np.argwhere(kink)[0][1:]]
                    note = f"a kink at {at}: any slope between the one-sided ones is accepted"
            settled.append(verdict)
        verdicts.append(next((v for v in settled if not v.ok), settled[-1]))
        notes.append(note)
    return verdicts, notes


def _case(tools: Instruments, measured: Measured, k: int, verdict: Verdict) -> Case:
    right = measured.exact is not None and measured.exact[k].ok
    n = len(verdict.got)
    truths = [t[:n] for t in measured.truths]
    return Case(tools, measured.samples[:n], k, verdict, truths, right)
