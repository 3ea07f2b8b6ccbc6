"""What tells the rules of two calls apart, where the functions are of one name and place: made by
one function for several numbers, say."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

from funprop.verify.truth.internals import hi_primitive, is_rule, open_jaxpr

SIMPLE = (bool, int, float, complex, str, type(None))


def mark(eqn: Any) -> Hashable:
    """The same for calls of one rule, whatever arrays it closes over."""
    if eqn.primitive.name == "call_hi_primitive":
        primitive = hi_primitive(eqn)
        return type(primitive), _of(list(vars(primitive).values()), set())
    if not is_rule(eqn):  # the solution of a linear system
        return _of(eqn.params.get("jaxprs", ()), set())
    backward = ("bwd", "jvp_jaxpr_fun", "jvp", "transpose", "transpose_jaxpr")
    return tuple(_of(eqn.params[name], set()) for name in backward if name in eqn.params)


def _of(value: Any, seen: set[int]) -> Hashable:
    """The code of a function with what simple values it holds; a simple value; else a type."""
    if isinstance(value, SIMPLE):
        return type(value), value
    if hasattr(value, "eqns"):
        return str(open_jaxpr(value)[0])
    inside = functools.partial(_of, seen=seen)
    if isinstance(value, (tuple, list)):
        return tuple(map(inside, value))
    if isinstance(value, functools.partial):
        return inside([value.func, value.args, *value.keywords.items()])
    function = getattr(value, "f", value)  # as JAX wraps functions
    if not hasattr(function, "__code__"):
        return type(value), inside(_simple(value))
    if id(function) in seen:
        return type(value)
    seen.add(id(function))
    return function.__code__, inside([*_held(function), *(function.__defaults__ or ())])


def _simple(value: Any) -> list[Any]:
    """The numbers and words that an object of somebody's own has for attributes."""
    if type(value).__module__.partition(".")[0] in ("jax", "jaxlib", "numpy"):
        return []
    return [v for v in getattr(value, "__dict__", {}).values() if isinstance(v, SIMPLE)]


def _held(function: Any) -> list[Any]:
    """What a function closes over, and a method's object holds."""
    found = [getattr(function, "__self__", None)]
    for cell in getattr(function, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return found
