"""Where floats are equal, or an absolute value is of zero: which branch is taken.

JAX takes one, or a slope between. Here the choice is told, "first" or "last", so that the slopes on
both sides of a kink are had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from funprop import trees
from funprop.verify.truth.internals import bind


def _max(ties: str, eqn: Any, a: Any, b: Any) -> Any:
    return jnp.where(a >= b if ties == "first" else a > b, a, b)


def _min(ties: str, eqn: Any, a: Any, b: Any) -> Any:
    return jnp.where(a <= b if ties == "first" else a < b, a, b)


def _abs(ties: str, eqn: Any, a: Any) -> Any:
    return jnp.where(a >= 0 if ties == "first" else a > 0, a, -a)


def _comparison(strict: Callable, lax_: Callable) -> Callable:
    def compare(ties: str, eqn: Any, a: Any, b: Any) -> Any:
        if not trees.is_float(a):
            return bind(eqn, [a, b], eqn.params)[0]
        return lax_(a, b) if ties == "first" else strict(a, b)

    return compare


def _reduced(pick: Callable) -> Callable:
    def reduce(ties: str, eqn: Any, a: Any) -> Any:
        axes = tuple(eqn.params["axes"])
        rest = tuple(i for i in range(a.ndim) if i not in axes)
        flat = jnp.transpose(a, (*rest, *axes)).reshape(*(a.shape[i] for i in rest), -1)
        flat = flat if ties == "first" else flat[..., ::-1]
        return jnp.take_along_axis(flat, pick(flat, -1)[..., None], -1)[..., 0]

    return reduce


TIES = {
    "max": _max,
    "min": _min,
    "abs": _abs,
    "gt": _comparison(jnp.greater, jnp.greater_equal),
    "ge": _comparison(jnp.greater, jnp.greater_equal),
    "lt": _comparison(jnp.less, jnp.less_equal),
    "le": _comparison(jnp.less, jnp.less_equal),
    "reduce_max": _reduced(jnp.argmax),
    "reduce_min": _reduced(jnp.argmin),
}
