"""Calls of quadax, flowjax and softjax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flowjax
import flowjax.bijections as bij
import jax
import jax.numpy as jnp
import quadax
import softjax

from tests.benchmarks.others.call import Calls, Table, array, by, normal

A = array(0.7)
X = array(0.9, -0.3, 0.2, 0.5)


def _integral(rule: str, **options: Any) -> Any:
    def integral(_: Any, a: Any, end: Any) -> Any:
        interval = jnp.stack([jnp.zeros(()), end[0]])
        return getattr(quadax, rule)(
            lambda t, a: jnp.exp(-a * t * t), interval, args=(a[0],), **options
        )[0]

    return integral


QUADAX: Calls = {
    "quadax.integrals": [
        by(_integral("quadgk", max_ninter=3), A, array(1.5)),
        by(_integral("quadgk", max_ninter=3, adjoint=quadax.LeibnizAdjoint()), A, array(1.5)),
        by(_integral("quadcc", max_ninter=3, adjoint=quadax.LeibnizAdjoint()), A, array(1.5)),
        by(_integral("romberg", divmax=5, adjoint=quadax.LeibnizAdjoint()), A, array(1.5)),
        by(_integral("quadts", max_ninter=3), A, array(1.5)),
    ],
    "quadax.samples": [
        by(lambda _, y: quadax.simpson(y, dx=0.1), normal(5)),
        by(lambda _, y: quadax.trapezoid(y, dx=0.1), normal(5)),
    ],
}


def _bisect(bijection: Any, y: Any, condition: Any = None) -> Any:
    low, high = jnp.full_like(y, -8.0), jnp.full_like(y, 8.0)

    def halve(_: int, ends: Any) -> Any:
        low, high = ends
        mid = (low + high) / 2
        below = bijection.transform(mid, condition) < y
        return jnp.where(below, mid, low), jnp.where(below, high, mid)

    low, high = jax.lax.fori_loop(0, 40, halve, (low, high))
    return (low + high) / 2


LEAKY = bij.LeakyTanh(1.0, (4,))


def _cube(_: Any, y: Any, scale: Any) -> Any:
    bijection = bij.Chain([bij.Affine(jnp.zeros(4), scale), LEAKY])
    return bij.NumericalInverse(bijection, _bisect).inverse(y)


FLOWJAX: Calls = {
    "flowjax.NumericalInverse": [by(_cube, X, 1 + X**2)],
    "flowjax.bijections": [
        by(lambda _, x: bij.Tanh((4,)).transform_and_log_det(x), X),
        by(lambda _, x: bij.SoftPlus((4,)).transform_and_log_det(x), X),
        by(lambda _, x: LEAKY.transform_and_log_det(x), 3 * X),
        by(lambda _, x: bij.Planar(jax.random.key(0), dim=4).transform(x), X),
        by(
            lambda _, x: jax.vmap(
                bij.RationalQuadraticSpline(knots=4, interval=2).transform_and_log_det
            )(x),
            X,
        ),
    ],
}

MODES = ("smooth", "c0", "c1", "c2")
SOFTJAX: Calls = {
    "softjax.sort": [
        by(lambda _, x, m=mode: softjax.sort(x, method="softsort", mode=m), X) for mode in MODES
    ]
    + [
        by(lambda _, x, m=mode: softjax.sort(x, method="fast_soft_sort", mode=m), X)
        for mode in MODES
    ]
    + [by(lambda _, x: softjax.sort(x, method="smooth_sort"), X)]
    + [by(lambda _, x: softjax.sort(x, method="sorting_network"), X)],
    "softjax.argmax": [by(lambda _, x, m=mode: softjax.argmax(x, mode=m), X) for mode in MODES],
    "softjax.rank": [by(lambda _, x: softjax.rank(x, method="fast_soft_sort"), X)],
    "softjax.elementwise": [
        by(lambda _, x, f=name: getattr(softjax, f)(x), X)
        for name in ("abs", "relu", "sign", "round", "heaviside", "sqrt", "log", "arccos", "norm")
    ],
    "softjax.straight_through": [by(lambda _, x: softjax.max_st(x), X)],
}


def tables() -> Iterator[Table]:
    """Three packages."""
    yield Table("quadax", quadax, QUADAX, [], {})
    yield Table("flowjax", flowjax, FLOWJAX, [], {})
    yield Table("softjax", softjax, SOFTJAX, [], {})
