"""Stories of the forward pass's own parts: a term of the gradient that is missing, a value that is
stale.

The gradient is a sum over the paths through the forward pass. With a number at every edge of its
graph by which the gradient there is multiplied, one at every edge gives the gradient, and a zero
at one edge what is left without the paths through it.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify import jaxprs
from funprop.verify.case import Case, Told
from funprop.verify.jaxprs import Evaluate

EDGES = 600  # more are not tried
PAIRS = 400
NUMBERS = 2_000_000  # nor more numbers than this at once


def term(case: Case) -> Told | None:
    """One term, or two, of the gradient missing, doubled, of the wrong sign, or alone."""
    found = _contributions(case)
    if found is None:
        return None
    places, parts = found  # of every edge: what passes through it
    v = case.verdict
    off = v.got - v.truth
    for where, part in zip(places, parts, strict=True):
        size = float(np.sum(part * part))
        if not size:
            continue
        k = float(np.sum(off * part) / size)
        if abs(k) > 1e-6 and case.close(v.truth + k * part):
            return _told_of(where, k)
    for where, part in zip(places, parts, strict=True):
        if case.close(part):
            return Told("overwritten", f"only what comes through {where} is counted")
    n = len(parts)
    for i, j in itertools.combinations(range(min(n, 60)), 2):
        if case.close(v.truth - parts[i] - parts[j]):
            return Told("missing term", f"what comes through {places[i]} and {places[j]} is missing")
    basis = np.stack([p.ravel() for p in parts[:60]])
    for i, j in itertools.combinations(range(min(n, 60)), 2):
        pair = basis[[i, j]]
        k, *_ = np.linalg.lstsq(pair.T, off.ravel(), rcond=None)
        if case.close(v.truth + (k @ pair).reshape(off.shape)):
            return Told("one term", f"what comes through {places[i]} and {places[j]} is off")
    return None


def _told_of(where: str, k: float) -> Told:
    if abs(k + 1) < 1e-3:
        return Told("missing term", f"what comes through {where} is missing")
    if abs(k - 1) < 1e-3:
        return Told("counted twice", f"what comes through {where} is counted twice")
    if abs(k + 2) < 1e-3:
        return Told("sign of a term", f"the sign of what comes through {where} is turned")
    return Told("factor of a term", f"what comes through {where} is {1 + k:.4g} times what it should be")


def _contributions(case: Case) -> tuple[list[str], list[np.ndarray]] | None:
    """For every edge what the gradient loses without it, at all samples, duplicates left out."""
    tools, leaf = case.tools, case.place
    edges: list[str] = []

    def scaled(scales: Any, noted: bool) -> Evaluate:
        count = itertools.count()

        def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            if not _whole(eqn):
                changed = list(inputs)
                for i, v in enumerate(inputs):
                    if isinstance(v, jax.Array) and jnp.issubdtype(v.dtype, jnp.floating):
                        n = next(count)
                        if noted:
                            edges.append(_described(eqn))
                        else:
                            kept = lax.stop_gradient(v)
                            changed[i] = kept + scales[n] * (v - kept)
                return run(changed)
            return run(inputs)

        return Evaluate(wide=True, unroll=True, around=around)

    def gradient(scales: Any, inputs: list[Any], dys: list[Any]) -> Any:
        def total(value: Any) -> Any:
            filled = [*inputs[:leaf], value, *inputs[leaf + 1 :]]
            ys = scaled(scales, False)(tools.wide_plain, *filled)
            ys = [y for y in ys if jnp.issubdtype(y.dtype, jnp.floating)]
            return sum(jnp.sum(y * d) for y, d in zip(ys, dys, strict=True))

        return jax.grad(total)(inputs[leaf])

    sample = case.samples[0]
    with jax.enable_x64(True):
        inputs = [jnp.asarray(v) for v in sample.inputs]
        try:
            jax.eval_shape(lambda *a: scaled(None, True)(tools.wide_plain, *a), *inputs)
            n = len(edges)
            numbers = sum(np.size(v) for v in sample.inputs) + sum(np.size(d) for d in sample.dys)
            if not 0 < n <= EDGES or n * numbers > NUMBERS:
                return None
            run = jax.jit(jax.vmap(gradient, (0, None, None)))
            scales = jnp.concatenate([jnp.ones((1, n)), 1 - jnp.eye(n)])
            found = [np.asarray(run(scales, s.inputs, s.dys)) / s.unit for s in case.samples]
        except Exception:  # a part of the forward pass that cannot be run so: no story of its parts
            return None
    parts, places = [], []
    for i in range(n):
        part = np.stack([f[0] - f[1 + i] for f in found])
        if not np.isfinite(part).all() or not np.any(np.abs(part) > 1e-9 * case.verdict.size):
            continue
        if any(np.allclose(part, p, rtol=1e-7, atol=1e-10 * case.verdict.size) for p in parts):
            continue
        parts.append(part)
        places.append(edges[i])
    return places, parts


def stale(case: Case) -> Told | None:
    """A part of the forward pass is differentiated at a value that stands elsewhere."""
    tools, leaf = case.tools, case.place
    pairs: list[tuple[int, int, str]] = []  # (operand, the value instead of it, in words)

    def gradient(chosen: Any, inputs: list[Any], dys: list[Any]) -> Any:
        def total(value: Any) -> Any:
            filled = [*inputs[:leaf], value, *inputs[leaf + 1 :]]
            values = _values(tools.wide_plain, filled)
            run = Evaluate(wide=True, unroll=True, around=_at_others(pairs, values, chosen))
            ys = [y for y in run(tools.wide_plain, *filled) if jnp.issubdtype(y.dtype, jnp.floating)]
            return sum(jnp.sum(y * d) for y, d in zip(ys, dys, strict=True))

        return jax.grad(total)(inputs[leaf])

    sample = case.samples[0]
    with jax.enable_x64(True):
        try:
            inputs = [jnp.asarray(v) for v in sample.inputs]
            pairs += _pairs(tools.wide_plain, inputs)
            numbers = sum(np.size(v) for v in sample.inputs) + sum(np.size(d) for d in sample.dys)
            pairs = pairs[: max(1, min(PAIRS, NUMBERS // max(numbers, 1)))]
            if not pairs:
                return None
            run = jax.jit(jax.vmap(gradient, (0, None, None)))
            found = [np.asarray(run(jnp.eye(len(pairs)), s.inputs, s.dys)) / s.unit for s in case.samples]
        except Exception:  # as above
            return None
    for i, (_, _, words) in enumerate(pairs):
        if case.close(np.stack([f[i] for f in found])):
            return Told("stale", words)
    return None


def _values(jaxpr: Any, inputs: list[Any]) -> list[Any]:
    """Every float that the forward pass computes: its inputs first, then outputs of equations."""
    values = [v for v in inputs if jnp.issubdtype(v.dtype, jnp.floating)]

    def note(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
        outputs = run(inputs)
        values.extend(v for v in outputs if jnp.issubdtype(v.dtype, jnp.floating))
        return outputs

    Evaluate(wide=True, unroll=True, around=note)(jaxpr, *inputs)
    return [lax.stop_gradient(v) for v in values]


def _pairs(jaxpr: Any, inputs: list[Any]) -> list[tuple[int, int, str]]:
    values = [np.asarray(v) for v in _values(jaxpr, inputs)]
    pairs: list[tuple[int, int, str]] = []
    count = itertools.count()

    def note(eqn: Any, operands: list[Any], run: Any) -> list[Any]:
        for v in operands:
            if not isinstance(v, jax.Array) or not jnp.issubdtype(v.dtype, jnp.floating):
                continue
            n = next(count)
            if eqn.primitive.name in _LINEAR:
                continue
            seen: list[Any] = [np.asarray(v)]
            for i, other in enumerate(values):
                if other.shape == v.shape and not any(np.allclose(other, s) for s in seen):
                    seen.append(other)
                    pairs.append((n, i, f"{_described(eqn)} is differentiated at another value"))
        return run(operands)

    Evaluate(wide=True, unroll=True, around=note)(jaxpr, *inputs)
    return pairs


def _at_others(pairs: list[tuple[int, int, str]], values: list[Any], chosen: Any) -> Any:
    """Each equation's value as it is, its derivative at the values that are chosen."""
    count = itertools.count()

    def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
        moved, any_moved = list(inputs), False
        for i, v in enumerate(inputs):
            if isinstance(v, jax.Array) and jnp.issubdtype(v.dtype, jnp.floating):
                n = next(count)
                for p, (operand, other, _) in enumerate(pairs):
                    if operand == n:
                        moved[i] = moved[i] + chosen[p] * (values[other] - lax.stop_gradient(v))
                        any_moved = True
        outputs = run(inputs)
        if not any_moved:
            return outputs
        there = Evaluate(wide=True, unroll=True).equation(eqn, moved)
        return [
            lax.stop_gradient(y) + (t - lax.stop_gradient(t)) if jnp.issubdtype(y.dtype, jnp.floating) else y
            for y, t in zip(outputs, there, strict=True)
        ]

    return around


# Equations whose derivative does not depend on the value of an operand.
_LINEAR = (
    "add", "sub", "neg", "transpose", "reshape", "broadcast_in_dim", "reduce_sum", "slice",
    "squeeze", "expand_dims", "concatenate", "convert_element_type", "copy", "pad", "rev",
    "dynamic_slice", "gather", "stop_gradient", "cumsum", "split",
)  # fmt: skip


def _whole(eqn: Any) -> bool:
    """Whether the equation only calls others, which are seen on their own."""
    return eqn.primitive.name in ("scan", "while", "cond", "shard_map") or jaxprs.only_calls(eqn)


def _described(eqn: Any) -> str:
    return f"`{eqn.primitive.name}` at {jaxprs.equation_source(eqn)}"
