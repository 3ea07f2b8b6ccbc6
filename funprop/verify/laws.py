"""What a backward pass must be beside right: deterministic, zero for zero, one and the same under
jit, vmap and scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.instruments import Instruments, Sample
from funprop.verify.judge import UNITS

TRANSFORMED = 3  # how many points are stacked


def broken_laws(tools: Instruments, sample: Sample) -> list[tuple[str, str]]:
    """The laws that the hand-written backward pass breaks: pairs of a story and a sentence."""
    subject = tools.subject
    inputs, dys = tools.working(sample.inputs), tools.working_dys(sample)
    broken = []
    zero = tools.hand(sample._replace(dys=[np.zeros_like(d) for d in sample.dys]))
    for i, grad in enumerate(zero):
        if grad.size and not np.all(grad == 0) and np.all(np.isfinite(grad)):
            worst = float(np.max(np.abs(grad)))
            broken.append(("not linear", f"{subject.leaf(i)} is {worst:.3g} for a zero cotangent"))
    here = tools.hand(sample)
    for name, transformed, alone in (("vmap", _vmapped, False), ("scan", _scanned, False)):
        try:
            there = transformed(subject.backward, inputs, dys)
        except Exception as error:  # whatever a rule raises that was not made for it
            if _forward_can(transformed, subject, inputs):
                broken.append((f"fails under {name}", f"it fails under {name}: {_first(error)}"))
            continue
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            size = float(np.max(np.abs(a[np.isfinite(a)]), initial=0))
            far = np.nan_to_num(np.max(np.abs(np.asarray(b, np.float64) - a), initial=0))
            if far > 4 * UNITS * tools.eps * size + alone:
                sentence = f"under {name} {subject.leaf(i)} differs by {far / (size or 1):.2g}"
                broken.append((f"differs under {name}", sentence))
    return broken


def _vmapped(function: Any, inputs: list[Any], dys: list[Any]) -> list[Any]:
    """One example of a stack, the others of other values."""
    stack = jax.tree.map(lambda v: jnp.stack([v, *[_other(v)] * (TRANSFORMED - 1)]), (inputs, dys))
    return [g[0] for g in jax.jit(jax.vmap(function))(*stack)]


def _scanned(function: Any, inputs: list[Any], dys: list[Any]) -> list[Any]:
    stack = jax.tree.map(lambda v: jnp.stack([_other(v), v]), (inputs, dys))
    return [g[1] for g in jax.jit(lambda s: lax.scan(lambda c, a: (c, function(*a)), 0, s)[1])(stack)]


def _other(value: Any) -> Any:
    return value * value.dtype.type(0.5) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _forward_can(transformed: Any, subject: Any, inputs: list[Any]) -> bool:
    try:
        transformed(lambda inputs, dys: subject.plain(*inputs), inputs, [])
    except Exception:
        return False
    return True


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
