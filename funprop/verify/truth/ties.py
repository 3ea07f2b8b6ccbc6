"""Where floats are equal, or an absolute value is of zero: which branch is taken.

JAX takes one, or a slope between. Here the choice is told, the first or the last, so that the
slopes on both sides of a kink are had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from funprop import trees
from funprop.verify.truth.binding import bind
from funprop.verify.truth.internals import equations, only_calls


def _above(first: Any, a: Any, b: Any) -> Any:
    """Whether `a` is above `b`, or equal to it where the first is to be taken."""
    return (a > b) | ((a == b) & first)


def _max(first: Any, eqn: Any, a: Any, b: Any) -> Any:
    return jnp.where(_above(first, a, b), a, b)


def _min(first: Any, eqn: Any, a: Any, b: Any) -> Any:
    return jnp.where(_above(first, b, a), a, b)


def _abs(first: Any, eqn: Any, a: Any) -> Any:
    return jnp.where(_above(first, a, 0), a, -a)


def _comparison(compare: Callable[..., Any]) -> Callable[..., Any]:
    def chosen(first: Any, eqn: Any, a: Any, b: Any) -> Any:
        return compare(first, a, b) if trees.is_float(a) else bind(eqn, [a, b], eqn.params)[0]

    return chosen


def _reduced(pick: Callable) -> Callable:
    def reduce(first: Any, eqn: Any, a: Any) -> Any:
        axes = tuple(eqn.params["axes"])
        rest = tuple(i for i in range(a.ndim) if i not in axes)
        flat = jnp.transpose(a, (*rest, *axes)).reshape(*(a.shape[i] for i in rest), -1)
        flat = jnp.where(first, flat, flat[..., ::-1])
        return jnp.take_along_axis(flat, pick(flat, -1)[..., None], -1)[..., 0]

    return reduce


# What each primitive gives at ties: `(whether the first, equation, *inputs) -> output`.
TIES: dict[str, Callable[..., Any]] = {
    "max": _max,
    "min": _min,
    "abs": _abs,
    "gt": _comparison(_above),
    "ge": _comparison(_above),
    "lt": _comparison(lambda first, a, b: _above(first, b, a)),
    "le": _comparison(lambda first, a, b: _above(first, b, a)),
    "reduce_max": _reduced(jnp.argmax),
    "reduce_min": _reduced(jnp.argmin),
}

# What is made of these has no kink where its derivative is finite.
_SMOOTH = (
    "add", "add_any", "sub", "mul", "div", "neg", "square", "integer_pow", "sqrt", "rsqrt",
    "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sin", "cos", "erf", "dot_general",
    "conv_general_dilated", "reduce_sum", "cumsum", "select_n", "gather", "scatter-add",
    "scatter_add", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev",
    "concatenate", "split", "slice", "dynamic_slice", "pad", "copy", "convert_element_type",
)  # fmt: skip


def may_have_kinks(jaxpr: Any) -> bool:
    """Whether a function's slopes may jump: nobody knows so of all that it consists of."""
    return not all(map(_is_smooth, equations(jaxpr)))


def _is_smooth(eqn: Any) -> bool:
    name = eqn.primitive.name
    if only_calls(eqn) or name == "scan":
        return True  # what it calls is asked on its own
    if not any(trees.is_float(atom.aval) for atom in eqn.invars):
        return True
    return name in _SMOOTH and all(trees.is_float(atom.aval) for atom in eqn.outvars)
