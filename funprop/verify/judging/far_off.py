"""Leaves of a large part that are far from autodiff's: are they wrong, and in what way?

In the time of some backward passes. In float64 both gradients run once, and of each leaf a few
numbers come back. Its story is sought in the gradients as they run, which are there: at the given
inputs, and what fits there must fit at others.
"""

from __future__ import annotations

import dataclasses
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
from funprop.verify.stories.numbers import NOT_LINEAR, precision
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
      right: the leaves whose mathematics is right in the corner; none where there is no corner.
    """

    subject: Subject
    tools: Instruments
    run: Any
    sample: Sample
    ran: Ran
    leaves: list[int]
    sizes: list[float]
    rows: list[Check]
    right: set[int]


def told(found: FarOff, rng: np.random.Generator) -> list[Check] | None:
    """A row for each leaf; `None` where it is not sure of all what they are."""
    if found.tools.may_have_kinks and not _same_at_ties(found):
        return None
    if not (_are_wrong(found) and _others_are_right(found)):
        return None
    rows, near = list(found.rows), functools.cache(lambda: _nearby(found, rng))
    for k in found.leaves:
        rows[k] = _told_of(found, k, near)
    return rows


# ------------------------------------------------------------------------------ are they wrong?


def _are_wrong(found: FarOff) -> bool:
    """Whether the leaves that are far off from autodiff's are further from the truth than it is."""
    tools, (hand, auto, _) = found.tools, found.ran
    far = _far(found, "as they ran", hand, auto)
    for k, (here, by_auto) in enumerate(zip(*far, strict=True)):
        allowed = UNITS * max(tools.eps, EPS32) * found.sizes[k]
        if k in found.leaves and here <= allowed + FACTOR * by_auto:
            return False
    return True


def _others_are_right(found: FarOff) -> bool:
    """Whether the mathematics of all others is right: in the corner, or else where it is large."""
    others = set(range(len(found.sizes))) - set(found.leaves)
    return others <= found.right or all(_is_right(found, k) for k in others)


def _is_right(found: FarOff, k: int) -> bool:
    """Whether the mathematics of a leaf is right."""
    (far,) = found.tools.kept("exact", found.sample, lambda: _far(found, "exact"))
    return bool(far[k] <= UNITS * EPS32 * found.sizes[k])


def _far(found: FarOff, what: str, *gradients: list[Any]) -> list[list[float]]:
    """How far of each leaf some gradients are from the truth in float64; if there are none, the
    exact hand-written one."""
    tools, (inputs, dys, _) = found.tools, found.sample

    def far(inputs: list[Any], dys: list[Any], *gradients: list[Any]) -> list[list[Any]]:
        run, (plain, backward, _) = Evaluate(wide=True), tools.wide_jaxprs
        truths, _ = tools.pulled(run, plain, inputs, dys)
        exact = () if gradients else (run(backward, *inputs, *dys)[: len(truths)],)
        return [
            [
                jnp.max(jnp.abs(g.astype(t.dtype) - t), initial=0)
                for g, t in zip(leaves, truths, strict=True)
            ]
            for leaves in gradients or exact
        ]

    with jax.enable_x64(True):
        run = tools.kept(f"how far {what}", tools, lambda: jax.jit(far))
        return jax.device_get(run(inputs, dys, *gradients))


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


def _told_of(found: FarOff, k: int, near: Callable[[], Point]) -> Check:
    at = functools.partial(_case, found, k)
    given = found.sample, found.ran
    here, there = at(given), functools.cache(lambda: at(near()))
    told = stories.told_as_it_runs(here, there, lambda: at(given, near()))
    told = told or _not_linear(found, k) or _precision(found, here)
    return wrong(found.subject, k, here.verdict, told)


def _case(found: FarOff, k: int, *at: Point) -> Case:
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
    verdict = Verdict(got, truth, error, allowed, size, exact=False)
    return Case(found.tools, [sample for sample, _ in at], k, verdict, truths)


def _stacked(leaves: list[Any]) -> np.ndarray:
    """Leaves with an axis of samples in front; one alone is not copied."""
    arrays = [np.asarray(leaf) for leaf in leaves]
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _nearby(found: FarOff, rng: np.random.Generator) -> Point:
    """Every number up to 30% smaller, by a factor of its place along the last axis.

    The same in arrays of one size, and none turns its sign: so what bounds what still does. To
    draw each number anew, as `points.nearby` does, takes as long as some backward passes.
    """
    tools, args = found.tools, found.subject.args
    moving = [i for i in properties.free(args) if i in found.subject.differentiable]
    inputs: list[Any] = list(args)
    scales = {n: rng.uniform(0.7, 1, n) for n in sorted({args[i].shape[-1:] for i in moving})}
    for i in moving:
        scale = np.asarray(scales[args[i].shape[-1:]], args[i].dtype)
        inputs[i] = args[i] * scale.reshape([1] * (args[i].ndim - scale.ndim) + [*scale.shape])
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


def _precision(found: FarOff, case: Case) -> Told | None:
    """The story of a gradient that is right in exact arithmetic."""
    return precision(dataclasses.replace(case, mathematics=_is_right(found, case.leaf)))
