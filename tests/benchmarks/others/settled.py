"""What is right where the verifier says that a rule of another package is wrong.

Each row is the rule's derivative beside one that owes nothing to JAX: of the formula in mpmath at
40 digits, or central differences of the package's own forward pass in float64.

    python -m tests.benchmarks.others.settled     # in the environment of packages.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

from tests.benchmarks.others import tfp_on_new_jax

mpmath.mp.dps = 40
Row = tuple[str, Any, Any]


def slope(function: Callable[..., Any], at: tuple[float, ...], i: int) -> float:
    """The derivative of a function of mpmath's numbers."""
    given = [mpmath.mpf(repr(v)) for v in at]
    return float(mpmath.diff(lambda v: function(*given[:i], v, *given[i + 1 :]), given[i]))


def difference(function: Callable[[Any], Any], x: Any, direction: Any, h: float = 1e-6) -> Any:
    """A central difference of a function, in float64."""
    with jax.enable_x64(True):
        x, step = np.asarray(x, np.float64), h * np.asarray(direction, np.float64)
        return np.asarray((function(x + step) - function(x - step)) / (2 * h))


def power_law(x: Any, alpha: Any, low: Any, high: Any) -> Any:
    """The logarithm of the density that is proportional to x ** alpha."""
    if alpha == -1:
        return -mpmath.log(x) - mpmath.log(mpmath.log(high / low))
    b = 1 + alpha
    return mpmath.log(b * x**alpha / (high**b - low**b))


def power_cdf(x: Any, alpha: Any, low: Any, high: Any) -> Any:
    """Its distribution function."""
    if x < low:
        return mpmath.mpf(0)
    if alpha == -1:
        return mpmath.log(x / low) / mpmath.log(high / low)
    b = 1 + alpha
    return (x**b - low**b) / (high**b - low**b)


def power_icdf(q: Any, alpha: Any, low: Any, high: Any) -> Any:
    """The inverse of it."""
    if alpha == -1:
        return low * (high / low) ** q
    b = 1 + alpha
    return (low**b + q * (high**b - low**b)) ** (1 / b)


def numpyro_rows() -> Iterator[Row]:
    """`DoublyTruncatedPowerLaw`."""
    import numpyro.distributions as dist

    forms = {"log_prob": power_law, "cdf": power_cdf, "icdf": power_icdf}
    names = ("x", "alpha", "low", "high")

    for method, x, params, which in (
        ("log_prob", 1.5, (-2.3, 1.0, 4.0), (0, 1, 2, 3)),
        ("log_prob", 1.5, (0.5, 1.0, 4.0), (2, 3)),
        ("log_prob", 1.5, (-1.0, 1.3, 4.0), (0, 1, 2, 3)),
        ("cdf", 1.5, (-2.3, 1.0, 4.0), (0, 1, 2, 3)),
        ("cdf", 1.5, (-1.0, 1.3, 4.0), (0, 1, 2, 3)),
        ("cdf", 1.1, (-1.0, 1.3, 4.0), (0, 1, 2, 3)),
        ("icdf", 0.2, (-2.3, 1.0, 4.0), (0, 1, 2, 3)),
        ("icdf", 0.2, (-1.0, 1.3, 4.0), (0, 1, 2, 3)),
    ):

        def value(x: Any, *params: Any, method: str = method) -> Any:
            return getattr(dist.DoublyTruncatedPowerLaw(*params), method)(x)

        at = (x, *params)
        given = tuple(map(jnp.float32, at))
        for i in which:
            right = slope(forms[method], at, i)
            name = f"numpyro {method}({x}) at alpha, low, high = {params}: d{names[i]}"
            yield name, float(jax.grad(value, i)(*given)), right


def distrax_rows() -> Iterator[Row]:
    """`power_no_nan`."""
    from distrax._src.utils import math

    for x, y in ((0.0, 2.0), (1.5, 2.0), (2.0, 0.0)):
        given = jnp.float32(x), jnp.float32(y)
        right = 0.0 if x == 0 else slope(lambda a, b: a**b, (x, y), 1)
        yield (
            f"distrax power_no_nan({x}, {y}): dy",
            float(jax.grad(math.power_no_nan, 1)(*given)),
            right,
        )
    right = slope(lambda a, b: a**b, (2.0, 0.0), 0)
    yield "distrax power_no_nan(2., 0.): dx", float(jax.grad(math.power_no_nan)(2.0, 0.0)), right


def ott_rows() -> Iterator[Row]:
    """`softmin`."""
    from ott.math import utils

    x = [0.9, -0.3, 0.2]

    def softmin(gamma: Any) -> Any:
        return -gamma * mpmath.log(sum(mpmath.exp(-mpmath.mpf(repr(v)) / gamma) for v in x))

    rule = jax.grad(lambda g: utils.softmin(jnp.float32(x), g, 0))(0.5)
    yield "ott softmin([.9, -.3, .2], .5, 0): dgamma", float(rule), slope(softmin, (0.5,), 0)
    value, _ = jax.value_and_grad(utils.norm)(jnp.zeros(3))
    yield "ott norm([0, 0, 0]), its value beside its gradient", float(value), 0.0
    yield from sinkhorn_rows()


def sinkhorn_rows() -> Iterator[Row]:
    """A fixed number of Sinkhorn iterations, differentiated through them."""
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    from tests.benchmarks.others import ott_transport

    x, y = ott_transport.CALLS["ott.sinkhorn"][1].args

    @jax.jit
    def cost(x: Any) -> Any:
        geometry = pointcloud.PointCloud(x, y.astype(x.dtype), epsilon=0.5)
        solver = sinkhorn.Sinkhorn(implicit_diff=None, min_iterations=20, max_iterations=20)
        return solver(linear_problem.LinearProblem(geometry)).reg_ot_cost

    with jax.enable_x64(True):
        rule = jax.grad(cost)(np.float64(x))
    units = np.eye(6).reshape(6, 3, 2)
    right = np.reshape([difference(cost, x, u) for u in units], (3, 2))
    yield "ott Sinkhorn(20 iterations, implicit_diff=None): dx", np.asarray(rule), right


def tfp_rows() -> Iterator[Row]:
    """`hpsd_quadratic_form_solve`, R' M^-1 R: both of its factors move with R."""
    import tensorflow_probability.substrates.jax as tfp

    solve = tfp.math.hpsd_quadratic_form_solve
    m, r = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[0.9, -0.3], [0.2, 0.8]])
    rule = jax.jacrev(lambda r: solve(jnp.float32(m), r)[0, 1])(jnp.float32(r))
    forward = jax.jacfwd(lambda r: solve(jnp.float32(m), r)[0, 1])(jnp.float32(r))
    for i in range(2):
        units = [np.eye(2)[:, i : i + 1] @ np.eye(2)[j : j + 1] for j in range(2)]
        right = [
            float(difference(lambda r: (r.T @ np.linalg.inv(m) @ r)[0, 1], r, u)) for u in units
        ]
        name = f"tfp hpsd_quadratic_form_solve: d out[0, 1] / d rhs[{i}]"
        yield name, np.asarray(rule[i]), np.array(right)
        yield f"{name}, forward mode", np.asarray(forward[i]), np.array(right)


def mjx_rows() -> Iterator[Row]:
    """The signed distance of a cylinder."""
    from mujoco.mjx._src import collision_sdf

    for point in ((1.5, 0.0, 0.3), (0.2, 0.3, 0.9), (0.2, 0.3, 1.4)):
        p, size = np.array(point), np.array([1.0, 1.0])
        rule = jax.grad(collision_sdf._cylinder, 1)(jnp.float32(p), jnp.float32(size))

        def plain(s: Any, p: Any = p) -> Any:
            return collision_sdf._cylinder.__wrapped__(p, s)

        right = [float(difference(plain, size, u)) for u in np.eye(2)]
        yield f"mjx _cylinder({point}, (1, 1)): dsize", np.asarray(rule), np.array(right)


def main() -> None:
    """Print the rows."""
    tfp_on_new_jax.restore()
    for rows in (numpyro_rows, distrax_rows, ott_rows, tfp_rows, mjx_rows):
        for name, rule, right in rows():
            off = np.max(np.abs(np.asarray(rule) - right)) > 1e-4 * max(1, np.max(np.abs(right)))
            wrong = off or bool(np.any(np.isnan(rule)))
            print(f"{'WRONG' if wrong else 'right'}  {name}: rule {rule}, right {right}")


if __name__ == "__main__":
    main()
