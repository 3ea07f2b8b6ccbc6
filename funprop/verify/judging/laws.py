"""What a backward pass must be beside right: zero for zero, and the same under jit, vmap and scan.

And the forward pass must give the same when it is differentiated.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.judging.judge import FACTOR, UNITS
from funprop.verify.subject import Subject, first_line, floats
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.internals import equations
from funprop.verify.truth.primitives import BATCHED_BY_JAX
from funprop.verify.truth.samples import Sample


def broken_laws(
    tools: Instruments, sample: Sample, allowed: Sequence[np.ndarray]
) -> list[tuple[str, str]]:
    """The laws that the hand-written backward pass breaks: pairs of a story and a sentence.

    Args:
      tools: of the part.
      sample: where to look, of unit one.
      allowed: how far each of its gradients may be from the truth there.
    """
    subject = tools.subject
    there, broken = _transformed(tools, sample, allowed)
    broken += _of_the_output(tools, sample)
    for i, zero in enumerate(tools.hand(sample._replace(dys=[0 * d for d in sample.dys]))):
        if np.any(zero) and np.all(np.isfinite(zero)):
            worst = float(np.max(np.abs(zero)))
            broken.append(("not linear", f"{subject.leaf(i)} is {worst:.3g} for a zero cotangent"))
    for name, grads in there.items():
        for i, far in _beyond(tools.hand(sample), grads, allowed):
            sentence = f"{subject.leaf(i)} differs by {far:.2g} under {name}"
            broken.append((f"differs under {name}", sentence))
    return broken


def _beyond(hand: Any, grads: Any, allowed: Sequence[np.ndarray]) -> Iterator[tuple[int, float]]:
    """The leaves that differ by more than two roundings, one each, and by how much."""
    for i, (a, b, slack) in enumerate(zip(hand, grads, allowed, strict=True)):
        far = np.abs(np.asarray(b, np.float64) - a)
        if np.any(far > 2 * slack):
            yield i, float(np.nanmax(far))


def _transformed(
    tools: Instruments, sample: Sample, allowed: Sequence[np.ndarray]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The gradient under the transformations that it may differ under, and a sentence for each
    that it fails under."""
    subject = tools.subject
    inputs, dys = tools.working(sample.inputs), tools.working_dys(sample)
    there, broken = {}, []
    try:
        if all(eqn.primitive.name in BATCHED_BY_JAX for eqn in equations(tools.backward_jaxpr)):
            jax.make_jaxpr(functools.partial(together, subject.backward))(inputs, dys)
            return there, broken  # it can be run so, and how is JAX's own
        # one under the other, compiled as soon as can be, and as it is judged if it differs so
        for jit in dict.fromkeys((tools.soonest, tools.judged)):
            grads = jit(functools.partial(together, subject.backward))(inputs, dys)
            if not any(_beyond(tools.hand(sample), grads, allowed)):
                return there, broken
    except Exception:  # whatever a rule raises that was not made for one of them: which?
        pass
    for name, way in WAYS.items():
        try:
            there[name] = tools.judged(functools.partial(way, subject.backward))(inputs, dys)
        except Exception as error:
            if _forward_can(way, subject, inputs):
                sentence = f"backward fails under {name}: {first_line(error)}"
                broken.append((f"fails under {name}", sentence))
    return there, broken


def _of_the_output(tools: Instruments, sample: Sample) -> list[tuple[str, str]]:
    """Whether the forward pass gives something else when it is differentiated."""
    plain, ys = tools.plain(sample), tools.differentiated(sample)
    if (outputs := tools.subject.outputs) is not None:
        run = tools.judged(lambda inputs: floats(outputs(*inputs)))
        plain = [np.asarray(y, np.float64) for y in run(tools.working(sample.inputs))]
    for n, (y, p) in enumerate(zip(ys, plain, strict=True) if ys else ()):
        try:
            rounding = np.max(np.abs(p - tools.output(sample)[n]), initial=0)
        except NotWideError:
            rounding = 0.0
        size = np.max(np.abs(p), initial=0)
        if outputs is not None:
            rounding = 0.0
        if tools.only_values:  # a kernel may do the same in another order
            rounding = UNITS * tools.eps * size
        far = float(np.max(np.abs(y - p), initial=0))
        if far > UNITS * tools.eps * size + FACTOR * rounding:
            which = f"output {n}" if len(ys) > 1 else "the output"
            sentence = f"{which} differs by {far:.2g} where the function is differentiated"
            return [("other output", sentence)]
    return []


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


def together(function: Any, inputs: list[Any], dys: list[Any]) -> list[Any]:
    """The gradient under `vmap` under `scan`: one trace, and one program, for both."""
    return _scanned(functools.partial(_vmapped, function), inputs, dys)


WAYS = {"vmap": _vmapped, "scan": _scanned}


def _forward_can(transformed: Any, subject: Subject, inputs: list[Any]) -> bool:
    forward = subject.forward or subject.plain
    try:
        jax.jit(functools.partial(transformed, lambda i, d: forward(*i)))(inputs, [])
    except Exception:
        return False
    return True
