"""Solvers that stop far from the solution, whose rules are those of the equation that they solve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from tests.test_verify import normal, rule

pytestmark = pytest.mark.usefixtures("any_ranks")


def until(tolerance, step, start):
    """Steps until one is short; how long the last was is carried, as solvers do."""

    def turn(state):
        x, _, n = state
        new = step(x)
        return new, jnp.linalg.norm(new - x), n + 1

    goes_on = lambda state: (state[1] > tolerance) & (state[2] < 500)
    return jax.lax.while_loop(goes_on, turn, (start, jnp.array(jnp.inf, start.dtype), 0))[0]


def loss(m, b, x):
    return (jnp.sum((m @ x - b) ** 2) + 0.1 * jnp.sum(x**2)) / 2


def descent(tolerance, m, b):
    """Gradient descent on a loss."""
    return until(tolerance, lambda x: x - 0.15 * jax.grad(loss, 2)(m, b, x), jnp.zeros_like(b))


def momentum(tolerance, m, b):
    """The same by Nesterov's method, whose weights never come to rest."""

    def turn(state):
        x, y, t, _, n = state
        new, longer = y - 0.15 * jax.grad(loss, 2)(m, b, y), (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        y = new + (t - 1) / longer * (new - x)
        return new, y, longer, jnp.linalg.norm(new - x), n + 1

    x, one = jnp.zeros_like(b), jnp.ones((), b.dtype)
    goes_on = lambda state: (state[3] > tolerance) & (state[4] < 500)
    return jax.lax.while_loop(goes_on, turn, (x, x, one, one, 0))[0]


def line_search(tolerance, m, b):
    """The same with steps that make the loss less: by values, which end the descent early."""

    def step(x):
        g = jax.grad(loss, 2)(m, b, x)
        too_long = lambda s: loss(m, b, x - s * g) > loss(m, b, x) - 0.4 * s * (g @ g)
        s = jax.lax.while_loop(too_long, lambda s: s / 2, jnp.ones((), b.dtype))
        return x - s * g

    return until(tolerance, step, jnp.zeros_like(b))


def of_least(args, x, dy):
    m, b = args
    u = jnp.linalg.solve(m.T @ m + 0.1 * jnp.eye(len(b), dtype=b.dtype), dy)
    return jnp.outer(b - m @ x, u) - jnp.outer(m @ u, x), m @ u


def picard(tolerance, w, x):
    """The fixed point of a layer."""
    return until(tolerance, lambda z: jnp.tanh(w @ z + x), jnp.zeros_like(x))


def of_picard(args, z, dy, looped=True):
    w, x = args
    s = 1 - z**2
    if looped:  # as loosely as the solver
        u = until(1e-2, lambda u: dy + w.T @ (s * u), jnp.zeros_like(x))
    else:
        u = jnp.linalg.solve((jnp.eye(len(x), dtype=x.dtype) - s[:, None] * w).T, dy)
    return jnp.outer(s * u, z), s * u


def newton(tolerance, a, b):
    """The root of a x + x^3 - b."""
    slope = lambda x: a + jnp.diag(3 * x**2)
    step = lambda x: x - jnp.linalg.solve(slope(x), a @ x + x**3 - b)
    return until(tolerance, step, b)


def of_newton(args, x, dy):
    u = jnp.linalg.solve((args[0] + jnp.diag(3 * x**2)).T, dy)
    return -jnp.outer(u, x), u


def conjugate(tolerance, a, b):
    """Conjugate gradients: one turn more at the solution divides by zero."""

    def turn(state):
        x, r, p, rr = state
        ap = a @ p
        alpha = rr / (p @ ap)
        x, r = x + alpha * p, r - alpha * ap
        return x, r, r + (r @ r) / rr * p, r @ r

    start = jnp.zeros_like(b), b, b, b @ b
    return jax.lax.while_loop(lambda state: state[3] > tolerance**2, turn, start)[0]


def of_conjugate(args, x, dy):
    u = jnp.linalg.solve(args[0], dy)
    return -jnp.outer(u, x), u


FULL, SYMMETRIC = normal(4, 4), normal(4, 4, seed=3)
SYMMETRIC = 0.15 * (SYMMETRIC @ SYMMETRIC.T) + jnp.diag(jnp.float32([1, 2, 3, 4]))
OPERANDS = {
    "descent": (descent, of_least, 0.6 * FULL),
    "picard": (picard, of_picard, 0.3 * FULL),
    "newton": (newton, of_newton, 0.6 * FULL + 2 * jnp.eye(4, dtype=jnp.float32)),
    "conjugate": (conjugate, of_conjugate, (SYMMETRIC + SYMMETRIC.T) / 2),
    "momentum": (momentum, of_least, 0.6 * FULL),
    "line search": (line_search, of_least, 0.6 * FULL),
}
WRONG = {
    "factor": lambda dm, db: (2 * dm, db),
    "sign": lambda dm, db: (-dm, db),
    "transposed": lambda dm, db: (dm.T, db),
}


def changed(backward, change):
    return lambda args, y, dy: change(*backward(args, y, dy))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [*((name, 1e-2) for name in OPERANDS), *((name, 1e-3) for name in list(OPERANDS)[:4])],
)
def test_the_derivative_of_what_is_solved_is_right_and_no_other(name, tolerance):
    solver, backward, matrix = OPERANDS[name]
    forward, args = functools.partial(solver, tolerance), (matrix, normal(4, seed=1))
    report = fp.verify(rule(forward, backward), *args)
    assert report.ok, str(report)
    for story, change in WRONG.items():
        (finding,) = fp.verify(rule(forward, changed(backward, change)), *args).findings
        assert finding.path in ("m", "a", "w"), str(finding)
        assert finding.story == story, str(finding)


def test_a_hundredth_beside_a_result_that_is_as_far_off():
    forward = functools.partial(picard, 1e-2)
    args = OPERANDS["picard"][2], normal(4, seed=1)
    off = changed(functools.partial(of_picard, looped=False), lambda dw, dx: (dw, 1.01 * dx))
    (finding,) = fp.verify(rule(forward, off), *args).findings
    assert (finding.path, finding.story) == ("x", "factor"), str(finding)


def test_a_rule_in_numpy_may_be_off_as_far_as_the_result():
    args = OPERANDS["picard"][2], normal(4, seed=1)

    def on_the_host(factor, args, z, dy):
        def backward(w, z, dy):
            w, z, dy = map(np.asarray, (w, z, dy))
            s = 1 - z**2
            u = factor * s * np.linalg.solve((np.eye(len(z)) - s[:, None] * w).T, dy)
            return np.float32(np.outer(u, z)), np.float32(u)

        specs = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args)
        return jax.pure_callback(backward, specs, args[0], z, dy, vmap_method="sequential")

    for factor, wrong in (1, 0), (1.2, 2):
        backward = functools.partial(on_the_host, factor)
        report = fp.verify(rule(functools.partial(picard, 1e-2), backward), *args)
        assert len(report.findings) == wrong, str(report)


def test_the_factors_of_a_matrix_move_with_it():
    """JAX holds them by `stop_gradient`, for its own derivative; of values they are a part."""

    def forward(a, b):
        spec = jax.ShapeDtypeStruct(b.shape, b.dtype)
        return jnp.linalg.solve(a, jax.pure_callback(np.sin, spec, b, vmap_method="sequential"))

    def backward(args, y, dy):
        u = jnp.linalg.solve(args[0].T, dy)
        return -jnp.outer(u, y), u * jnp.cos(args[1])

    args = OPERANDS["newton"][2], normal(4, seed=1)
    report = fp.verify(rule(forward, backward), *args)
    assert report.ok, str(report)
    turned = changed(backward, lambda da, db: (-da, db))
    assert [f.path for f in fp.verify(rule(forward, turned), *args).findings] == ["a"]
