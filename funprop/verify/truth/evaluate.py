"""Functions run equation by equation: without custom rules, in float64, watched or changed.

A traced function, evaluated here, leaves out every custom rule, so that `jax.vjp` of it is the
derivative of what the forward pass computes; in float64 too, whatever dtypes the trace holds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.truth.binding import bind
from funprop.verify.truth.control_flow import CONTROL_FLOW
from funprop.verify.truth.internals import (
    equations,
    inner_jaxprs,
    is_rule,
    only_calls,
    open_jaxpr,
)
from funprop.verify.truth.primitives import KNOWN, OPAQUE
from funprop.verify.truth.solves import is_solve, solved
from funprop.verify.truth.ties import TIES


class NotWideError(TypeError):
    """The function holds a part that cannot be evaluated in float64."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How to run a jaxpr.

    Attributes:
      wide: in float64, whatever dtype the trace says.
      first: whether `max`, `min`, `abs` and comparisons of floats that are equal decide for the
        first or for the last, a boolean that may be traced; by default they do as JAX does.
      around: `(equation, inputs, run) -> outputs`, called in the place of `run(inputs)` for every
        equation outside of loops and branches.
      unroll: run scans step by step, so that `around` sees each step.
      log: where to note each call of a custom rule: `(equation, (inputs, whether it ran))`, the
        values with leading axes for the scans and devices that the call is under.
    """

    wide: bool = False
    first: Any = None
    around: Callable[..., list[Any]] | None = None
    unroll: bool = False
    log: list[Any] | None = None

    def __call__(self, jaxpr: Any, *args: Any) -> list[Any]:
        """The outputs of `jaxpr` for `args`."""
        jaxpr, consts = open_jaxpr(jaxpr)
        env: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            if isinstance(atom, jax.extend.core.Literal):
                dtype = getattr(atom.aval, "dtype")  # noqa: B009  # JAX's type declares none
                return self.widened(np.asarray(atom.val, dtype))
            return env[atom]

        env.update(zip(jaxpr.constvars, map(self.widened, consts), strict=True))
        env.update(zip(jaxpr.invars, map(self.widened, args), strict=True))
        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            run = functools.partial(self.equation, eqn)
            outputs = run(inputs) if self.around is None else self.around(eqn, inputs, run)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def widened(self, value: Any) -> Any:
        """`value` in float64 where that is asked for."""
        narrow = self.wide and _is_float(value) and value.dtype != np.float64
        return lax.convert_element_type(value, np.float64) if narrow else value

    @property
    def simple(self) -> bool:
        """Whether a control flow primitive without custom rules may run as it was traced."""
        return not (self.wide or self.first is not None or self.around or self.unroll)

    def logging_to(self, log: list[Any]) -> Evaluate:
        """The same, noting in another log, if it notes at all."""
        return dataclasses.replace(self, log=None if self.log is None else log)

    def unwatched(self) -> Evaluate:
        """The same with nothing around its equations."""
        return dataclasses.replace(self, around=None)

    def keep(self, whats: list[Any], values: list[Any]) -> None:
        """Add to the log, if there is one."""
        if self.log is not None:
            self.log.extend(zip(whats, values, strict=True))

    def equation(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        """The outputs of one equation."""
        name = eqn.primitive.name
        if is_rule(eqn) or is_solve(eqn):
            self.keep([eqn], [(inputs, jnp.ones((), bool))])
        if name in CONTROL_FLOW and (not self.simple or _holds_rules(eqn)):
            return CONTROL_FLOW[name](self, eqn.params, inputs)
        if only_calls(eqn):
            return self(inner_jaxprs(eqn)[0], *inputs)
        if is_solve(eqn):
            return solved(self.unwatched(), eqn, inputs)
        if self.first is not None and name in TIES:
            return [TIES[name](self.first, eqn, *inputs)]
        if self.wide and not _is_wide(eqn):
            return self.wide_equation(eqn, inputs)
        return bind(eqn, inputs, eqn.params)

    def wide_equation(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        """The outputs of an equation that was traced in a narrower dtype, in float64."""
        name = eqn.primitive.name
        if name in OPAQUE:
            raise NotWideError(f"{name} keeps the dtypes that it was traced with")
        if name == "reduce_precision":
            return inputs
        if name == "bitcast_convert_type":  # bits mean a number only in the dtype of the trace
            narrow = [
                lax.convert_element_type(v, atom.aval.dtype)
                for v, atom in zip(inputs, eqn.invars, strict=True)
            ]
            return [self.widened(v) for v in bind(eqn, narrow, eqn.params)]
        if name in _SCATTERS:
            keep = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
            params = {k: eqn.params[k] for k in keep}
            return [_SCATTERS[name](*inputs, **params)]
        params = {k: _wide_dtype(v) for k, v in eqn.params.items()}
        return [self.widened(v) for v in bind(eqn, inputs, params)]


def not_known(jaxpr: Any) -> str:
    """A primitive of which nobody here knows whose its derivative is; empty where there is none."""
    for eqn in equations(jaxpr, but=OPAQUE):
        name = eqn.primitive.name
        if name not in KNOWN or (name == "call_hi_primitive" and not only_calls(eqn)):
            return str(name)
    return ""


def through_bits(jaxpr: Any) -> bool:
    """Whether floats are taken apart into bits and put together again: JAX's derivative is zero."""
    casts = set()
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        if any(through_bits(inner) for inner in inner_jaxprs(eqn)):
            return True
        if eqn.primitive.name == "bitcast_convert_type":
            casts.add((_is_float(eqn.invars[0].aval), _is_float(eqn.outvars[0].aval)))
    return casts >= {(True, False), (False, True)}


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


def _is_wide(eqn: Any) -> bool:
    """Whether no float in the equation is narrower than float64."""
    avals = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
    return not any(
        hasattr(a, "dtype") and _is_float(a) and a.dtype != np.float64 for a in avals
    ) and all(v is _wide_dtype(v) for v in eqn.params.values())


def _wide_dtype(value: Any) -> Any:
    is_dtype = isinstance(value, np.dtype) or (
        isinstance(value, type) and issubclass(value, np.generic)
    )
    return np.dtype(np.float64) if is_dtype and jnp.issubdtype(value, jnp.floating) else value


def _holds_rules(eqn: Any) -> bool:
    return any(is_rule(e) or is_solve(e) for jaxpr in inner_jaxprs(eqn) for e in equations(jaxpr))


# Scatters hold a jaxpr of their own, in the dtype of the trace; made anew they fit any dtype.
_SCATTERS = {
    "scatter": lax.scatter,
    "scatter-add": lax.scatter_add,
    "scatter_add": lax.scatter_add,
    "scatter_mul": lax.scatter_mul,
    "scatter-mul": lax.scatter_mul,
    "scatter_min": lax.scatter_min,
    "scatter-min": lax.scatter_min,
    "scatter_max": lax.scatter_max,
    "scatter-max": lax.scatter_max,
}
