"""Random numbers that a step draws: whether it does, which, and the same step with them held still.

Laws such as "in another order the examples give the same update" hold of a step with dropout only
where every example meets the same noise. So every draw is replaced by one and the same number, the
middle of its range, a hair below: dropout keeps all, a normal is zero, a permutation is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.internals import equations, inner_jaxprs, open_jaxpr

DRAWS = ("random_bits",)  # what every function of `jax.random` draws from
OTHERS = ("rng_bit_generator", "rng_uniform", "threefry2x32")  # of those who go around it


def draws(jaxpr: Any) -> bool:
    """Whether a traced function draws random numbers."""
    return any(eqn.primitive.name in (*DRAWS, *OTHERS) for eqn in equations(jaxpr))


def can_be_quiet(jaxpr: Any) -> bool:
    """Whether all that it draws can be held still."""
    return not any(eqn.primitive.name in OTHERS for eqn in equations(jaxpr))


def quiet(jaxpr: Any) -> Any:
    """The same traced function, every random number the middle of its range."""
    inner, consts = open_jaxpr(jaxpr)
    inner = inner.replace(eqns=[_quiet_equation(eqn) for eqn in inner.eqns])
    if isinstance(jaxpr, jax.extend.core.ClosedJaxpr):
        return jax.extend.core.ClosedJaxpr(inner, list(consts))
    return inner


def _quiet_equation(eqn: Any) -> Any:
    if eqn.primitive.name in DRAWS:
        aval = eqn.outvars[0].aval
        middle = np.asarray((1 << (8 * aval.dtype.itemsize - 1)) - 1, aval.dtype)
        return _constant(eqn, middle)
    params = dict(eqn.params)
    for name, value in params.items():
        if isinstance(value, (tuple, list)) and any(map(_is_jaxpr, value)):
            params[name] = type(value)(quiet(v) if _is_jaxpr(v) else v for v in value)
        elif _is_jaxpr(value):
            params[name] = quiet(value)
    if "donated_invars" in params:
        params["donated_invars"] = (False,) * len(params["donated_invars"])
    return eqn.replace(params=params)


def _constant(eqn: Any, middle: np.ndarray) -> Any:
    """An equation that gives a constant in the place of what the equation draws."""
    shape = eqn.outvars[0].aval.shape
    full = jax.make_jaxpr(lambda x: jax.lax.broadcast_in_dim(x, shape, ()))(middle)
    (made,) = open_jaxpr(full)[0].eqns
    literal = jax.extend.core.Literal(middle, made.invars[0].aval)
    return made.replace(invars=[literal], outvars=eqn.outvars)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or isinstance(value, jax.extend.core.ClosedJaxpr)


def drawn(jaxpr: Any) -> Callable[..., list[Any]]:
    """The bits that a traced function draws for its inputs: one array for each draw.

    Loops are run turn by turn, so that each turn's draws are seen; what is drawn under a
    `while_loop`, a branch or on many devices is not.
    """

    def run(*leaves: Any) -> list[Any]:
        found: list[Any] = []

        def around(eqn: Any, inputs: list[Any], run: Callable[..., list[Any]]) -> list[Any]:
            outputs = run(inputs)
            if eqn.primitive.name in DRAWS:
                found.extend(outputs)
            return outputs

        Evaluate(around=around, unroll=True)(jaxpr, *leaves)
        return found

    return run


def narrowest(jaxpr: Any) -> float:
    """The rounding unit of the narrowest floats that a traced function computes with."""
    return max(
        (float(jnp.finfo(dtype).eps) for dtype in _float_dtypes(jaxpr)),
        default=float(np.finfo(np.float32).eps),
    )


def _float_dtypes(jaxpr: Any) -> Iterator[Any]:
    for eqn in equations(jaxpr):
        if inner_jaxprs(eqn):
            continue
        for var in eqn.outvars:
            dtype = getattr(var.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                yield dtype
