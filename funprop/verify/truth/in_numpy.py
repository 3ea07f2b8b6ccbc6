"""A jaxpr run by NumPy: of few numbers, where to compile it takes longer than all of its runs.

In float64, integers and booleans only. What it holds beyond `numpy_primitives` is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core
import numpy as np

from funprop.verify.truth.internals import inner_jaxprs, only_calls, open_jaxpr, without_unused
from funprop.verify.truth.numpy_primitives import NotInNumpyError, in_numpy

MANY = 100_000  # numbers made in a run: with more, XLA's programs are worth their compiling

Run = Callable[..., Sequence[Any]]


def quickest(function: Callable[..., Any], jit: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays, traced once for arguments of a kind, and run by NumPy in 64 bits where
    it can be; else compiled by `jit`."""
    compiled = jit(function)
    made: dict[Any, Run | Exception] = {}

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        kind = structure, tuple((np.shape(v), getattr(v, "dtype", type(v))) for v in leaves)
        if not _x64() or any(isinstance(v, jax.core.Tracer) for v in leaves):
            return compiled(*args)
        if kind not in made:
            try:
                made[kind] = _made(function, args, jit)
            except Exception as error:  # what cannot be traced is not tried for all that follow
                made[kind] = error
        found = made[kind]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found(leaves)

    return run


def _x64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


def _made(function: Callable[..., Any], args: Any, jit: Callable[..., Any]) -> Run:
    jaxpr, outputs = jax.make_jaxpr(function, return_shape=True)(*args)
    structure = jax.tree.structure(outputs)
    by_numpy = program(jaxpr)
    if by_numpy is None:
        compiled = jit(jax.extend.core.jaxpr_as_fun(jaxpr))
        return lambda leaves: structure.unflatten(compiled(*leaves))

    def run(leaves: Any) -> Any:
        with np.errstate(all="ignore"):
            return structure.unflatten(by_numpy(*map(np.asarray, leaves)))

    return run


def program(jaxpr: Any) -> Run | None:
    """The jaxpr as a function of NumPy's arrays; `None` where it is to be compiled."""
    try:
        return _program(without_unused(jaxpr)) if _numbers(jaxpr) <= MANY else None
    except (NotInNumpyError, AttributeError, KeyError):  # or what another JAX calls otherwise
        return None


def _program(jaxpr: Any) -> Run:
    jaxpr, consts = open_jaxpr(jaxpr)
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    for v in (*jaxpr.constvars, *jaxpr.invars):
        _check_dtype(v.aval)

    def place(atom: Any) -> Any:
        if not isinstance(atom, jax.extend.core.Literal):
            return atom
        known[id(atom)] = np.asarray(atom.val, getattr(atom.aval, "dtype"))  # noqa: B009
        return id(atom)

    steps = [(_step(eqn), [*map(place, eqn.invars)], eqn.outvars) for eqn in jaxpr.eqns]
    results = [*map(place, jaxpr.outvars)]

    def run(*args: Any) -> list[Any]:
        env = known | dict(zip(jaxpr.invars, args, strict=True))
        for step, ins, outs in steps:
            env.update(zip(outs, step(*[env[v] for v in ins]), strict=True))
        return [env[v] for v in results]

    return run


def _step(eqn: Any) -> Run:
    for v in eqn.outvars:
        _check_dtype(v.aval)
    if only_calls(eqn):
        return _program(inner_jaxprs(eqn)[0])
    run = in_numpy(eqn)
    return run if eqn.primitive.multiple_results else lambda *inputs: (run(*inputs),)


def _check_dtype(aval: Any) -> None:
    dtype = getattr(aval, "dtype", None)
    if dtype != np.float64 and getattr(dtype, "kind", "") not in ("b", "i", "u"):
        raise NotInNumpyError


def _numbers(jaxpr: Any) -> int:
    eqns = open_jaxpr(jaxpr)[0].eqns
    made = sum(math.prod(getattr(v.aval, "shape", ())) for eqn in eqns for v in eqn.outvars)
    return made + sum(_numbers(inner) for eqn in eqns for inner in inner_jaxprs(eqn))
