"""A gradient held against slopes of the forward pass, where autodiff has nothing to say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.case import Told
from funprop.verify.differences import slope
from funprop.verify.instruments import EPS64, Instruments, Sample
from funprop.verify.judge import FACTOR, UNITS, Verdict
from funprop.verify.rows import Findings, row, wrong
from funprop.verify.subject import Subject, is_floating

FEW = 64  # elements of a leaf that are checked one by one
DIRECTIONS = 8  # random ones, for a larger leaf


def by_differences(subject: Subject, tools: Instruments, sample: Sample, why: str) -> Findings:
    """Judge by central differences, in the highest precision that the forward pass runs in."""
    rng = np.random.default_rng(1)
    hands = tools.only_hand(sample)
    eps, values = _highest(tools, sample)
    checks = []
    for k, i in enumerate(subject.differentiable):
        x, grad = np.asarray(sample.inputs[i], np.float64), hands[k]

        def terms(value: np.ndarray, i: int = i) -> np.ndarray:
            ys = values([*sample.inputs[:i], value, *sample.inputs[i + 1 :]])
            return np.concatenate([(y * d).ravel() for y, d in zip(ys, sample.dys, strict=True)])

        few = x.size <= FEW
        directions = (
            [np.eye(x.size)[n].reshape(x.shape) for n in range(x.size)]
            if few
            else [rng.choice([-1.0, 1.0], x.shape) for _ in range(DIRECTIONS)]
        )
        slopes = [slope(terms, x, d, eps) for d in directions]
        claimed = np.array([float(np.sum(np.nan_to_num(grad, nan=np.inf) * d)) for d in directions])
        true, error = np.array([s.value for s in slopes]), np.array([s.error for s in slopes])
        size = float(np.sqrt(np.mean(true**2))) if true.size else 0.0
        allowed = FACTOR * error + UNITS * tools.eps * size
        shape = (1, *x.shape) if few else (1, DIRECTIONS)
        verdict = Verdict(
            claimed.reshape(shape),
            true.reshape(shape),
            np.abs(claimed - true).reshape(shape),
            allowed.reshape(shape),
            size,
            False,
        )
        told = _factor_of(claimed, true) if not verdict.ok else None
        checks.append(row(subject, k, verdict) if verdict.ok else wrong(subject, k, verdict, told))
    return Findings(checks, [f"{subject.name}: judged by differences, for {why}"], [])


def _factor_of(claimed: np.ndarray, true: np.ndarray) -> Told | None:
    norm = float(np.sum(true**2))
    if not np.any(claimed):
        return Told("zero", "zero, and should not be")
    c = float(np.sum(claimed * true) / norm) if norm else 0.0
    if c and np.allclose(claimed, c * true, rtol=1e-2, atol=1e-3 * np.sqrt(norm)):
        return (
            Told("sign", "the sign is turned")
            if abs(c + 1) < 0.01
            else Told("factor", f"{c:.3g} times what it should be")
        )
    return None


def _highest(tools: Instruments, sample: Sample) -> tuple[float, Any]:
    """The forward pass in float64 where it runs in it, else as it is; and its rounding unit."""
    subject = tools.subject
    try:
        with jax.enable_x64(True):
            run = jax.jit(lambda *inputs: subject.plain(*inputs))
            ys = run(*[jnp.asarray(v) for v in sample.inputs])
            if all(y.dtype == np.float64 for y in ys if is_floating(y)):

                def wide(inputs: list[Any]) -> list[np.ndarray]:
                    with jax.enable_x64(True):
                        return [np.asarray(y) for y in run(*inputs) if is_floating(y)]

                return EPS64, wide
    except Exception:  # it does not run in float64
        pass
    here = jax.jit(lambda *inputs: subject.plain(*inputs))

    def narrow(inputs: list[Any]) -> list[np.ndarray]:
        ys = here(*tools.working(inputs))
        return [np.asarray(y, np.float64) for y in ys if is_floating(y)]

    return tools.eps, narrow
