"""Leaves of a large part that are far from autodiff's: are they wrong, and in what way?

In the time of some backward passes. In float64 both gradients run once, and of each leaf a few
numbers come back. Its story is sought in the gradients as they run, which are there: at the given
inputs, and what fits there must fit at others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify import stories
from funprop.verify.inputs import properties
from funprop.verify.judging.judge import FACTOR, UNITS, Verdict
from funprop.verify.judging.rows import wrong
from funprop.verify.report import Check
from funprop.verify.stories.case import Case, Told
from funprop.verify.stories.numbers import NOT_LINEAR
from funprop.verify.subject import Subject
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.instruments import EPS32, Instruments
from funprop.verify.truth.samples import Sample, drawn_sample


class Ran(NamedTuple):
    """What ran in the working precision at a sample: both gradients, and the plain outputs."""

    hand: list[Any]
    auto: list[Any]
    plain: list[Any]


Point = tuple[Sample, Ran]


class FarOff(NamedTuple):
    """A large part of which leaves are far from autodiff's.

    Attributes:
      subject, tools: the part.
      run: `(inputs, cotangents) -> (Ran, ...)`, compiled.
      sample: the given inputs, and `ran` what ran there.
      leaves: those that are far off; `sizes`: of every leaf, by which errors are reported.
      rows: of every leaf as it runs; the others are right so.
    """

    subject: Subject
    tools: Instruments
    run: Any
    sample: Sample
    ran: Ran
    leaves: list[int]
    sizes: list[float]
    rows: list[Check]


def told(found: FarOff, rng: np.random.Generator) -> list[Check] | None:
    """A row for each leaf; `None` where it is not sure of all what they are."""
    if found.tools.may_have_kinks and not _same_at_ties(found):
        return None
    right = _right_in_float64(found)
    if right is None:
        return None
    rows, near = list(found.rows), functools.cache(lambda: _nearby(found, rng))
    for k in found.leaves:
        rows[k] = _told_of(found, k, right[k], near)
    return rows


# ------------------------------------------------------------------------------ are they wrong?


def _right_in_float64(found: FarOff) -> list[bool] | None:
    """Of each leaf whether its mathematics is right; `None` where those that are far off may be
    right as they run, or another is wrong in exact arithmetic."""
    tools, (hand, auto, _) = found.tools, found.ran
    run = tools.kept("held against float64", tools, lambda: jax.jit(functools.partial(_far, tools)))
    with jax.enable_x64(True):
        far = jax.device_get(run(found.sample.inputs, found.sample.dys, hand, auto))
    right = []
    for k, (size, (exact, here, by_auto)) in enumerate(zip(found.sizes, far, strict=True)):
        right.append(bool(exact <= UNITS * EPS32 * size))
        allowed = UNITS * tools.eps * size + FACTOR * by_auto
        unclear = here <= allowed if tools.eps >= EPS32 else right[-1]
        if unclear if k in found.leaves else not right[-1]:
            return None
    return right


def _far(
    tools: Instruments, inputs: list[Any], dys: list[Any], hand: list[Any], auto: list[Any]
) -> list[Any]:
    """How far of each leaf the exact gradient, and those that ran, are from the truth."""
    run, (plain, backward, _) = Evaluate(wide=True), tools.wide_jaxprs
    truths, _ = tools.pulled(run, plain, inputs, dys)
    exact = run(backward, *inputs, *dys)[: len(truths)]
    return [
        [jnp.max(jnp.abs(g - t), initial=0) for g in others]
        for t, *others in zip(truths, exact, hand, auto, strict=True)
    ]


def _same_at_ties(found: FarOff) -> bool:
    """Whether the truth is the same however ties are decided: there are no kinks here."""
    tools = found.tools

    def apart(inputs: list[Any], dys: list[Any]) -> list[Any]:
        pulled = functools.partial(tools.pulled, inputs=inputs, dys=dys)
        ways = [pulled(Evaluate(first=np.bool_(b)), tools.plain_jaxpr)[0] for b in (True, False)]
        return [jnp.max(jnp.abs(a - b), initial=0) for a, b in zip(*ways, strict=True)]

    run = tools.kept("apart at ties", tools, lambda: jax.jit(apart))
    far = jax.device_get(run(found.sample.inputs, tools.working_dys(found.sample)))
    return all(far[k] <= UNITS * tools.eps * found.sizes[k] for k in found.leaves)


# --------------------------------------------------------------------------------- in what way?


def _told_of(found: FarOff, k: int, right: bool, near: Callable[[], Point]) -> Check:
    at = functools.partial(_case, found, k, right)
    given = found.sample, found.ran
    here, there = at(given), functools.cache(lambda: at(near()))
    told = stories.told_as_it_runs(here, there, lambda: at(given, near()))
    return wrong(found.subject, k, here.verdict, told or _not_linear(found, k))


def _case(found: FarOff, k: int, right: bool, *at: Point) -> Case:
    """The leaf as it ran at some samples, autodiff's gradient as the truth."""
    for sample, ran in at:  # what stories ask of a sample
        found.tools.kept("float64", sample, lambda ran=ran: (ran.auto, ran.plain, ran.hand))
    shape = np.shape(found.ran.hand[k])
    same = [j for j, h in enumerate(found.ran.hand) if np.shape(h) == shape]
    truths = [
        _stacked([ran.auto[j] for _, ran in at]) if j in same else np.zeros(0)
        for j in range(len(found.sizes))
    ]
    got, truth, size = _stacked([ran.hand[k] for _, ran in at]), truths[k], found.sizes[k]
    error = got - truth
    np.abs(error, out=error)
    error[np.isnan(error)] = np.inf
    allowed = np.broadcast_to(UNITS * found.tools.eps * size, error.shape)
    verdict = Verdict(got, truth, error, allowed, size, exact=not right)
    return Case(found.tools, [sample for sample, _ in at], k, verdict, truths, right)


def _stacked(leaves: list[Any]) -> np.ndarray:
    """Leaves with an axis of samples in front; one alone is not copied."""
    arrays = [np.asarray(leaf) for leaf in leaves]
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _nearby(found: FarOff, rng: np.random.Generator) -> Point:
    """Every number up to 30% smaller, by a factor of its place along the last axis.

    The same in arrays of one size, and none turns its sign: so what bounds what still does.
    """
    tools, args = found.tools, found.subject.args
    moving = [i for i in properties.free(args) if i in found.subject.differentiable]
    inputs: list[Any] = list(args)
    scales = {n: rng.uniform(0.7, 1, n) for n in sorted({args[i].shape[-1:] for i in moving})}
    for i in moving:
        inputs[i] = inputs[i] * scales[args[i].shape[-1:]].astype(inputs[i].dtype)
    for values in (inputs, list(args)):  # outside of the domain of the forward pass: as given
        sample = drawn_sample(tools, values, 1.0, rng)
        ran = _ran(found, values, tools.working_dys(sample))
        if all(np.isfinite(y).all() for y in ran.plain):
            break
    return sample, ran


def _ran(found: FarOff, inputs: list[Any], dys: list[Any]) -> Ran:
    ran, *_ = found.run(inputs, dys)
    return Ran(*(list(map(np.asarray, part)) for part in ran))


MANY_TIMES = -1024.0  # a power of two: exact in any precision


def _not_linear(found: FarOff, k: int) -> Told | None:
    """The story of a gradient that is not linear in the cotangent."""
    tools, sample = found.tools, found.sample
    if not found.subject.free_cotangent:
        return None
    dys = [(MANY_TIMES * d).astype(d.dtype) for d in tools.working_dys(sample)]
    ran = tools.kept("so many times", sample, lambda: _ran(found, sample.inputs, dys))
    once, off = np.asarray(found.ran.hand[k]), ran.hand[k] / MANY_TIMES
    off -= once
    slack = 1e-3 * max(np.max(once, initial=0), -np.min(once, initial=0))
    return None if np.max(np.abs(off), initial=0) <= slack else NOT_LINEAR
