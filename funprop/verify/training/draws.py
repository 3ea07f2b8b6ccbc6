"""Random numbers that a step draws: whether it does, which, and the same step with them held still.

Laws such as "in another order the examples give the same update" hold of a step with dropout only
where every example meets the same noise, whatever the number of examples. So a draw is replaced by
numbers that depend on the place along its last axis alone, where that stands behind the axis of the
examples: multiples of the golden ratio (Weyl), of which about the right share lies below any rate,
so that dropout keeps what it should whichever way round it is written. What has no such axis (a
number for each example, a permutation) is all the middle of its range, a hair below: a normal is
zero, a permutation is none.
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
GOLDEN = (5**0.5 - 1) / 2
OTHERS = ("rng_bit_generator", "rng_uniform", "threefry2x32")  # of those who go around it


def draws(jaxpr: Any) -> bool:
    """Whether a traced function draws random numbers."""
    return any(eqn.primitive.name in (*DRAWS, *OTHERS) for eqn in equations(jaxpr))


def can_be_quiet(jaxpr: Any) -> bool:
    """Whether all that it draws can be held still."""
    return not any(eqn.primitive.name in OTHERS for eqn in equations(jaxpr))


def quiet(jaxpr: Any, axis: int = 0) -> Any:
    """The same traced function, its random numbers held still.

    Args:
      jaxpr: of the function.
      axis: of the examples.
    """
    inner, consts = open_jaxpr(jaxpr)
    inner = inner.replace(eqns=[new for eqn in inner.eqns for new in _quiet(eqn, axis)])
    if isinstance(jaxpr, jax.extend.core.ClosedJaxpr):
        return jax.extend.core.ClosedJaxpr(inner, list(consts))
    return inner


def _quiet(eqn: Any, axis: int) -> list[Any]:
    if eqn.primitive.name in DRAWS:
        return _held(eqn, axis)
    params = dict(eqn.params)
    for name, value in params.items():
        if isinstance(value, (tuple, list)) and any(map(_is_jaxpr, value)):
            params[name] = type(value)(quiet(v, axis) if _is_jaxpr(v) else v for v in value)
        elif _is_jaxpr(value):
            params[name] = quiet(value, axis)
    if "donated_invars" in params:
        params["donated_invars"] = (False,) * len(params["donated_invars"])
    return [eqn.replace(params=params)]


def _held(eqn: Any, axis: int) -> list[Any]:
    """Equations that give, in the place of what the equation draws, numbers held still."""
    aval = eqn.outvars[0].aval
    shape, n = aval.shape, 8 * aval.dtype.itemsize
    middle = np.asarray((1 << (n - 1)) - 1, aval.dtype)
    golden = np.asarray(int(GOLDEN * (1 << n)) | 1, aval.dtype)

    def full(x: Any) -> Any:
        return jax.lax.broadcast_in_dim(x, shape, ())

    def held(middle: Any, golden: Any) -> Any:  # unsigned integers: what overflows begins anew
        if len(shape) <= axis + 1:
            return full(middle)
        place = jax.lax.broadcasted_iota(aval.dtype, shape, len(shape) - 1)
        return full(middle) + place * full(golden)

    made, _ = open_jaxpr(jax.make_jaxpr(held)(middle, golden))
    values = dict(zip(made.invars, (middle, golden), strict=True))
    last = {made.outvars[0]: eqn.outvars[0]}
    return [
        each.replace(
            invars=[
                jax.extend.core.Literal(values[v], v.aval)
                if not isinstance(v, jax.extend.core.Literal) and v in values
                else v
                for v in each.invars
            ],
            outvars=[last.get(v, v) for v in each.outvars],
        )
        for each in made.eqns
    ]


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
