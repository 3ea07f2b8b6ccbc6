"""What a backward pass must be beside right: deterministic, zero for zero, one and the same under
jit, vmap and scan."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.instruments import Instruments, Sample
from funprop.verify.judge import UNITS


def broken_laws(tools: Instruments, sample: Sample) -> list[tuple[str, str]]:
    """The laws that the hand-written backward pass breaks: pairs of a story and a sentence."""
    subject = tools.subject
    inputs, dys = tools.working(sample.inputs), tools.working_dys(sample)
    broken, there = [], {}
    try:  # all at once: compiling is what takes time
        ways = TRANSFORMED
        run = jax.jit(lambda i, d: {n: way(subject.backward, i, d) for n, way in ways.items()})
        there = run(inputs, dys)
    except Exception:  # whatever a rule raises that was not made for one of them: which?
        for name, way in TRANSFORMED.items():
            try:
                there[name] = jax.jit(functools.partial(way, subject.backward))(inputs, dys)
            except Exception as error:
                if _forward_can(way, subject, inputs):
                    sentence = f"it fails under {name}: {_first(error)}"
                    broken.append((f"fails under {name}", sentence))
    here = tools.hand(sample)
    for i, zero in enumerate(np.asarray(g, np.float64) for g in there.pop("zero", ())):
        if np.any(zero) and np.all(np.isfinite(zero)):
            worst = float(np.max(np.abs(zero)))
            broken.append(("not linear", f"{subject.leaf(i)} is {worst:.3g} for a zero cotangent"))
    for name, grads in there.items():
        for i, (a, b) in enumerate(zip(here, grads, strict=True)):
            size = float(np.max(np.abs(a[np.isfinite(a)]), initial=0))
            far = np.nan_to_num(np.max(np.abs(np.asarray(b, np.float64) - a), initial=0))
            if far > 4 * UNITS * tools.eps * size:
                sentence = f"under {name} {subject.leaf(i)} differs by {far / (size or 1):.2g}"
                broken.append((f"differs under {name}", sentence))
    return broken


def _zero(function: Any, inputs: list[Any], dys: list[Any]) -> list[Any]:
    return function(inputs, [0 * d for d in dys])


def _vmapped(function: Any, inputs: list[Any], dys: list[Any]) -> list[Any]:
    """One example of a stack, the other of other values; integers and random keys are shared."""
    floating = [jnp.issubdtype(v.dtype, jnp.floating) for v in inputs]
    stack = [jnp.stack([v, v / 2]) if f else v for v, f in zip(inputs, floating, strict=True)]
    axes = [0 if f else None for f in floating]
    return [
        g[0] for g in jax.vmap(function, (axes, 0))(stack, [jnp.stack([d, d / 2]) for d in dys])
    ]


def _scanned(function: Any, inputs: list[Any], dys: list[Any]) -> list[Any]:
    floating = [jnp.issubdtype(v.dtype, jnp.floating) for v in inputs]
    moving = [jnp.stack([v / 2, v]) for v, f in zip(inputs, floating, strict=True) if f]

    def body(carry: int, x: tuple[list[Any], list[Any]]) -> tuple[int, list[Any]]:
        here = iter(x[0])
        return carry, function(
            [next(here) if f else v for v, f in zip(inputs, floating, strict=True)], x[1]
        )

    return [g[1] for g in lax.scan(body, 0, (moving, [jnp.stack([d / 2, d]) for d in dys]))[1]]


TRANSFORMED = {"zero": _zero, "vmap": _vmapped, "scan": _scanned}


def _forward_can(transformed: Any, subject: Any, inputs: list[Any]) -> bool:
    try:
        jax.jit(functools.partial(transformed, lambda i, d: subject.plain(*i)))(inputs, [])
    except Exception:
        return False
    return True


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
