"""A jaxpr as a flat list of operations: calls opened, names of values kept, the platform chosen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

if TYPE_CHECKING:
    from funprop.deriving.trace import Place, Program

# Where a primitive keeps the program that it calls, and no more than calls.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
SAME = {
    "stop_gradient",
    "copy",
    "copy_p",
    "optimization_barrier",
    "sharding_constraint",
    "device_put",
}


@dataclasses.dataclass(eq=False)
class Value:
    """What one operation gives and others take."""

    shape: tuple[int, ...]
    dtype: Any
    hint: str = ""
    number: Any = None
    uses: int = 0
    places: set[Any] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(eq=False)
class Operation:
    """One primitive, applied."""

    name: str
    takes: list[Value]
    gives: list[Value]
    params: dict[str, Any]
    place: Place | None


class Flat:
    """The operations of one function of the program, in order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operations: list[Operation] = []
        self.consts: list[tuple[Value, Any]] = []

    def open(self, closed: Any, takes: list[Value], stack: str = "") -> list[Value]:
        """Append what a jaxpr computes of these; give what it gives."""
        jaxpr, consts = (
            (closed.jaxpr, closed.consts) if isinstance(closed, ClosedJaxpr) else (closed, [])
        )
        values: dict[Any, Value] = dict(zip(jaxpr.invars, takes, strict=True))
        for variable, const in zip(jaxpr.constvars, consts, strict=True):
            values[variable] = self.const(const, variable.aval)

        def value_of(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return self.const(atom.val, atom.aval)
            return values[atom]

        for equation in jaxpr.eqns:
            here = f"{stack}/{equation.source_info.name_stack}"
            given = [value_of(atom) for atom in equation.invars]
            for variable, value in zip(
                equation.outvars, self.one(equation, given, here), strict=True
            ):
                values[variable] = value
        return [value_of(atom) for atom in jaxpr.outvars]

    def const(self, const: Any, aval: Any) -> Value:
        if not aval.shape and not jnp.issubdtype(aval.dtype, jax.dtypes.extended):
            return Value((), aval.dtype, number=np.asarray(const))
        value = Value(aval.shape, aval.dtype)
        self.consts.append((value, const))
        return value

    def one(self, equation: Any, takes: list[Value], stack: str) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        avals = [variable.aval for variable in equation.outvars]
        if name in CALLS:
            return self.open(params[CALLS[name]], takes, stack)
        if name == "name":  # the innermost of several is kept: what gave it
            takes[0].hint = takes[0].hint or params["name"]
            return takes
        if name in SAME:
            return takes
        if name == "convert_element_type" and takes[0].dtype == avals[0].dtype:
            return takes
        if name == "convert_element_type" and takes[0].number is not None:
            return [Value((), avals[0].dtype, number=takes[0].number.astype(avals[0].dtype))]
        if name == "platform_index":  # what is written for any platform
            platforms = params["platforms"]
            default = [i for i, which in enumerate(platforms) if which is None]
            return [Value((), np.int32, number=np.int32((default or [len(platforms) - 1])[0]))]
        if name == "cond" and takes[0].number is not None:
            return self.open(params["branches"][int(takes[0].number)], takes[1:], stack)
        if name == "custom_linear_solve":  # its rules for derivatives have been applied
            lengths = params["const_lengths"]
            begin = lengths.matvec + lengths.vecmat
            takes = [*takes[begin : begin + lengths.solve], *takes[sum(lengths) :]]
            return self.open(params["jaxprs"].solve, takes, stack)
        gives = [Value(tuple(aval.shape), aval.dtype) for aval in avals]
        place = self.program.place(stack)
        self.operations.append(Operation(name, takes, gives, params, place))
        return gives

    def count(self, results: list[Value]) -> None:
        """How often, and where, each value is used; drop what is not."""
        needed = set(results)
        kept = []
        for operation in reversed(self.operations):
            if not needed.isdisjoint(operation.gives):
                kept.append(operation)
                needed.update(operation.takes)
        self.operations = kept[::-1]
        for value in results:
            value.uses += 2  # a result has a name
        for operation in self.operations:
            for value in operation.takes:
                value.uses += 2 if operation.name in ("scan", "while", "cond") else 1
                value.places.add(operation.place)
