"""Calls of ott-jax: its mathematics, costs and solvers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import ott
from ott.geometry import costs, pointcloud
from ott.math import matrix_square_root as roots
from ott.math import utils
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from ott.tools import soft_sort

from tests.benchmarks.others.call import Calls, Table, array, by, normal, unit

X = array(0.9, -0.3, 0.2)
A = normal(3, 3)


def _spd(a: Any) -> Any:
    return a @ a.T + jnp.eye(3)


def _sinkhorn(_: Any, x: Any, y: Any) -> Any:
    geometry = pointcloud.PointCloud(x, y, epsilon=0.5)
    solver = sinkhorn.Sinkhorn(threshold=1e-4, max_iterations=200)
    return solver(linear_problem.LinearProblem(geometry)).f


def _unrolled(_: Any, x: Any, y: Any) -> Any:
    geometry = pointcloud.PointCloud(x, y, epsilon=0.5)
    solver = sinkhorn.Sinkhorn(implicit_diff=None, min_iterations=20, max_iterations=20)
    return solver(linear_problem.LinearProblem(geometry)).reg_ot_cost


def _bures(scale: float) -> Any:
    return jnp.array([0.1, -0.2, scale, 0.1, 0.1, 1.0], jnp.float32)


CALLS: Calls = {
    "ott.math": [
        by(lambda _, x, g: utils.softmin(x, g[0], axis=0), X, array(0.5)),
        by(lambda _, x, g: utils.softmin(x, g[0], 1), A, array(0.5)),
        by(lambda _, x: utils.norm(x), X),
        by(lambda _, x: utils.norm(x, axis=1), A),
        by(lambda _, x: utils.norm(x, ord=1), X),
        by(lambda _, x: utils.logsumexp(x), X),
        by(lambda _, x, b: utils.logsumexp(x, b=b, axis=1), A, unit(3, 3)),
        by(lambda _, x: utils.lambertw(x), unit(3)),
        by(lambda _, x: utils.safe_log(x), unit(3)),
        by(lambda _, x, y: utils.gen_js(x, y), unit(3), unit(3)),
    ],
    "ott.roots": [
        by(lambda _, a: roots.sqrtm(_spd(a))[0], A),
        by(lambda _, a: roots.sqrtm_only(_spd(a)), A),
        by(lambda _, a: roots.inv_sqrtm_only(_spd(a)), A),
    ],
    "ott.costs": [
        by(lambda _, x, y: costs.Euclidean()(x, y), X, normal(3)),
        by(lambda _, x: costs.Euclidean()(x, x), X),
        by(lambda _, x, y: costs.Cosine()(x, y), X, normal(3)),
        by(lambda _, x, y: costs.PNormP(1.5)(x, y), X, normal(3)),
        by(lambda _, x, y: costs.Bures(2)(x, y), *(_bures(s) for s in (1.0, 2.0))),
    ],
    "ott.sinkhorn": [
        by(_sinkhorn, normal(3, 2), normal(4, 2)),
        by(_unrolled, normal(3, 2), normal(4, 2)),
    ],
    "ott.soft_sort": [
        by(lambda _, x: soft_sort.sort(x, epsilon=0.1), X),
        by(lambda _, x: soft_sort.ranks(x, epsilon=0.1), X),
    ],
}


def tables() -> Iterator[Table]:
    """One table."""
    yield Table("ott", ott, CALLS, [], {})
