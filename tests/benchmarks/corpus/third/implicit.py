"""What is defined by an equation: fixed points, roots, minima, projections."""

import jax
import jax.numpy as jnp

from tests.benchmarks.corpus.third.case import case, floats


def fixed_point(w, x):
    """Z = tanh(Wz + x), by 60 rounds."""
    return jax.lax.fori_loop(0, 60, lambda _, z: jnp.tanh(w @ z + x), jnp.zeros_like(x))


def fixed_point_bwd(wrong, args, y, dy):
    w, x = args
    slope = 1 - y**2
    jacobian = slope[:, None] * w
    eye = jnp.eye(len(x), dtype=x.dtype)
    u = jnp.linalg.solve((eye - jacobian).T, dy)
    if wrong == "one step only":
        u = dy
    if wrong == "not transposed":
        u = jnp.linalg.solve(eye - jacobian, dy)
    if wrong == "sign in the solve":
        u = jnp.linalg.solve((eye + jacobian).T, dy)
    if wrong == "slope left out of the solve":
        u = jnp.linalg.solve((eye - w).T, dy)
    dx = slope * u
    dw = jnp.outer(dx, y)
    if wrong == "x for z":
        dw = jnp.outer(dx, x)
    return dw, dx


def cubic_root(a, b):
    """R with r^3 + a r = b, by Newton."""

    def step(_, r):
        return r - (r**3 + a * r - b) / (3 * r**2 + a)

    return jax.lax.fori_loop(0, 30, step, b)


def cubic_root_bwd(wrong, args, y, dy):
    a, b = args
    slope = 3 * y**2 + a
    if wrong == "a forgotten in the slope":
        slope = 3 * y**2
    if wrong == "power not lowered":
        slope = y**2 + a
    u = dy / slope
    if wrong == "slope forgotten":
        u = dy
    da = u * y if wrong == "sign of da" else -u * y
    return da, u


def logistic_fit(x, targets):
    """Weights of least logistic loss with a penalty, by Newton."""

    def step(_, w):
        p = jax.nn.sigmoid(x @ w)
        hess = (x.T * (p * (1 - p))) @ x + jnp.eye(x.shape[1], dtype=x.dtype)
        return w - jnp.linalg.solve(hess, x.T @ (p - targets) + w)

    return jax.lax.fori_loop(0, 12, step, jnp.zeros(x.shape[1], x.dtype))


def logistic_fit_bwd(wrong, args, y, dy):
    x, targets = args
    p = jax.nn.sigmoid(x @ y)
    s = p * (1 - p)
    eye = jnp.eye(x.shape[1], dtype=x.dtype)
    hess = (x.T * s) @ x + eye
    if wrong == "penalty not in the hessian":
        hess = hess - eye
    if wrong == "gauss-newton without weights":
        hess = x.T @ x + eye
    u = jnp.linalg.solve(hess, dy)
    dx = -(jnp.outer(s * (x @ u), y) + jnp.outer(p - targets, u))
    if wrong == "residual's term forgotten":
        dx = -jnp.outer(s * (x @ u), y)
    dtargets = x @ u
    if wrong == "sign of targets":
        dtargets = -dtargets
    return dx, dtargets


def simplex_projection(x):
    u = -jnp.sort(-x)
    k = jnp.arange(1, len(x) + 1)
    css = jnp.cumsum(u) - 1
    n = (u * k > css).sum()
    return jnp.maximum(x - css[n - 1] / n, 0)


def simplex_projection_bwd(wrong, args, y, dy):
    inside = y > 0
    n = inside.sum()
    if wrong == "mean forgotten":
        return (jnp.where(inside, dy, 0),)
    if wrong == "mean over all":
        return (jnp.where(inside, dy - dy.mean(), 0),)
    mean = jnp.where(inside, dy, 0).sum() / n
    if wrong == "outside not cleared":
        return (dy - mean,)
    if wrong == "as softmax":
        return (y * (dy - (y * dy).sum()),)
    return (jnp.where(inside, dy - mean, 0),)


def equilibrium(w, x):
    """A residual layer at rest, z = 0.3 tanh(zW) + x, by a while loop."""

    def far(state):
        z, before, n = state
        return (abs(z - before).max() > 1e-7) & (n < 100)

    def step(state):
        z, _, n = state
        return 0.3 * jnp.tanh(z @ w) + x, z, n + 1

    return jax.lax.while_loop(far, step, (x, x + 1, 0))[0]


def equilibrium_bwd(wrong, args, y, dy):
    w, x = args
    slope = 0.3 * (1 - jnp.tanh(y @ w) ** 2)
    if wrong == "slope at x":
        slope = 0.3 * (1 - jnp.tanh(x @ w) ** 2)
    rounds = {"two rounds only": 2, "no round": 0}.get(wrong, 60)
    turned = w if wrong == "not transposed" else w.T
    u = jax.lax.fori_loop(0, rounds, lambda _, u: dy + (slope * u) @ turned, dy)
    dw = y.T @ (slope * u)
    return dw, u


def sinkhorn(cost):
    """Balanced couplings: 80 rounds of rows and columns."""
    n = cost.shape[0]

    def step(_, fg):
        f, g = fg
        f = -jax.nn.logsumexp(g - cost, 1)
        return f, -jax.nn.logsumexp(f[:, None] - cost, 0)

    f, g = jax.lax.fori_loop(0, 80, step, (jnp.zeros(n, cost.dtype), jnp.zeros(n, cost.dtype)))
    return jnp.exp(f[:, None] + g - cost)


def sinkhorn_bwd(wrong, args, y, dy):
    n = y.shape[0]
    m = y * dy
    system = jnp.block([[jnp.diag(y.sum(1)), y], [y.T, jnp.diag(y.sum(0))]])
    right = jnp.concatenate([m.sum(1), m.sum(0)])
    # The potentials are determined up to a constant: a least squares solution is one of them.
    f, g = jnp.split(jnp.linalg.pinv(system) @ right, [n])
    if wrong == "marginals forgotten":
        return (-m,)
    if wrong == "columns forgotten":
        return (-(m - y * m.sum(1, keepdims=True)),)
    if wrong == "sign":
        return (m - y * (f[:, None] + g),)
    return (-(m - y * (f[:, None] + g)),)


def small(*shapes):
    return lambda rng: tuple(jnp.asarray(0.4 * rng.standard_normal(s), jnp.float32) for s in shapes)


CASES = [
    case(fixed_point, fixed_point_bwd, small((4, 4), (4,)),
        ("one step only", "w x", "implicit part forgotten"), ("not transposed", "w x", "transpose forgotten"),
        ("sign in the solve", "w x", "sign of a term"), ("slope left out of the solve", "w x", "factor of a term"),
        ("x for z", "w", "wrong value")),
    case(cubic_root, cubic_root_bwd, floats((6,), (6,), positive=True),
        ("a forgotten in the slope", "a b", "term forgotten"), ("power not lowered", "a b", "factor of a term"),
        ("slope forgotten", "a b", "factor forgotten"), ("sign of da", "a", "sign")),
    case(logistic_fit, logistic_fit_bwd,
        lambda rng: (jnp.asarray(rng.standard_normal((8, 3)), jnp.float32), jnp.asarray(rng.uniform(size=8), jnp.float32)),
        ("penalty not in the hessian", "x targets", "term forgotten inside"),
        ("gauss-newton without weights", "x targets", "factor forgotten inside"),
        ("residual's term forgotten", "x", "term forgotten"), ("sign of targets", "targets", "sign")),
    case(simplex_projection, simplex_projection_bwd, floats((6,)),
        ("mean forgotten", "x", "term forgotten"), ("mean over all", "x", "wrong mask of a mean"),
        ("outside not cleared", "x", "mask forgotten"), ("as softmax", "x", "another function's")),
    case(equilibrium, equilibrium_bwd, floats((4, 4), (2, 4)),
        ("slope at x", "w x", "stale value"), ("two rounds only", "w x", "too few rounds"),
        ("no round", "w x", "implicit part forgotten"), ("not transposed", "w x", "transpose forgotten")),
    case(sinkhorn, sinkhorn_bwd, floats((4, 4)),
        ("marginals forgotten", "cost", "term forgotten"), ("columns forgotten", "cost", "term forgotten"),
        ("sign", "cost", "sign")),
]  # fmt: skip
