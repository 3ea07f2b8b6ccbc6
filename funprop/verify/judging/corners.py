"""A large part whose shapes can be made small: in the time of a few backward passes.

As it runs it is judged where it is, at the given inputs, against autodiff in the same precision:
what is within the rounding units of each other is within what is allowed of the truth. Its
mathematics, in float64 at several inputs, and the laws are judged at a corner of the inputs.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from funprop.verify.inputs import points, properties
from funprop.verify.inputs.smaller import smaller
from funprop.verify.judging import laws
from funprop.verify.judging.far_off import FarOff, Ran
from funprop.verify.judging.judge import UNITS
from funprop.verify.judging.measured import measured
from funprop.verify.report import Check
from funprop.verify.subject import Subject
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.instruments import EPS32, EPS64, Instruments
from funprop.verify.truth.samples import Sample, drawn_sample

FAR = 64.0  # so many times what is allowed, and no closer look will find it right


class UnsureError(Exception):
    """It cannot be told so; `far_off` where some leaf is far from right by any measure."""

    def __init__(self, far_off: FarOff | None = None):
        super().__init__()
        self.far_off = far_off


def all_right(subject: Subject, tools: Instruments, rng: np.random.Generator) -> list[Check]:
    """A row for each leaf.

    Args:
      subject: the part.
      tools: made for it, or for one that differs in the values of its inputs only.
      rng: draws cotangents and inputs.

    Raises:
      UnsureError: something is wrong, or it cannot be told so.
    """
    if tools.eps > EPS32:  # mistakes would hide in what such a precision rounds away
        raise UnsureError
    sample = drawn_sample(tools, list(subject.args), 1.0, rng)
    run = tools.kept("against autodiff", tools, lambda: jax.jit(functools.partial(_run, tools)))
    ran, *numbers = run(sample.inputs, tools.working_dys(sample))  # and while that runs:
    right = tools.kept("right in the corner", tools, lambda: _right(subject, rng))
    found, finite = jax.device_get(numbers)
    sizes = [float(leaf.size + leaf.ratio) for leaf in found]
    if not (finite and np.isfinite(sizes).all()):
        raise UnsureError
    rows = [_row(subject, tools, k, leaf) for k, leaf in enumerate(found)]
    beyond = [k for k, row in enumerate(rows) if not row.error <= row.allowed]  # NaN is not
    far = [k for k in beyond if not rows[k].error <= FAR * rows[k].allowed]
    if far:
        raise UnsureError(FarOff(subject, tools, run, sample, ran, beyond, sizes, rows, right))
    if beyond or len(right) < len(rows):
        raise UnsureError
    return rows


# --------------------------------------------------------------------------- where it is large


def _row(subject: Subject, tools: Instruments, k: int, leaf: Distance) -> Check:
    units = UNITS * (tools.eps if tools.eps > EPS64 else 16 * EPS64)
    size = float(leaf.size + leaf.ratio)
    far, allowed = float(leaf.far) / (size or 1.0), units * size / (size or 1.0)
    place = np.unravel_index(int(leaf.place), tools.shapes[subject.differentiable[k]])
    return Check(subject.name, subject.leaf(k), far, allowed, tuple(int(i) for i in place))


class Distance(NamedTuple):
    """Of one leaf's two gradients: the largest difference and its place in the flat array, the
    largest element, and the size of output over input."""

    far: Any
    place: Any
    size: Any
    ratio: Any


def _run(tools: Instruments, inputs: list[Any], dys: list[Any]) -> tuple[Ran, list[Distance], Any]:
    """Both gradients, how far they are from each other, and whether the outputs are finite."""
    auto, plain = tools.pulled(Evaluate(), tools.plain_jaxpr, inputs, dys)
    hand, _ = tools.ran(inputs, dys)
    outputs = sum(_sum_of_squares(y * d) for y, d in zip(plain, dys, strict=True))
    found = []
    for h, a, i in zip(hand, auto, tools.subject.differentiable, strict=True):
        norm = _sum_of_squares(inputs[i])
        ratio = jnp.where(norm > 1e-20, jnp.sqrt(outputs / norm), 0)  # or squares underflow
        far, place, size = _distance(h, a)
        found.append(Distance(far, place, size, ratio))
    finite = jnp.stack([jnp.isfinite(_sum_of_squares(y)) for y in plain])
    return Ran(hand, auto, plain), found, jnp.all(finite)


@jax.jit
def _sum_of_squares(v: Any) -> Any:
    return jnp.sum(lax.square(v))


@jax.jit
def _distance(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """The largest difference, its place, the largest element of `b`; NaN where one is.

    XLA runs a plain maximum on all cores of a CPU, and neither argmax nor one of more terms.
    """
    columns = a.shape[-1] if a.ndim > 1 else a.size
    a, b = a.reshape(-1, columns), b.reshape(-1, columns)
    off = jnp.max(lax.abs(a - b), axis=0)
    column = jnp.argmax(off)
    row = jnp.argmax(lax.abs(jnp.take(a, column, axis=1) - jnp.take(b, column, axis=1)))
    return jnp.max(off), row * columns + column, jnp.max(jnp.max(lax.abs(b), axis=0))


# ------------------------------------------------------------------------- where it is made small


def _right(subject: Subject, rng: np.random.Generator) -> set[int]:
    """The leaves whose mathematics is right at small inputs of several kinds; all only where laws
    hold too."""
    try:
        small = _small(subject, rng)
        return set() if small is None else _right_at(small, rng)
    except Exception:  # whatever a backward pass raises at small inputs: it is looked at as it is
        return set()


def _small(subject: Subject, rng: np.random.Generator) -> Instruments | None:
    args = smaller(subject, rng)
    small = None if args is None else Instruments(subject, args).traced()
    return None if small is None or small.many else small


def _right_at(small: Instruments, rng: np.random.Generator) -> set[int]:
    args = [np.asarray(v) for v in small.args]
    free = properties.free(args)
    given = [properties.drawn(a) for a in args]
    normal = [
        properties.within(a, rng.standard_normal(a.shape)) if i in free else v
        for i, (a, v) in enumerate(zip(args, given, strict=True))
    ]
    kinds = (given, points.nearby(args, rng), properties.in_order(args, normal))
    samples = [drawn_sample(small, values, 1.0, rng) for values in kinds]
    samples = [s for s in samples if _is_finite(small, s)]
    if not samples or samples[0].inputs is not given:
        return set()
    found = measured(small, samples, rng)
    right = {
        k
        for k, both in enumerate(zip(found.exact or (), found.running, strict=False))
        if all(v.ok and np.isfinite(v.truth).all() for v in both)
    }
    allowed = [v.allowed[0] for v in found.running]
    if len(right) == len(allowed) and laws.broken_laws(small, samples[0], allowed):
        return set()
    return right


def _is_finite(tools: Instruments, sample: Sample) -> bool:
    return all(np.isfinite(y).all() for y in tools.output(sample))
