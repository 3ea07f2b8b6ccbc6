"""Functions whose loops go on until they are at rest, however early they would stop.

A solver stops where it is near enough to the solution. What it solves for has a derivative, and so
has what it gives, but the two are not the same: only at rest they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.subject import is_floating
from funprop.verify.truth.control_flow import CONTROL_FLOW
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.internals import equations, inner_jaxprs, open_jaxpr

MOST = 2**13  # turns beyond those that a loop makes itself
STILL = 64 * float(np.finfo(np.float64).eps)  # what is moved by less, relative, is at rest ...
IN_A_ROW = 3  # ... after so many such turns: where it turns back it is still for one


def stops_early(jaxpr: Any) -> bool:
    """Whether there is a loop that ends by the size of numbers, and not by their count."""
    return any(map(_by_size, equations(jaxpr)))


def _by_size(eqn: Any) -> bool:
    if eqn.primitive.name != "while":
        return False
    condition, _ = open_jaxpr(eqn.params["cond_jaxpr"])
    read = {id(atom) for inner in condition.eqns for atom in inner.invars}
    read |= {id(atom) for atom in condition.outvars}  # a flag that says that it is done
    carried = condition.invars[eqn.params["cond_nconsts"] :]
    return any(id(v) in read and not jnp.issubdtype(v.aval.dtype, jnp.integer) for v in carried)


def at_rest(jaxpr: Any) -> AtRest:
    """What runs this jaxpr, made by `without_unused`, with its loops at rest."""
    read = set(map(id, open_jaxpr(jaxpr)[0].outvars))
    for eqn in equations(jaxpr):
        read.update(map(id, eqn.invars))
        read.update(id(v) for inner in inner_jaxprs(eqn) for v in open_jaxpr(inner)[0].outvars)
    return AtRest(wide=True, used=frozenset(read))


@dataclasses.dataclass(frozen=True)
class AtRest(Evaluate):
    """Runs a jaxpr with every loop in it that ends by a size until it is at rest.

    A loop is at rest where what is used of its result no longer moves; what it carries beside, as
    the momentum of a descent, may. Where that does not happen in time its result is NaN. Where a
    turn more would divide by zero, as one of conjugate gradients at the solution, it ends before.

    Attributes:
      used: of which variables something is made, by their ids.
    """

    used: frozenset[int] = frozenset()

    def equation(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        """The outputs of one equation."""
        if _by_size(eqn):
            return self._to_rest(eqn, inputs)
        return super().equation(eqn, inputs)

    def _to_rest(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        params, run = eqn.params, Evaluate(wide=self.wide)
        start = params["cond_nconsts"]
        consts = inputs[start : start + params["body_nconsts"]]
        places = [
            i for i, v in enumerate(eqn.outvars) if is_floating(v.aval) and id(v) in self.used
        ]

        def turn(state: Any) -> Any:
            carry, still, n = state
            new = run(params["body_jaxpr"], *consts, *carry)
            breaks = _any(
                jnp.any(jnp.isfinite(a) & ~jnp.isfinite(b))
                for a, b in zip(carry, new, strict=True)
                if is_floating(a)
            )
            moved = [
                jnp.max(jnp.abs(new[i] - carry[i]), initial=0)
                > STILL * jnp.max(jnp.abs(new[i]), initial=0)
                for i in places
            ]
            still = jnp.where(breaks, IN_A_ROW, jnp.where(_any(moved), 0, still + 1))
            kept = [jnp.where(breaks, a, b) for a, b in zip(carry, new, strict=True)]
            return kept, still, n + 1

        carry = CONTROL_FLOW["while"](run, params, inputs)
        state = (carry, jnp.int32(0), jnp.int32(0))
        carry, still, _ = lax.while_loop(lambda s: (s[1] < IN_A_ROW) & (s[2] < MOST), turn, state)
        return [jnp.where(still < IN_A_ROW, jnp.nan, v) if is_floating(v) else v for v in carry]


def _any(conditions: Any) -> Any:
    found = list(conditions)
    return jnp.any(jnp.stack(found)) if found else jnp.bool_(False)
