"""The solution of a linear system, differentiated as the system says and not as its caller does.

`jax.lax.custom_linear_solve` takes the derivative of A x = b by the solvers that it was given, for
A and for its transpose, and nobody asks whether they solve it. Here the matrix is written out, and
x is differentiated through its factors; its value stays that of the solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MOST = 256  # unknowns: more make too large a matrix, and JAX's own derivative is taken


def is_solve(eqn: Any) -> bool:
    """Whether the equation solves a linear system that is small enough to be written out."""
    if eqn.primitive.name != "custom_linear_solve":
        return False
    return sum(v.aval.size for v in eqn.invars[sum(eqn.params["const_lengths"]) :]) <= MOST


def input_names(eqn: Any) -> list[str]:
    """What the inputs are called; empty for those of the solvers alone."""
    lengths = eqn.params["const_lengths"]
    before, n = sum(lengths), len(eqn.invars)
    matrix = [f"matvec[{i}]" for i in range(lengths.matvec)]
    b = ["b"] if n - before == 1 else [f"b[{i}]" for i in range(n - before)]
    return [*matrix, *[""] * (before - lengths.matvec), *b]


def solved(run: Callable[..., list[Any]], eqn: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of the equation, each jaxpr in it run by `run`."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    places = np.cumsum([0, *lengths])
    consts = inputs[: lengths.matvec]
    of_solver = inputs[places[2] : places[3]]
    b = inputs[places[4] :]
    values = run(jaxprs.solve, *of_solver, *b)
    sizes = np.cumsum([v.size for v in b])[:-1]

    def flat(vectors: list[Any]) -> Any:
        return jnp.concatenate([v.ravel() for v in vectors])

    def unflat(vector: Any) -> list[Any]:
        return [p.reshape(v.shape) for p, v in zip(jnp.split(vector, sizes), b, strict=True)]

    right = flat(b)
    basis = jnp.eye(right.size, dtype=right.dtype)
    matrix = jax.vmap(lambda e: flat(run(jaxprs.matvec, *consts, *unflat(e))), out_axes=1)(basis)
    factors, _, permutation = lax.linalg.lu(matrix)
    x = right[permutation][:, None]
    x = lax.linalg.triangular_solve(factors, x, left_side=True, lower=True, unit_diagonal=True)
    x = lax.linalg.triangular_solve(factors, x, left_side=True, lower=False)
    derivatives = [p - lax.stop_gradient(p) for p in unflat(x[:, 0])]
    # Behind x there may be more, which has no derivative.
    values = [lax.stop_gradient(v) for v in values]
    return [v + d for v, d in zip(values, derivatives, strict=False)] + values[len(b) :]
