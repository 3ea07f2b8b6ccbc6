"""A large part, judged where its numbers are: of every leaf only a few numbers come back.

One program runs in the working precision, one in float64. Where they find all right that is all
there is to say, in the time of some backward passes; else the part is examined as any other is,
element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.inputs import points
from funprop.verify.judging import corners, far_off, laws
from funprop.verify.judging.judge import FACTOR, UNITS, Measurements, Verdict, judged
from funprop.verify.report import Check
from funprop.verify.subject import Subject, is_floating
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.instruments import EPS32, EPS64, Instruments
from funprop.verify.truth.samples import drawn_sample


def judged_soon(
    subject: Subject, tools: Instruments, rng: np.random.Generator
) -> list[Check] | None:
    """A row for each leaf; `None` where it cannot be told so what it is.

    Args:
      subject: the part.
      tools: made for it, or for one that differs in the values of its inputs only.
      rng: draws the cotangents, and inputs nearby.
    """
    try:
        return corners.all_right(subject, tools, rng)
    except corners.UnsureError as error:
        if error.far_off:
            return _told(error.far_off, rng)
    except Exception:  # whatever a backward pass raises at small inputs: it is looked at as it is
        pass
    near = points.nearby(subject.args, rng, subject.differentiable)
    samples = [drawn_sample(tools, inputs, 1.0, rng) for inputs in (list(subject.args), near)]
    dys = [s.dys for s in samples]
    try:
        working, in_float64 = tools.kept("screening", tools, lambda: _programs(tools))
        hand, auto, far, ys = working(samples[0].inputs, tools.working_dys(samples[0]))
        with jax.enable_x64(True):
            found = in_float64([s.inputs for s in samples], dys, hand, auto, far, ys)
    except Exception:  # whatever a backward pass raises: it is told element by element
        return None
    right, rows = jax.device_get(found)
    if not right:
        return None
    return [
        Check(
            subject.name,
            subject.leaf(k),
            float(error) / (float(size) or 1.0),
            float(allowed) / (float(size) or 1.0),
            tuple(int(i) for i in np.unravel_index(int(place), hand[k].shape)),
        )
        for k, (error, allowed, size, place) in enumerate(rows)
    ]


def _told(found: far_off.FarOff, rng: np.random.Generator) -> list[Check] | None:
    try:
        return far_off.told(found, rng)
    except Exception:  # whatever a backward pass raises, or what cannot run in float64
        return None


def _programs(tools: Instruments) -> tuple[Any, Any]:
    """The two programs, compiled once for inputs of one shape."""
    subject = tools.subject

    def working(inputs: list[Any], dys: list[Any]) -> tuple[Any, ...]:
        """Both gradients, and how far the hand-written one moves under `laws.together`, or is from
        zero under zero cotangents."""
        auto, plain = tools.pulled(Evaluate(), tools.plain_jaxpr, inputs, dys)
        hand, ys = tools.ran(inputs, dys)
        zeros, _ = tools.ran(inputs, [0 * d for d in dys])
        far = [jnp.where(jnp.any(zero != 0), jnp.inf, 0.0) for zero in zeros]
        grads = laws.together(subject.backward, inputs, dys)
        for k, (g, h, a) in enumerate(zip(grads, hand, auto, strict=True)):
            off = jnp.where(jnp.isfinite(a), jnp.abs(g - h).astype(jnp.float32), 0)
            far[k] = jnp.maximum(far[k], jnp.max(off, initial=0))
        return hand, auto, far, (ys or plain, plain)

    def in_float64(
        inputs: list[Any], dys: list[Any], hand: Any, auto: Any, far: Any, ys: Any
    ) -> tuple[Any, Any]:
        run, (plain, backward, constants) = Evaluate(wide=True), tools.wide_jaxprs
        n = len(subject.differentiable)
        inputs = [[_wide(v) for v in values] for values in inputs]
        pulled = [tools.pulled(run, plain, i, d) for i, d in zip(inputs, dys, strict=True)]
        if tools.eps <= EPS64:  # as far as the truth moves when the inputs are rounded to float32
            auto = tools.pulled(run, plain, _jittered(inputs[0]), dys[0])[0]
        found = Measurements(
            units=[1.0 for _ in inputs],
            inputs=[[values[i] for i in subject.differentiable] for values in inputs],
            dys=dys,
            outputs=[outputs for _, outputs in pulled],
            truths=[truth for truth, _ in pulled],
            exact=[run(backward, *i, *d)[:n] for i, d in zip(inputs, dys, strict=True)],
            hands=[hand],
            autos=[auto],
        )
        _, exact, running, _ = judged(found, tools.eps, constants, jnp, tools.units)
        right = ~_any([v.wrong for v in [*(exact or ()), *running]])
        right &= ~_any([~jnp.isfinite(p) for p in (*ys[1], *pulled[0][0])])
        for f, v in zip(far, running, strict=True):
            right &= _wide(f) <= 2 * jnp.min(v.allowed, initial=jnp.inf)  # two roundings, one each
        for y, p, true in zip(*(map(_wide, part) for part in ys), pulled[0][1], strict=True):
            slack = UNITS * tools.eps * _largest(p) + FACTOR * _largest(p - true)
            right &= _largest(y - p) <= slack
        return right, [_row(v) for v in running]

    return jax.jit(working), jax.jit(in_float64)


def _row(v: Verdict) -> tuple[Any, ...]:
    """Of the element that is nearest to what is allowed, and the size of the leaf."""
    error, allowed = v.error.ravel(), v.allowed.ravel()
    if not error.size:
        return jnp.zeros(()), jnp.zeros(()), v.size, jnp.zeros((), int)
    excess = jnp.where(allowed > 0, error / allowed, 0)
    # Not argmax, which XLA runs on one core of a CPU.
    place = jnp.min(jnp.where(excess == jnp.max(excess), jnp.arange(excess.size), excess.size - 1))
    return error[place], allowed[place], v.size, place


def _any(parts: Sequence[Any]) -> Any:
    return jnp.any(jnp.stack([jnp.any(part) for part in parts]))


def _largest(values: Any) -> Any:
    return jnp.max(jnp.abs(values), initial=0)


def _wide(value: Any) -> Any:
    return jnp.asarray(value, jnp.float64) if is_floating(value) else value


def _jittered(inputs: list[Any]) -> list[Any]:
    keys = jax.random.split(jax.random.key(0), len(inputs))
    return [
        v * (1 + jax.random.uniform(k, v.shape, v.dtype, -EPS32, EPS32)) if is_floating(v) else v
        for v, k in zip(inputs, keys, strict=True)
    ]
