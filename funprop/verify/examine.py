"""One part examined: at the given inputs, at those that people forget, and what is wrong told."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from funprop import trees
from funprop.verify import kinks, laws, points, shrink, stories
from funprop.verify.case import Case, Told
from funprop.verify.differences import slope
from funprop.verify.instruments import EPS32, EPS64, Instruments, Sample
from funprop.verify.jaxprs import NotWide
from funprop.verify.judge import (
    FACTOR,
    UNITS,
    Sizes,
    Verdict,
    as_it_runs,
    mathematics,
    sizes,
    stacked,
)
from funprop.verify.report import Check, Example
from funprop.verify.subject import Mismatch, Subject, is_floating

# With more numbers than this in inputs and outputs a part is examined at the given inputs only.
MANY = 200_000


class Findings(NamedTuple):
    """What was found of one part."""

    checks: list[Check]
    notes: list[str]
    examples: list[Example]


class Measured(NamedTuple):
    """A part at some samples: verdicts by leaf, and what they rest on."""

    samples: list[Sample]
    truths: list[np.ndarray]
    exact: list[Verdict] | None
    running: list[Verdict] | None
    size: Sizes


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
    rng = np.random.default_rng(seed)
    try:
        tools = tools or Instruments(subject, subject.args)
    except Mismatch as error:
        return Findings([_misfit(subject, error)], [], [])
    except Exception as error:  # whatever a backward pass raises that cannot even be traced
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return Findings([_misfit(subject, Mismatch(subject.name, f"backward fails: {line}"))], [], [])
    many = sum(np.size(a) for a in subject.args) + trees.size(tools.outputs) > MANY
    given = [points.drawn(leaf) for leaf in subject.args]
    samples = _samples(tools, given, rng, 1 if many else 3, 1 if many else 3, subject.args)
    try:
        measured = _measured(tools, samples, rng)
    except NotWide as error:
        return _by_differences(subject, tools, samples[0], str(error))
    notes: list[str] = []
    verdicts, kink_notes = _combined(measured, tools)
    checks = []
    examples: list[Example] = []
    for k, verdict in enumerate(verdicts):
        if verdict.ok:
            checks.append(_row(subject, k, verdict, note=kink_notes[k]))
            continue
        case = _case(tools, measured, k, verdict)
        checks.append(_wrong(subject, k, verdict, stories.told(case), "", kink_notes[k]))
    if subject.free_cotangent and first:
        for story, sentence in laws.broken_laws(tools, samples[0]):
            if all(verdict.ok for verdict in verdicts):
                checks.append(Check(subject.name, subject.name, problem=sentence, story=story))
    wrong = [k for k, verdict in enumerate(verdicts) if not verdict.ok]
    if thorough and first and not many and measured.exact is not None:
        if not wrong:
            for k, check in _elsewhere(subject, tools, rng).items():
                checks[k] = check
                wrong.append(k)
        if wrong:
            examples += shrink.smallest(subject, wrong[0], rng)
    return Findings(checks, notes, examples)


def _samples(
    tools: Instruments, given: list[Any], rng: Any, n_given: int, n_near: int, args: Any
) -> list[Sample]:
    """The given inputs under cotangents of several sizes, then inputs nearby."""
    units = (1.0, 32.0, 1 / 32)
    inputs = [(given, units[i]) for i in range(n_given)]
    inputs += [(points.nearby(args, rng), 1.0) for _ in range(n_near)]
    return [_drawn(tools, values, unit, rng) for values, unit in inputs]


def _drawn(tools: Instruments, inputs: list[Any], unit: float, rng: Any) -> Sample:
    free = tools.subject.free_cotangent
    dys = [
        unit * (rng.standard_normal(spec.shape) if free else np.ones(spec.shape))
        for spec in tools.dys
    ]
    # The numbers that the working precision makes of it: everybody shall see the same.
    rounded = [np.asarray(d.astype(spec.dtype), np.float64) for d, spec in zip(dys, tools.dys, strict=True)]
    return Sample(inputs, rounded, unit)


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
        running = mathematics(hands, tight, size._replace(element=[0.01 * e for e in size.element]), 16 * EPS64)
        running = [v._replace(exact=False) for v in running]
    try:
        exact = mathematics(
            stacked([tools.exact(s) for s in samples], samples), truths, size, tools.constants
        )
    except NotWide:
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
    assert measured.running is not None
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


# ------------------------------------------------------------------------------------------ rows


def _row(subject: Subject, k: int, verdict: Verdict, note: str = "") -> Check:
    return Check(
        subject.name,
        subject.leaf(k),
        verdict.relative(verdict.error),
        verdict.relative(verdict.allowed),
        verdict.worst[1:],
        note=note,
    )


def _wrong(
    subject: Subject, k: int, verdict: Verdict, told: Told | None, point: str, note: str = ""
) -> Check:
    worst = verdict.worst
    got, true = float(verdict.got[worst]), float(verdict.truth[worst])
    numbers = f"at {list(worst[1:])} it is {got:.4g} and should be {true:.4g}"
    if told is None:
        others = int(np.sum(verdict.wrong[worst[0]])) - 1
        more = f", and {others} more elements" if others > 0 else ""
        sentence = f"wrong, in no way that is known here: {numbers}{more}"
    else:
        sentence = f"wrong: {told.sentence}: {numbers}"
    if point:
        sentence = f"{sentence}, with {point}"
    row = _row(subject, k, verdict, note)
    return row._replace(problem=sentence, story=told.kind if told else "", point=point)


def _misfit(subject: Subject, error: Mismatch) -> Check:
    return Check(subject.name, error.path, math.inf, 0.0, problem=error.sentence, story="structure")


# ------------------------------------------------------------------------------------- elsewhere


def _elsewhere(subject: Subject, tools: Instruments, rng: Any) -> dict[int, Check]:
    """Leaves that are right at the given inputs and wrong at others, in exact arithmetic."""
    for point in points.same_shape(subject, rng):
        if found := _at(subject, tools, point, rng):
            return found
    for point in points.other_shapes(subject, rng):
        try:
            args = [
                np.asarray(v, a.dtype) if is_floating(a) else v
                for v, a in zip(point.inputs, subject.args, strict=True)
            ]
            there = Instruments(subject, args)
        except Mismatch as error:
            return {0: _misfit(subject, error)._replace(point=point.name)}
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            sentence = f"backward fails with {point.name}: {line}"
            return {0: Check(subject.name, subject.leaf(0), math.inf, 0.0, (), sentence, "shape", point.name)}
        if found := _at(subject, there, point, rng):
            return found
    return {}


def _at(subject: Subject, tools: Instruments, point: points.Point, rng: Any) -> dict[int, Check]:
    samples = [_drawn(tools, point.inputs, 1.0, rng) for _ in range(2)]
    samples.append(_drawn(tools, points.nearby(point.inputs, rng), 1.0, rng))
    try:
        if not all(np.isfinite(y).all() for s in samples for y in tools.output(s)):
            return {}  # outside the domain of the forward pass
        truths = stacked([tools.truth(s) for s in samples], samples)
        exact = stacked([tools.exact(s) for s in samples], samples)
    except NotWide:
        return {}
    size = sizes(truths, tools, samples)
    verdicts = mathematics(exact, truths, size, tools.constants)
    found = {}
    for k, verdict in enumerate(verdicts):
        if not verdict.ok:
            kink = kinks.near_kinks(verdict, tools, samples, k)
            verdict = verdict._replace(allowed=np.where(kink, np.inf, verdict.allowed))
        if not verdict.ok:
            told = stories.told(Case(tools, samples, k, verdict, truths))
            found[k] = _wrong(subject, k, verdict, told, point.name)
    return found


# ----------------------------------------------------------------------------------- differences

FEW = 24  # elements of a leaf that are checked one by one
DIRECTIONS = 8  # random ones, for a larger leaf


def _by_differences(subject: Subject, tools: Instruments, sample: Sample, why: str) -> Findings:
    """Judge by central differences, in the highest precision that the forward pass runs in."""
    rng = np.random.default_rng(1)
    hands = tools.only_hand(sample)
    eps, values = _highest(tools, sample)
    checks = []
    for k, i in enumerate(subject.differentiable):
        x, grad = np.asarray(sample.inputs[i], np.float64), hands[k]

        def terms(value: np.ndarray, i: int = i) -> np.ndarray:
            ys = values([*sample.inputs[:i], value, *sample.inputs[i + 1 :]])
            return np.concatenate([(y * d).ravel() for y, d in zip(ys, sample.dys, strict=True)])

        few = x.size <= FEW
        directions = (
            [np.eye(x.size)[n].reshape(x.shape) for n in range(x.size)]
            if few
            else [rng.choice([-1.0, 1.0], x.shape) for _ in range(DIRECTIONS)]
        )
        slopes = [slope(terms, x, d, eps) for d in directions]
        claimed = np.array([float(np.sum(np.nan_to_num(grad, nan=np.inf) * d)) for d in directions])
        true, error = np.array([s.value for s in slopes]), np.array([s.error for s in slopes])
        size = float(np.sqrt(np.mean(true**2))) if true.size else 0.0
        allowed = FACTOR * error + UNITS * tools.eps * size
        shape = (1, *x.shape) if few else (1, DIRECTIONS)
        verdict = Verdict(
            claimed.reshape(shape),
            true.reshape(shape),
            np.abs(claimed - true).reshape(shape),
            allowed.reshape(shape),
            size,
            False,
        )
        told = _factor_of(claimed, true) if not verdict.ok else None
        checks.append(
            _row(subject, k, verdict) if verdict.ok else _wrong(subject, k, verdict, told, "")
        )
    return Findings(checks, [f"{subject.name}: judged by differences, for {why}"], [])


def _factor_of(claimed: np.ndarray, true: np.ndarray) -> Told | None:
    norm = float(np.sum(true**2))
    if not np.any(claimed):
        return Told("zero", "zero, and should not be")
    c = float(np.sum(claimed * true) / norm) if norm else 0.0
    if c and np.allclose(claimed, c * true, rtol=1e-2, atol=1e-3 * np.sqrt(norm)):
        return Told("sign", "the sign is turned") if abs(c + 1) < 0.01 else Told("factor", f"{c:.3g} times what it should be")
    return None


def _highest(tools: Instruments, sample: Sample) -> tuple[float, Any]:
    """The forward pass in float64 where it runs in it, else as it is; and its rounding unit."""
    import jax
    import jax.numpy as jnp

    subject = tools.subject
    try:
        with jax.enable_x64(True):
            run = jax.jit(lambda *inputs: subject.plain(*inputs))
            ys = run(*[jnp.asarray(v) for v in sample.inputs])
            if all(y.dtype == np.float64 for y in ys if is_floating(y)):

                def wide(inputs: list[Any]) -> list[np.ndarray]:
                    with jax.enable_x64(True):
                        return [np.asarray(y) for y in run(*inputs) if is_floating(y)]

                return EPS64, wide
    except Exception:  # it does not run in float64
        pass
    here = jax.jit(lambda *inputs: subject.plain(*inputs))

    def narrow(inputs: list[Any]) -> list[np.ndarray]:
        ys = here(*tools.working(inputs))
        return [np.asarray(y, np.float64) for y in ys if is_floating(y)]

    return tools.eps, narrow
