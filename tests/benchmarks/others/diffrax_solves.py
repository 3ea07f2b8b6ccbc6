"""Calls of diffrax: a user solves an equation and differentiates the end with respect to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffrax
import jax.numpy as jnp

from tests.benchmarks.others.call import Calls, Table, array, by

IMPLICIT = diffrax.ImplicitEuler(root_finder=diffrax.VeryChord(rtol=1e-5, atol=1e-5))
Y, RATE = array(1.0, -0.5), array(0.5)


def end(*, solver: Any, adjoint: Any, controller: Any = None) -> Any:
    """The state at time 1 of a damped oscillator."""

    def field(t: Any, y: Any, rate: Any) -> Any:
        return jnp.stack([y[1], -rate[0] * y[0] - 0.1 * y[1]])

    def solve(_: Any, y: Any, rate: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            0.0,
            1.0,
            0.25,
            y,
            args=rate,
            adjoint=adjoint,
            max_steps=16,
            stepsize_controller=controller or diffrax.ConstantStepSize(),
        ).ys

    return solve


CALLS: Calls = {
    "diffrax.diffeqsolve": [
        by(end(solver=diffrax.Euler(), adjoint=diffrax.DirectAdjoint()), Y, RATE),
        by(end(solver=diffrax.Tsit5(), adjoint=diffrax.RecursiveCheckpointAdjoint()), Y, RATE),
        by(end(solver=diffrax.Euler(), adjoint=diffrax.BacksolveAdjoint()), Y, RATE),
        by(end(solver=IMPLICIT, adjoint=diffrax.DirectAdjoint()), Y, RATE),
        by(
            end(
                solver=diffrax.Heun(),
                adjoint=diffrax.ForwardMode(),
                controller=diffrax.PIDController(rtol=1e-3, atol=1e-4),
            ),
            Y,
            RATE,
        ),
    ],
    "diffrax.LinearInterpolation": [
        by(
            lambda _, y: diffrax.LinearInterpolation(array(0, 1, 2), y).evaluate(0.3),
            array(1, 3, 2),
        ),
    ],
}


def tables() -> Iterator[Table]:
    """One table."""
    yield Table("diffrax", diffrax, CALLS, [], {})
