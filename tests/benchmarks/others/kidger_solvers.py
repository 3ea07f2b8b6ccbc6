"""Calls of lineax and optimistix: linear systems, roots, minima and fixed points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import lineax as lx
import optimistix as optx

from tests.benchmarks.others.call import Calls, Table, array, by, normal

A = (normal(3, 3) * 0.2 + 2 * jnp.eye(3)).astype("float32")
B, C = normal(3), normal(4, 3)
T = array(2.0, 3.0)


def solve(solver: Any, tag: Any = ()) -> Any:
    def solved(_: Any, a: Any, b: Any) -> Any:
        a = a @ a.T if tag else a
        return lx.linear_solve(lx.MatrixLinearOperator(a, tag), b, solver).value

    return solved


SPD = lx.positive_semidefinite_tag
LINEAX: Calls = {
    "lineax.linear_solve": [
        by(solve(lx.LU()), A, B),
        by(solve(lx.QR()), A, B),
        by(solve(lx.QR()), C, normal(4)),
        by(solve(lx.SVD()), A, B),
        by(solve(lx.Cholesky(), SPD), A, B),
        by(solve(lx.CG(1e-6, 1e-6), SPD), A, B),
        by(solve(lx.GMRES(1e-6, 1e-6)), A, B),
        by(solve(lx.BiCGStab(1e-6, 1e-6)), A, B),
        by(solve(lx.AutoLinearSolver(well_posed=None)), A, B),
    ],
    "lineax.norms": [
        by(lambda _, x: lx.internal.two_norm(x), B),
        by(lambda _, x: lx.internal.max_norm(x), B),
        by(lambda _, x: lx.internal.rms_norm(x), B),
    ],
    "lineax.operators": [
        by(lambda _, x: lx.JacobianLinearOperator(lambda y, _: y**2, x).mv(x), B),
        by(lambda _, d, u, low, b: _tridiagonal(d, u, low, b), 3 + B, B[:2], B[1:], B),
    ],
}


def _tridiagonal(d: Any, u: Any, low: Any, b: Any) -> Any:
    operator = lx.TridiagonalLinearOperator(d, low, u)
    return lx.linear_solve(operator, b, lx.Tridiagonal()).value


def _root(solver: Any) -> Any:
    def root(_: Any, t: Any) -> Any:
        return optx.root_find(lambda y, t: y**3 - t, solver, jnp.ones(2), t).value

    return root


def _least(solver: Any) -> Any:
    def least(_: Any, t: Any) -> Any:
        def residual(y: Any, t: Any) -> Any:
            return jnp.stack([y[0] - t[0], y[1] * t[1] - 1, 0.1 * y[0] * y[1]])

        return optx.least_squares(residual, solver, jnp.ones(2), t).value

    return least


def _minimum(solver: Any) -> Any:
    def minimum(_: Any, t: Any) -> Any:
        def loss(y: Any, t: Any) -> Any:
            return jnp.sum((y - t) ** 2) + 0.1 * jnp.sum(y**4)

        return optx.minimise(loss, solver, jnp.ones(2), t, max_steps=500).value

    return minimum


def _fixed(adjoint: Any) -> Any:
    def fixed(_: Any, t: Any) -> Any:
        solver = optx.FixedPointIteration(1e-6, 1e-6)
        step = lambda y, t: jnp.cos(y) / t
        return optx.fixed_point(step, solver, jnp.ones(2), t, adjoint=adjoint).value

    return fixed


OPTIMISTIX: Calls = {
    "optimistix.root_find": [
        by(_root(optx.Newton(1e-6, 1e-6)), T),
        by(_root(optx.Chord(1e-6, 1e-6)), T),
        by(_root(optx.Dogleg(1e-6, 1e-6)), T),
    ],
    "optimistix.bisection": [
        by(
            lambda _, t: (
                optx.root_find(
                    lambda y, t: y**3 - t[0],
                    optx.Bisection(1e-6, 1e-6),
                    jnp.float32(1.0),
                    t,
                    options={"lower": 0.0, "upper": 4.0},
                ).value
            ),
            T,
        )
    ],
    "optimistix.least_squares": [
        by(_least(optx.LevenbergMarquardt(1e-6, 1e-6)), T),
        by(_least(optx.GaussNewton(1e-6, 1e-6)), T),
    ],
    "optimistix.minimise": [
        by(_minimum(optx.BFGS(1e-6, 1e-6)), T),
        by(_minimum(optx.NonlinearCG(1e-6, 1e-6)), T),
    ],
    "optimistix.fixed_point": [
        by(_fixed(optx.ImplicitAdjoint()), T),
        by(_fixed(optx.RecursiveCheckpointAdjoint()), T),
    ],
}


def tables() -> Iterator[Table]:
    """Two packages that rest on the same rules."""
    yield Table("lineax", lx, LINEAX, [], {})
    yield Table("optimistix", optx, OPTIMISTIX, [], {})
