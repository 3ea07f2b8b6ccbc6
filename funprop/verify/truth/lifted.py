"""Custom rules that outlive the trace in which they are called.

A rule's functions are Python: they may close over values of the function around them, or be given
arrays as arguments that are not differentiated. Such a value ends with the trace that it is of, and
the rule is judged afterwards. So these values are made its first input, one without a gradient.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.core
import numpy as np

from funprop.verify.subject import is_floating
from funprop.verify.truth.rule_names import GIVEN


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, of a trace or not."""
    return isinstance(leaf, (jax.Array, np.ndarray))


def lifted(rule: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """A rule, and its arguments, that holds no array of the trace around it: what it closes over,
    and what stands among the arguments that are not differentiated, is given it first."""
    static = sorted(getattr(rule, "nondiff_argnums", ()))
    if kwargs or any(i >= len(args) for i in static):
        bound = inspect.signature(rule.fun).bind(*args, **kwargs)
        bound.apply_defaults()
        args = bound.args
    leaves, tree = jax.tree.flatten([args[i] for i in static])
    # Of values alone: an array that is no tracer may be a shape, and outlives the trace anyway.
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.core.Tracer)]
    rest = [i for i in range(len(args)) if i not in static]
    if not static and _holds_tracers(rule, 4):
        return _closed(rule, tuple(args))
    if not places:
        return rule, tuple(args)

    def fixed(arrays: list[Any]) -> list[Any]:
        filled = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(tree, [filled[i] for i in range(len(leaves))])

    def ordered(given: list[Any], moving: tuple[Any, ...]) -> list[Any]:
        by_place = dict(zip((*static, *rest), (*fixed(given), *moving), strict=True))
        return [by_place[i] for i in range(len(args))]

    def function(given: list[Any], *moving: Any) -> Any:
        return rule.fun(*ordered(given, moving))

    functools.update_wrapper(function, rule.fun)
    names = list(inspect.signature(rule.fun).parameters)
    names = [names[i] if i < len(names) else f"args[{i}]" for i in rest]
    _sign(function, names)
    if isinstance(rule, jax.custom_jvp):
        given_first: Any = jax.custom_jvp(function)
        jvp: Any = rule.jvp
        given_first.defjvp(lambda p, t: jvp(*fixed(p[0]), tuple(p[1:]), tuple(t[1:])))
    else:
        given_first = jax.custom_vjp(function)

        def forward(given: list[Any], *moving: Any) -> Any:
            with _called_plainly(rule):
                y, residuals = rule.fwd(*ordered(given, moving))
            return y, (residuals, given)

        def backward(residuals: Any, dy: Any) -> Any:
            return None, *rule.bwd(*fixed(residuals[1]), residuals[0], dy)

        _sign(forward, names)
        given_first.defvjp(forward, backward, symbolic_zeros=rule.symbolic_zeros)
    return given_first, ([leaves[i] for i in places], *(args[i] for i in rest))


@contextlib.contextmanager
def _called_plainly(rule: Any) -> Iterator[None]:
    """A rule's forward pass may call its function, where JAX forbids that what is not to be
    differentiated be of a trace."""
    kind, original = type(rule), type(rule).__call__

    def called(other: Any, *args: Any, **kwargs: Any) -> Any:
        return rule.fun(*args, **kwargs) if other is rule else original(other, *args, **kwargs)

    kind.__call__ = called
    try:
        yield
    finally:
        kind.__call__ = original


def _holds_tracers(value: Any, depth: int) -> bool:
    """Whether a function closes over a value of a trace."""
    if isinstance(value, jax.core.Tracer):
        return True
    if depth == 0:
        return False
    if isinstance(value, (jax.custom_jvp, jax.custom_vjp)):
        parts = [getattr(value, name, None) for name in ("fun", "jvp", "fwd", "bwd")]
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif inspect.isfunction(value):
        parts = []
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty one
                parts.append(cell.cell_contents)
    else:
        leaves = jax.tree.leaves(value)
        parts = [] if len(leaves) == 1 and leaves[0] is value else leaves
    return any(_holds_tracers(part, depth - 1) for part in parts)


def _closed(rule: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A rule whose functions close over values of a trace, as one that is given them."""
    if not all(is_array(v) and is_floating(v) for v in jax.tree.leaves(args)):
        return rule, args
    with _called_plainly(rule):
        parts: dict[str, Any] = {"fun": _traced(rule.fun, *args)}
        outputs = parts["fun"][1]
        try:
            if isinstance(rule, jax.custom_jvp):
                parts["jvp"] = _traced(rule.jvp, args, args)
            else:
                parts["fwd"] = _traced(rule.fwd, *args)
                parts["bwd"] = _traced(rule.bwd, parts["fwd"][1][1], outputs)
        except Exception:  # a backward pass that cannot be traced, though none may ask for it
            return rule, args

    def run(name: str, given: dict[str, Any], *args: Any) -> Any:
        jaxpr, spec = parts[name]
        found = jax.core.eval_jaxpr(jaxpr.jaxpr, given[name], *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(spec), found)

    def function(given: Any, *moving: Any) -> Any:
        return run("fun", given, *moving)

    functools.update_wrapper(function, rule.fun)
    names = list(inspect.signature(rule.fun).parameters)
    names = names[: len(args)] if len(names) >= len(args) else ["args"] * len(args)
    _sign(function, names)
    if isinstance(rule, jax.custom_jvp):
        closed: Any = jax.custom_jvp(function)
        closed.defjvp(lambda p, t: run("jvp", p[0], tuple(p[1:]), tuple(t[1:])))
    else:
        closed = jax.custom_vjp(function)

        def forward(given: Any, *moving: Any) -> Any:
            y, residuals = run("fwd", given, *moving)
            return y, (residuals, given)

        _sign(forward, names)
        closed.defvjp(forward, lambda r, dy: (None, *run("bwd", r[1], r[0], dy)))
    return closed, ({name: jaxpr.consts for name, (jaxpr, _) in parts.items()}, *args)


def _traced(function: Any, *args: Any) -> tuple[Any, Any]:
    return jax.make_jaxpr(function, return_shape=True)(*args)


def _sign(function: Any, names: list[str]) -> None:
    """Give a function the names of its arguments after the first."""
    kinds = inspect.Parameter
    names = [
        GIVEN,
        *(n if n.isidentifier() and names.count(n) == 1 else f"x{i}" for i, n in enumerate(names)),
    ]
    function.__signature__ = inspect.Signature([kinds(n, kinds.POSITIONAL_ONLY) for n in names])
