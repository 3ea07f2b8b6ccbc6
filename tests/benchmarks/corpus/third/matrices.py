"""Linear algebra: solves, decompositions, determinants, exponentials."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import expm as matrix_exponential
from jax.scipy.linalg import solve_triangular

from tests.benchmarks.corpus.third.case import case, floats


def spd(n, *shapes):
    def inputs(rng):
        a = rng.standard_normal((n, n))
        rest = tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
        return jnp.asarray(a @ a.T + n * np.eye(n), jnp.float32), *rest

    return inputs


def solve(a, b):
    return jnp.linalg.solve(a, b)


def solve_bwd(wrong, args, y, dy):
    a, b = args
    db = jnp.linalg.solve(a if wrong == "not transposed" else a.T, dy)
    da = -db @ y.T
    if wrong == "sign of da":
        da = -da
    if wrong == "da transposed":
        da = da.T
    if wrong == "b for the solution":
        da = -db @ b.T
    return da, db


def cholesky(a):
    return jnp.linalg.cholesky(a)


def cholesky_bwd(wrong, args, y, dy):
    low = jnp.tril(y.T @ dy)
    middle = low - jnp.diag(jnp.diag(low)) / 2
    if wrong == "diagonal not halved":
        middle = low
    if wrong == "no lower triangle":
        middle = y.T @ dy
    inverse = jnp.linalg.inv(y)
    da = inverse.T @ middle @ inverse
    if wrong == "not symmetrised":
        return (da,)
    if wrong == "half forgotten":
        return (da + da.T,)
    return ((da + da.T) / 2,)


def eigenvalues(a):
    return jnp.linalg.eigvalsh(a)


def eigenvalues_bwd(wrong, args, y, dy):
    vectors = jnp.linalg.eigh(args[0])[1]
    if wrong == "vectors transposed":
        vectors = vectors.T
    if wrong == "order turned round":
        dy = dy[::-1]
    if wrong == "times the values":
        dy = dy * y
    return ((vectors * dy) @ vectors.T,)


def symmetric_root(a):
    values, vectors = jnp.linalg.eigh(a)
    return (vectors * jnp.sqrt(values)) @ vectors.T


def symmetric_root_bwd(wrong, args, y, dy):
    values, vectors = jnp.linalg.eigh(args[0])
    root = jnp.sqrt(values)
    g = vectors.T @ ((dy + dy.T) / 2) @ vectors
    f = 1 / (root[:, None] + root)
    if wrong == "as if they commuted":
        f = jnp.broadcast_to(1 / (2 * root), f.shape)
    if wrong == "diagonal alone":
        g = jnp.diag(jnp.diag(g))
    if wrong == "values for roots":
        f = 1 / (values[:, None] + values)
    return (vectors @ (f * g) @ vectors.T,)


def singular_values(a):
    return jnp.linalg.svd(a, compute_uv=False)


def singular_values_bwd(wrong, args, y, dy):
    u, s, vt = jnp.linalg.svd(args[0], full_matrices=False)
    if wrong == "largest alone":
        dy = dy.at[1:].set(0)
    if wrong == "times the values":
        dy = dy * s
    if wrong == "left vectors mirrored":
        u = u[::-1]
    return ((u * dy) @ vt,)


def logdet(a):
    return jnp.linalg.slogdet(a)[1]


def logdet_bwd(wrong, args, y, dy):
    inverse = jnp.linalg.inv(args[0])
    if wrong == "not transposed":
        return (dy * inverse,)
    if wrong == "determinant left in":
        return (dy * jnp.exp(y) * inverse.T,)
    if wrong == "diagonal alone":
        return (dy * jnp.diag(jnp.diag(inverse)),)
    return (dy * inverse.T,)


def inverse(a):
    return jnp.linalg.inv(a)


def inverse_bwd(wrong, args, y, dy):
    if wrong == "sign":
        return (y.T @ dy @ y.T,)
    if wrong == "not transposed":
        return (-y @ dy @ y,)
    if wrong == "as of a number":
        return (-dy * y * y,)
    if wrong == "cotangent transposed":
        return (-y.T @ dy.T @ y.T,)
    return (-y.T @ dy @ y.T,)


def orthonormal(a):
    """Q of A = QR with a positive diagonal of R."""
    q, r = jnp.linalg.qr(a)
    return q * jnp.sign(jnp.diag(r))


def orthonormal_bwd(wrong, args, y, dy):
    (a,) = args
    q = y
    r = q.T @ a
    m = -dy.T @ q
    low = jnp.tril(m, 0 if wrong == "diagonal counted twice" else -1)
    sym = low + low.T + jnp.diag(jnp.diag(m))
    if wrong == "upper triangle":
        up = jnp.triu(m, 1)
        sym = up + up.T + jnp.diag(jnp.diag(m))
    if wrong == "projection forgotten":
        sym = jnp.zeros_like(m)
    right = dy + q @ sym
    if wrong == "r transposed":
        return (solve_triangular(r, right.T, trans=1).T,)
    return (solve_triangular(r, right.T).T,)


def expm(a):
    return matrix_exponential(a)


def expm_bwd(wrong, args, y, dy):
    a = args[0].T
    n = a.shape[0]
    if wrong == "not transposed":
        a = a.T
    if wrong == "as if they commuted":
        return (y.T @ dy,)
    if wrong == "as of a number":
        return (y * dy,)
    if wrong == "first order only":
        return (dy + (a @ dy + dy @ a) / 2,)
    block = jnp.block([[a, dy], [jnp.zeros_like(a), a]])
    return (matrix_exponential(block)[:n, n:],)


def triangular_solve(lower, b):
    return solve_triangular(lower, b, lower=True)


def triangular_solve_bwd(wrong, args, y, dy):
    lower, b = args
    db = solve_triangular(lower, dy, lower=True, trans=0 if wrong == "not transposed" else 1)
    dlower = -jnp.tril(db @ y.T)
    if wrong == "upper part not cleared":
        dlower = -db @ y.T
    if wrong == "strictly lower":
        dlower = jnp.tril(dlower, -1)
    if wrong == "upper triangle":
        dlower = -jnp.triu(db @ y.T)
    return dlower, db


def ridge(x, targets):
    return jnp.linalg.solve(x.T @ x + 0.5 * jnp.eye(x.shape[1], dtype=x.dtype), x.T @ targets)


def ridge_bwd(wrong, args, y, dy):
    x, targets = args
    gram = x.T @ x + 0.5 * jnp.eye(x.shape[1], dtype=x.dtype)
    if wrong == "penalty forgotten":
        gram = x.T @ x
    u = jnp.linalg.solve(gram, dy)
    residual = targets - x @ y
    dx = jnp.outer(residual, u) - jnp.outer(x @ u, y)
    if wrong == "solution's own term forgotten":
        dx = jnp.outer(residual, u)
    if wrong == "targets for residuals":
        dx = jnp.outer(targets, u) - jnp.outer(x @ u, y)
    return dx, x @ u


def mahalanobis(x, a):
    return x @ jnp.linalg.solve(a, x)


def mahalanobis_bwd(wrong, args, y, dy):
    x, a = args
    s, t = jnp.linalg.solve(a, x), jnp.linalg.solve(a.T, x)
    dx, da = dy * (s + t), -dy * jnp.outer(t, s)
    if wrong == "two forgotten":
        dx = dy * s
    if wrong == "symmetric a assumed":
        dx = 2 * dy * s
    if wrong == "sign of da":
        da = -da
    if wrong == "da transposed":
        da = da.T
    return dx, da


def square(*shapes):
    def inputs(rng):
        args = [rng.standard_normal(s) for s in shapes]
        args = [
            a + 3 * np.eye(len(a)) if a.ndim == 2 and a.shape[0] == a.shape[1] else a for a in args
        ]
        return tuple(jnp.asarray(a, jnp.float32) for a in args)

    return inputs


CASES = [
    case(solve, solve_bwd, square((4, 4), (4, 2)),
        ("not transposed", "a b", "transpose forgotten"), ("sign of da", "a", "sign"),
        ("da transposed", "a", "transposed"), ("b for the solution", "a", "stale value")),
    case(cholesky, cholesky_bwd, spd(4),
        ("diagonal not halved", "a", "factor of the diagonal"), ("no lower triangle", "a", "mask forgotten"),
        ("not symmetrised", "a", "not symmetrised"), ("half forgotten", "a", "factor 2")),
    case(eigenvalues, eigenvalues_bwd, spd(4),
        ("vectors transposed", "a", "transposed"), ("order turned round", "a", "order"),
        ("times the values", "a", "extra factor")),
    case(symmetric_root, symmetric_root_bwd, spd(4),
        ("as if they commuted", "a", "noncommuting"), ("diagonal alone", "a", "part is zero"),
        ("values for roots", "a", "wrong value")),
    case(singular_values, singular_values_bwd, floats((4, 3)),
        ("largest alone", "a", "sum over the others forgotten"), ("times the values", "a", "extra factor"),
        ("left vectors mirrored", "a", "order")),
    case(logdet, logdet_bwd, square((4, 4)),
        ("not transposed", "a", "transposed"), ("determinant left in", "a", "extra factor"),
        ("diagonal alone", "a", "part is zero")),
    case(inverse, inverse_bwd, square((4, 4)),
        ("sign", "a", "sign"), ("not transposed", "a", "transpose forgotten"),
        ("as of a number", "a", "elementwise for matrix"), ("cotangent transposed", "a", "transposed")),
    case(orthonormal, orthonormal_bwd, floats((5, 3)),
        ("diagonal counted twice", "a", "factor of the diagonal"), ("upper triangle", "a", "wrong mask"),
        ("projection forgotten", "a", "term forgotten"), ("r transposed", "a", "transposed")),
    case(expm, expm_bwd, lambda rng: (jnp.asarray(rng.standard_normal((3, 3)) / 2, jnp.float32),),
        ("not transposed", "a", "transpose forgotten"), ("as if they commuted", "a", "noncommuting"),
        ("as of a number", "a", "elementwise for matrix"), ("first order only", "a", "approximation")),
    case(triangular_solve, triangular_solve_bwd,
        lambda rng: (jnp.asarray(np.tril(rng.standard_normal((4, 4))) + 2 * np.eye(4), jnp.float32),
                     jnp.asarray(rng.standard_normal((4, 2)), jnp.float32)),
        ("not transposed", "lower b", "transpose forgotten"), ("upper part not cleared", "lower", "mask forgotten"),
        ("strictly lower", "lower", "diagonal forgotten"), ("upper triangle", "lower", "wrong mask")),
    case(ridge, ridge_bwd, floats((6, 3), (6,)),
        ("penalty forgotten", "x targets", "term forgotten inside"), ("solution's own term forgotten", "x", "term forgotten"),
        ("targets for residuals", "x", "wrong value")),
    case(mahalanobis, mahalanobis_bwd, square((4,), (4, 4)),
        ("two forgotten", "x", "term forgotten"), ("symmetric a assumed", "x", "one of two terms twice"),
        ("sign of da", "a", "sign"), ("da transposed", "a", "transposed")),
]  # fmt: skip
