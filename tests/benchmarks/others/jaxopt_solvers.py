"""Calls of jaxopt: projections, isotonic regression, perturbed maxima, solvers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
from jaxopt import isotonic, perturbations, projection

from tests.benchmarks.others.call import Calls, Table, array, by, normal

X, M = array(0.9, -0.3, 0.2, 0.8), normal(5, 3)
Y, L2 = normal(5), array(0.5)


def _ridge(_: Any, l2: Any) -> Any:
    def loss(w: Any, l2: Any) -> Any:
        return jnp.mean((M @ w - Y) ** 2) + l2[0] * jnp.sum(w**2)

    return jaxopt.GradientDescent(loss, maxiter=300, tol=1e-6).run(jnp.zeros(3), l2).params


def _lbfgs(_: Any, l2: Any) -> Any:
    def loss(w: Any, l2: Any) -> Any:
        return jnp.mean((M @ w - Y) ** 2) + l2[0] * jnp.sum(w**2)

    return jaxopt.LBFGS(loss, maxiter=50, tol=1e-6).run(jnp.zeros(3), l2).params


def _fixed(_: Any, t: Any) -> Any:
    solver = jaxopt.FixedPointIteration(lambda y, t: jnp.cos(y) / (1 + t), maxiter=200, tol=1e-6)
    return solver.run(jnp.ones(1), t).params


def _bisect(_: Any, t: Any) -> Any:
    solver = jaxopt.Bisection(
        lambda y, t: y**3 - 2 - t[0], 0.0, 4.0, maxiter=60, check_bracket=False
    )
    return solver.run(None, t).params


def _lasso(_: Any, l1: Any) -> Any:
    solver = jaxopt.ProximalGradient(
        lambda w, data: jnp.mean((data[0] @ w - data[1]) ** 2),
        jaxopt.prox.prox_lasso,
        maxiter=200,
        tol=1e-6,
    )
    return solver.run(jnp.zeros(3), hyperparams_prox=l1[0] * 0.2, data=(M, Y)).params


def _argmax(x: Any) -> Any:
    return jax.nn.one_hot(jnp.argmax(x), x.shape[0])


def _qp(_: Any, c: Any) -> Any:
    q, a = jnp.eye(3) * 2, jnp.ones((1, 3))
    run = jaxopt.EqualityConstrainedQP().run
    return run(params_obj=(q, c), params_eq=(a, jnp.ones(1))).params.primal


CALLS: Calls = {
    "jaxopt.projections": [
        by(lambda _, x: projection.projection_simplex(x), X),
        by(lambda _, x: projection.projection_sparse_simplex(x, 2), X),
        by(lambda _, x: projection.projection_l1_ball(x, 0.5), X),
        by(lambda _, x: projection.projection_box_section(x, (0.0, 1.0, jnp.ones(4), 1.0)), X),
    ],
    "jaxopt.isotonic": [by(lambda _, y: isotonic.isotonic_l2_pav(y), X)],
    "jaxopt.perturbations": [
        by(
            lambda _, x, f=make: f(_argmax, num_samples=4, sigma=0.5)(x, jax.random.key(0)),
            X,
        )
        for make in (perturbations.make_perturbed_argmax, perturbations.make_perturbed_max)
    ],
    "jaxopt.solvers": [by(f, L2) for f in (_ridge, _lbfgs, _fixed, _bisect, _lasso)],
    "jaxopt.EqualityConstrainedQP": [by(_qp, normal(3))],
    "jaxopt.loss": [
        by(lambda _, x: jaxopt.loss.multiclass_sparsemax_loss(1, x), X),
        by(lambda _, x: jaxopt.loss.binary_sparsemax_loss(1, x), X),
        by(lambda _, x: jaxopt.loss.huber_loss(0.0, x), X),
    ],
}


def tables() -> Iterator[Table]:
    """One table."""
    yield Table("jaxopt", jaxopt, CALLS, [], {})
