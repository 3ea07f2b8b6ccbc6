"""Which equation of a traced function first gives what is not finite.

`jax.debug_nans` stops at the first primitive that gives a NaN: the infinity that it came from is
passed by, and `jax.debug_infs` stops at those that are meant (a mask of `-inf`).
`jax.experimental.checkify` tells of NaN alone. So the trace is run equation by equation, by the
evaluation that `verify` has, and what is not finite in the result is followed back to its origin.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from funprop.nonfinite.numbers import Numbers, numbers, short
from funprop.trees import all_finite, is_float
from funprop.verify.truth.control_flow import CONTROL_FLOW
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.internals import (
    equation_name,
    equation_source,
    inner_jaxprs,
    of_jax,
    only_calls,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WRAPPED = re.compile(r"\b(?:jvp|transpose|vmap|checkpoint|rematted_computation)\(|\)")
WRITTEN = {"div": "{} / {}", "sub": "{} - {}", "add": "{} + {}", "mul": "{} * {}"}


class Equation(NamedTuple):
    """The first equation to give something that is not finite, of finite inputs.

    Attributes:
      told: what it computes, as `exp(105)`, with the numbers at the first place that went bad.
      source: file and line of the code that it comes from; empty where that is lost.
      scope: the names around it (`jax.named_scope`, as Flax gives its modules).
      dtype: of what it gives.
      numbers: of what it gives.
      largest: the largest finite number that it was given.
      output: which output of the function was followed back, by its number.
      given: which argument, by its number among all leaves, was not finite already; then the
        equation is but the argument.
    """

    told: str
    source: str
    scope: str
    dtype: str
    numbers: Numbers
    largest: float
    output: int = 0
    given: int | None = None

    def __str__(self) -> str:
        return f"{self.told} in {self.dtype}" + (f", {self.source}" if self.source else "")


def first_equation(function: Callable[..., Any], *args: Any) -> Equation | None:
    """The equation that made the first of the function's outputs that is not finite; `None` where
    all are, run so.

    Everything between is held: it takes the memory of all that the function computes.

    Example:
      >>> import jax
      >>> found = first_equation(lambda x: jnp.where(x > 0, jnp.exp(x), 0.0), jnp.array([9, 105.]))
      >>> found.told, found.numbers.kind
      ('exp(105)', 'infinite')
    """
    with jax.disable_jit(False):
        jaxpr = jax.make_jaxpr(function)(*args)
        walk = _Walk()
        run = Evaluate(around=walk, unroll=True)
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(args)]
        for i, leaf in enumerate(leaves):
            if _is_bad(leaf):
                given = Equation("", "", "", str(leaf.dtype), numbers(leaf), 0.0, given=i)
                walk.origins[id(leaf)] = leaf, given
        for i, output in enumerate(run(jaxpr, *leaves)):
            if id(output) in walk.origins:
                return walk.origins[id(output)][1]._replace(output=i)
        return None


class _Walk:
    """What stands around each equation."""

    def __init__(self) -> None:
        self.origins: dict[
            int, tuple[Any, Equation]
        ] = {}  # the value too: ids must not be used anew
        self.decided: dict[int, tuple[Any, Equation]] = {}  # of numbers by which others are chosen
        self.constants: dict[int, Any] = {}
        self.around: list[Any] = []

    def __call__(self, eqn: Any, inputs: list[Any], run: Callable[..., list[Any]]) -> list[Any]:
        inside = bool(inner_jaxprs(eqn)) and (only_calls(eqn) or eqn.primitive.name in CONTROL_FLOW)
        before = len(self.origins)
        self.around.append(eqn)
        for atom, value in zip(eqn.invars, inputs, strict=True):
            if isinstance(atom, jax.extend.core.Literal):
                self.constants[id(value)] = value
        outputs = run(inputs)
        fixed = [id(value) in self.constants for value in inputs]
        if all(fixed) and not inside:
            self.constants.update((id(output), output) for output in outputs)
            self.around.pop()
            return outputs
        parent = self.parent(inputs, fixed)
        if new := [o for o in outputs if id(o) not in self.origins and _is_bad(o)]:
            parent = parent or (self.first_since(before) if inside else None)
            if parent is None and eqn.primitive.name == "select_n":  # NaN put where infinity is
                parent = self.decision(inputs[:1])
            made = parent or self.equation(eqn, inputs, new[0])
            self.origins.update((id(output), (output, made)) for output in new)
        elif (by := parent or self.decision(inputs)) and not inside:
            counts = [output for output in outputs if not _is_float(output)]
            self.decided.update((id(output), (output, by)) for output in counts)
        self.around.pop()
        return outputs

    def parent(self, inputs: list[Any], fixed: list[bool]) -> Equation | None:
        each = zip(inputs, fixed, strict=True)
        known = (self.origins.get(id(value)) for value, constant in each if not constant)
        return next((found[1] for found in known if found), None)

    def decision(self, inputs: list[Any]) -> Equation | None:
        known = (self.decided.get(id(value)) for value in inputs if not _is_float(value))
        return next((found[1] for found in known if found), None)

    def first_since(self, before: int) -> Equation | None:
        found = list(self.origins.values())[before:]
        return found[0][1] if found else None

    def equation(self, eqn: Any, inputs: list[Any], output: Any) -> Equation:
        scope = "/".join(filter(None, (_scope(each) for each in self.around)))
        told = _told(eqn, inputs, output)
        largest = max((numbers(value).largest for value in inputs if _is_float(value)), default=0.0)
        made = numbers(output)
        return Equation(told, self.source(), scope, str(output.dtype), made, largest)

    def source(self) -> str:
        """Of the equation, or, inside a function of JAX (`jnp.log`), of its call: that is traced
        once, wherever it is called from."""
        for outer in self.around:
            if outer is self.around[-1] or (only_calls(outer) and of_jax(outer)):
                return equation_source(outer)
        return ""


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and is_float(value)


def _is_bad(value: Any) -> bool:
    return _is_float(value) and not bool(_all_finite(value))


_all_finite = jax.jit(all_finite)


def _scope(eqn: Any) -> str:
    return WRAPPED.sub("", str(eqn.source_info.name_stack)).strip("/")


def _told(eqn: Any, inputs: Sequence[Any], output: Any) -> str:
    """The equation with its numbers: those at the first bad place where it works place by place."""
    name = equation_name(eqn)
    floats = [value for value in inputs if _is_float(value)]
    at = numbers(output).at
    by_place = at is not None and all(jnp.shape(v) in ((), output.shape) for v in floats)
    if not floats:
        return name
    if name == "select_n":
        return f"a number put there that is {numbers(output).kind}"
    if by_place and len(floats) <= 2 and name not in ("cumsum", "cumprod", "dot_general"):
        here = [np.asarray(v if jnp.shape(v) == () else v[at]).item() for v in floats]
        written = WRITTEN.get(name) if len(here) == 2 else None
        told = [short(value) if not isinstance(value, complex) else str(value) for value in here]
        power = f", {eqn.params['y']}" if name == "integer_pow" else ""
        return written.format(*told) if written else f"{name}({', '.join(told)}{power})"
    largest = " and ".join(short(numbers(value).largest) for value in floats[:2])
    return f"{name} of numbers up to {largest}"
