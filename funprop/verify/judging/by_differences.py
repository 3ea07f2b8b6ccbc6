"""A gradient held against slopes of the forward pass, where autodiff has nothing to say."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify import stories
from funprop.verify.judging import laws
from funprop.verify.judging.judge import FACTOR, UNITS, Verdict, compared, stacked
from funprop.verify.judging.on_device import on_gpu, rounded
from funprop.verify.judging.rows import Findings, row, wrong
from funprop.verify.judging.stopped_early import is_vague, rested
from funprop.verify.report import Check
from funprop.verify.stories import resting
from funprop.verify.stories.case import Case
from funprop.verify.subject import Subject
from funprop.verify.truth import internals, near
from funprop.verify.truth.differences import Limit, Slope, limit, slope, steps
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.instruments import EPS32, EPS64, Instruments
from funprop.verify.truth.samples import Sample

FEW = 64  # elements of a leaf that are checked one by one
FEW_WRONG = 256  # of one that is wrong
DIRECTIONS = 8  # random ones, for a larger leaf


def by_differences(
    subject: Subject, tools: Instruments, samples: list[Sample], why: str, rng: np.random.Generator
) -> Findings:
    """Judge by central differences, in the highest precision that the forward pass runs in."""
    reason = f"{subject.name}: judged by differences of values: {_reason(why)}"
    if not near.by_values(tools.plain_jaxpr):
        why = f"{subject.name} was not judged: stop_gradient in a loop, and {why}"
        return Findings([], [why], [])
    tools.only_values = True
    hands = stacked([tools.hand(s) for s in samples], [s.unit for s in samples])
    eps, values = _highest(tools, samples[0])
    narrow = tools.eps > EPS32
    useful = eps == EPS64 and (narrow or on_gpu())
    in_float64 = functools.cache(lambda: _in_float64(tools, samples) if useful else None)
    at_rest = functools.cache(lambda: rested(tools, samples))
    checks = []
    for k, i in enumerate(subject.differentiable):
        x = np.asarray(samples[0].inputs[i], np.float64)

        def judged(
            directions: list[np.ndarray],
            hand: np.ndarray = hands[k],
            working: float = tools.eps,
            of: Any = values,
            eps: float = eps,
            i: int = i,
        ) -> tuple[Verdict, Any]:
            def outputs(value: np.ndarray) -> list[np.ndarray]:
                inputs = samples[0].inputs
                return of([*inputs[:i], value, *inputs[i + 1 :]])

            got = np.array([[np.sum(g * d) for d in directions] for g in hand])
            x = np.asarray(samples[0].inputs[i], np.float64)
            return _judged(outputs, x, directions, samples, got, eps, working)

        elements = list(np.eye(x.size).reshape(x.size, *x.shape)) if x.size <= FEW_WRONG else []
        one_by_one, remark = x.size <= FEW, ""
        some = [rng.choice([-1.0, 1.0], x.shape) for _ in range(DIRECTIONS)]
        verdict, note = judged(elements if one_by_one else some)
        if not one_by_one and elements and not verdict.ok:
            one_by_one = True
            verdict, note = judged(elements)
        along = elements if one_by_one else some
        wide = in_float64() if narrow or not verdict.ok else None
        if wide and verdict.ok:  # the mathematics, to twice what one rounding to 16 bits costs
            exact = judged(along, wide[k], tools.eps / UNITS)
            verdict, note = (verdict, note) if exact[0].ok else exact
        elif wide and on_gpu() and judged(along, wide[k], eps)[0].ok:
            verdict, remark = rounded(verdict, tools.eps)
        shape = x.shape if one_by_one else (len(some),)  # the directions are the elements, or not
        verdict = _shaped(verdict, shape)
        if one_by_one and note is not None:
            note = tuple(int(p) for p in np.unravel_index(note, x.shape))
        said = remark if note is None else _unjudged(note, one_by_one)
        if not verdict.ok and one_by_one:
            case = Case(tools, samples, k, verdict, [verdict.truth])
            verdict, note = resting.settled(case)
            said = note or said
        rest = at_rest() if not verdict.ok or is_vague(verdict) else None
        if rest and rest.may_judge(verdict):
            verdict, said = rest.judged(
                k, hands[k], functools.partial(judged, along, of=rest.values)
            )
            verdict = _shaped(verdict, shape)
        if verdict.ok:
            check = row(subject, k, verdict, said)
        else:
            told = stories.told(Case(tools, samples, k, verdict, [verdict.truth]))
            check = wrong(subject, k, verdict, told, note=said)
        if not one_by_one:  # what is worst is a direction, and no element
            problem = check.problem.replace(f"at {list(check.worst)} it", "along a direction it")
            check = check._replace(worst=(), problem=problem.replace("elements", "directions"))
        checks.append(check)
    if not any(check.problem for check in checks):
        checks += _laws(subject, tools, samples[0])
    return Findings(checks, [reason], [])


def _shaped(verdict: Verdict, shape: tuple[int, ...]) -> Verdict:
    """The verdict with what it has of each direction in this shape."""
    got, true, far, allowed = (p.reshape(len(p), *shape) for p in verdict[:4])
    return Verdict(got, true, far, allowed, verdict.size, verdict.exact)


def _in_float64(tools: Instruments, samples: list[Sample]) -> list[np.ndarray] | None:
    """The hand-written gradients with every input in float64, if that can be had."""
    subject = tools.subject
    try:
        with jax.enable_x64(True):
            found = [
                subject.pulled([jnp.asarray(v) for v in s.inputs], [jnp.asarray(d) for d in s.dys])[
                    0
                ]
                for s in samples
            ]
    except Exception:  # code that was not made for float64 may raise whatever it likes
        return None
    return stacked(found, [s.unit for s in samples])


def _reason(why: str) -> str:
    """Why there is no derivative, without the words of JAX's insides."""
    for words, reason in REASONS.items():
        if words in why:
            return reason
    return why.split(". ")[0].rstrip(".")


REASONS = {
    "allback": "it calls Python code",
    "pallas_call": "it calls a kernel",
    "ffi_call": "it calls code that is not JAX's",
    "while_loop": "it holds a loop that runs until something holds",
    "bits of a number": "it takes the bits of numbers apart",
}


def _judged(
    outputs: Any,
    x: np.ndarray,
    directions: list[np.ndarray],
    samples: list[Sample],
    got: np.ndarray,
    eps: float,
    working: float,
) -> tuple[Verdict, Any]:
    """The verdict along the directions, and the first of them along which there is no slope."""

    def terms(value: np.ndarray, sample: Sample, known: dict[bytes, Any]) -> np.ndarray:
        key = value.tobytes()
        if key not in known:
            known[key] = outputs(value)
        ys = known[key]
        return np.concatenate([(y * d).ravel() for y, d in zip(ys, sample.dys, strict=True)])

    def along(direction: np.ndarray) -> list[Slope]:
        known: dict[bytes, Any] = {}  # the samples share their inputs
        of = [functools.partial(terms, sample=s, known=known) for s in samples]
        return [slope(one, x, direction, eps) for one in of]

    units = np.array([s.unit for s in samples])[:, None]
    slopes = list(zip(*map(along, directions), strict=True))
    true = np.array([[s.value for s in one] for one in slopes]) / units
    error = np.array([[s.error for s in one] for one in slopes]) / units
    missing = None
    kinks = np.array([[s.kink for s in one] for one in slopes], bool)
    for n in np.flatnonzero((kinks | ~np.isfinite(error)).any(axis=0)):
        sides = _sides(outputs, x, directions[n], eps)
        for m, sample in enumerate(samples):
            weights = np.concatenate([d.ravel() for d in sample.dys]) / sample.unit
            low, high, off = (float(v[0]) for v in sides.hull(weights))
            if np.isfinite(low) and np.isfinite(high):
                one = got[m, n]
                true[m, n] = np.clip(one, low, high) if np.isfinite(one) else (low + high) / 2
                error[m, n] = off
            elif not np.isfinite(error[m, n]):
                true[m, n] = np.nan
                missing = n if missing is None else missing
    known = true[np.isfinite(true)]
    size = float(np.sqrt(np.mean(known**2))) if known.size else 0.0
    # What autodiff would lose here is not known: it may be the most that is often seen.
    allowed = FACTOR * (error + UNITS * working * size)
    return compared(got, true, allowed, size, False), missing


def _sides(outputs: Any, x: np.ndarray, direction: np.ndarray, eps: float) -> near.Sides:
    """The slopes of all terms on either side, along one direction."""
    moved = np.abs(x[(direction != 0) & np.isfinite(x)])
    top = np.max(np.abs(x[np.isfinite(x)]), initial=0)
    size = float(np.max(moved, initial=0) or top or 1.0)
    if eps > EPS64:  # rounding leaves less room: fewer, longer steps
        size *= 32

    def flat(value: np.ndarray) -> np.ndarray:
        return np.concatenate([y.ravel() for y in outputs(value)])

    middle = flat(x)
    limits = []
    for h in (steps(size), -steps(size)):
        found = limit(middle, np.stack([flat(x + t * direction) for t in h]), h, eps)
        limits.append(Limit(found.value[None], found.error[None]))
    return near.Sides(*limits)


def _unjudged(place: Any, elements: bool) -> str:
    where = f" at {list(place)}" if elements else " along a direction"
    return f"not judged{where}: no slope is known there"


def _laws(subject: Subject, tools: Instruments, sample: Sample) -> list[Check]:
    """What the backward pass must be beside right, within what is rounded by kernels that do the
    same in another order."""
    size = [np.max(np.abs(g), initial=0) for g in tools.hand(sample)]
    allowed = [np.asarray(FACTOR * UNITS * tools.eps * s) for s in size]
    return [
        Check(subject.name, subject.name, problem=sentence, story=story)
        for story, sentence in laws.broken_laws(tools, sample, allowed)
    ]


def _highest(tools: Instruments, sample: Sample) -> tuple[float, Any]:
    """The forward pass in float64 where it runs in it, else as it is; and its rounding unit.

    NaN where it raises: a step may leave the domain of Python code that it calls.
    """
    subject = tools.subject

    def values(run: Any, inputs: list[Any]) -> list[np.ndarray]:
        try:
            with internals.quiet_callbacks():
                return [np.asarray(y, np.float64) for y in run(inputs)]
        except Exception:  # whatever that code raises, as JAX hands it on
            return [np.full(spec.shape, np.nan) for spec in tools.dys]

    try:
        with jax.enable_x64(True):
            inputs = [jnp.asarray(v) for v in sample.inputs]
            run = _holding(jax.make_jaxpr(lambda *inputs: subject.plain(*inputs))(*inputs), inputs)
            if all(y.dtype == np.float64 for y in run(inputs)):

                def wide(inputs: list[Any]) -> list[np.ndarray]:
                    with jax.enable_x64(True):
                        return values(run, inputs)

                return EPS64, wide
    except Exception:  # it does not run in float64
        pass
    here = _holding(tools.plain_jaxpr, tools.working(sample.inputs))
    return tools.eps, lambda inputs: values(here, tools.working(inputs))


def _holding(jaxpr: Any, inputs: list[Any]) -> Any:
    """`inputs -> float outputs` of a trace, what `stop_gradient` gives as it is at `inputs`."""
    held = near.Held(jaxpr, Evaluate())
    stops = jax.jit(held.stops)(inputs) if held.any else []
    return jax.jit(lambda moved: held(moved, stops))
