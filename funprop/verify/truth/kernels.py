"""Interpreted Pallas kernels taken apart: what one computes, as a jaxpr of ordinary steps.

In interpret mode a kernel *is* a program of JAX: its body, once for each place of the grid, on
blocks of arrays. JAX writes that as a loop that it cannot differentiate in reverse; the number of
turns is known, so here it is a scan. A kernel that a device runs is left as it is.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.extend.core
import numpy as np
from jax import lax

from funprop.verify.truth.binding import bind


def taken_apart(eqn: Any) -> Any:
    """The jaxpr of what an equation's kernel computes; `None` if it is no kernel, not interpreted,
    or JAX's interpreter gives no loop of known length."""
    if eqn.primitive.name != "pallas_call" or eqn.params.get("interpret") is not True:
        return None
    return _taken_apart(_Held(eqn))


class _Held:
    """An equation, equal to itself alone."""

    def __init__(self, eqn: Any):
        self.eqn = eqn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.eqn is other.eqn

    def __hash__(self) -> int:
        return id(self.eqn)


@functools.lru_cache(maxsize=256)
def _taken_apart(held: _Held) -> Any:
    eqn = held.eqn
    grid = eqn.params["grid_mapping"].grid
    if not all(isinstance(n, int) for n in grid):
        return None
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    wide = any(a.dtype in (np.float64, np.int64, np.uint64) for a in avals)
    try:
        with jax.enable_x64(wide):
            interpreted = jax.make_jaxpr(functools.partial(_interpreted, eqn.params))(*avals)
            run = functools.partial(_by_turns, interpreted, math.prod(grid))
            return jax.make_jaxpr(run)(*avals)
    except Exception:  # what JAX's interpreter does not know: the kernel is only run
        return None


def _interpreted(params: dict[str, Any], *args: Any) -> Any:
    from jax._src.pallas.hlo_interpreter import pallas_call_hlo_interpret

    return pallas_call_hlo_interpret(
        *args, **{k: v for k, v in params.items() if k not in ("interpret", "backend")}
    )


def _by_turns(interpreted: Any, turns: int, *args: Any) -> list[Any]:
    """The interpreter's program, its one loop over the grid as a scan."""
    jaxpr = getattr(interpreted, "jaxpr", interpreted)
    env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
    env.update(zip(jaxpr.constvars, interpreted.consts, strict=True))
    (loop,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "while")
    for eqn in jaxpr.eqns:
        inputs = [
            atom.val if isinstance(atom, jax.extend.core.Literal) else env[atom]
            for atom in eqn.invars
        ]
        run = functools.partial(_scanned, turns) if eqn is loop else bind
        env.update(zip(eqn.outvars, run(eqn, inputs, eqn.params), strict=True))
    return [env[atom] for atom in jaxpr.outvars]


def _scanned(turns: int, eqn: Any, inputs: list[Any], params: dict[str, Any]) -> list[Any]:
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    consts, carry = inputs[n_cond : n_cond + n_body], inputs[n_cond + n_body :]
    turn = jax.extend.core.jaxpr_as_fun(params["body_jaxpr"])
    if turns == 1:
        return turn(*consts, *carry)
    return lax.scan(lambda carry, _: (turn(*consts, *carry), None), carry, length=turns)[0]
