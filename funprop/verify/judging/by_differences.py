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
from funprop.verify.judging.rows import Findings, row, wrong
from funprop.verify.report import Check
from funprop.verify.stories.case import Case
from funprop.verify.subject import Subject, is_floating
from funprop.verify.truth.differences import slope
from funprop.verify.truth.instruments import EPS64, Instruments
from funprop.verify.truth.samples import Sample

FEW = 64  # elements of a leaf that are checked one by one
DIRECTIONS = 8  # random ones, for a larger leaf


def by_differences(
    subject: Subject, tools: Instruments, samples: list[Sample], why: str, rng: np.random.Generator
) -> Findings:
    """Judge by central differences, in the highest precision that the forward pass runs in."""
    tools.only_values = True
    hands = stacked([tools.hand(s) for s in samples], [s.unit for s in samples])
    eps, values = _highest(tools, samples[0])
    checks = []
    for k, i in enumerate(subject.differentiable):
        x = np.asarray(samples[0].inputs[i], np.float64)
        if x.size <= FEW:
            directions = list(np.eye(x.size).reshape(x.size, *x.shape))
        else:
            directions = [rng.choice([-1.0, 1.0], x.shape) for _ in range(DIRECTIONS)]

        def terms(value: np.ndarray, sample: Sample, i: int = i) -> np.ndarray:
            ys = values([*sample.inputs[:i], value, *sample.inputs[i + 1 :]])
            return np.concatenate([(y * d).ravel() for y, d in zip(ys, sample.dys, strict=True)])

        slopes = [
            [slope(functools.partial(terms, sample=s), x, d, eps) for d in directions]
            for s in samples
        ]
        units = np.array([s.unit for s in samples])[:, None]
        true = np.array([[s.value for s in one] for one in slopes]) / units
        error = np.array([[s.error for s in one] for one in slopes]) / units
        got = np.array([[np.sum(g * d) for d in directions] for g in hands[k]])
        known = true[np.isfinite(true)]
        size = float(np.sqrt(np.mean(known**2))) if known.size else 0.0
        # What autodiff would lose here is not known: it may be the most that is often seen.
        allowed = FACTOR * (error + UNITS * tools.eps * size)
        verdict = compared(got, true, allowed, size, False)
        if x.size <= FEW:  # the directions are the elements
            shape = (len(samples), *x.shape)
            got, true, far, allowed = (part.reshape(shape) for part in verdict[:4])
            verdict = Verdict(got, true, far, allowed, size, False)
        if verdict.ok:
            checks.append(row(subject, k, verdict))
        else:
            told = stories.told(Case(tools, samples, k, verdict, [verdict.truth]))
            checks.append(wrong(subject, k, verdict, told))
    if not any(check.problem for check in checks):
        checks += _laws(subject, tools, samples[0])
    reason = why.split(". ")[0].rstrip(".")
    return Findings(checks, [f"{subject.name}: judged by differences of values: {reason}"], [])


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
            return [np.asarray(y, np.float64) for y in run(*inputs) if is_floating(y)]
        except Exception:  # whatever that code raises, as JAX hands it on
            return [np.full(spec.shape, np.nan) for spec in tools.dys]

    try:
        with jax.enable_x64(True):
            run = jax.jit(lambda *inputs: subject.plain(*inputs))
            ys = run(*[jnp.asarray(v) for v in sample.inputs])
            if all(y.dtype == np.float64 for y in ys if is_floating(y)):

                def wide(inputs: list[Any]) -> list[np.ndarray]:
                    with jax.enable_x64(True):
                        return values(run, inputs)

                return EPS64, wide
    except Exception:  # it does not run in float64
        pass
    here = jax.jit(lambda *inputs: subject.plain(*inputs))
    return tools.eps, lambda inputs: values(here, tools.working(inputs))
