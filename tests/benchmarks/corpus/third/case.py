"""An operation, its backward pass by hand, and the mistakes that people make in it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Wrong(NamedTuple):
    """A mistake: its name, the arguments whose gradient it makes wrong, and its kind in words."""

    name: str
    leaves: tuple[str, ...]
    kind: str


class Case(NamedTuple):
    """A function, its inputs, a backward pass, and mistakes in it.

    Attributes:
      name: of the operation.
      forward: `(*args) -> y`.
      backward: `(wrong, args, y, dy) -> grads`; `wrong` is a mistake's name, or "" for none.
      inputs: `rng -> args`.
      wrong: the mistakes.
      intended: a function whose gradient is meant, where forward's is not.
      rule: `(forward, backward) -> function`: how the rule is put on.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: Callable[[np.random.Generator], tuple[Any, ...]]
    wrong: tuple[Wrong, ...]
    intended: Callable[..., Any] | None
    rule: Callable[..., Any]


def custom(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A `jax.custom_vjp` that keeps its arguments and its output."""

    def rule(*args: Any) -> Any:
        return forward(*args)

    rule.__name__ = forward.__name__
    rule.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # functions declare none
    with_rule = jax.custom_vjp(rule)

    def fwd(*args: Any) -> Any:
        y = forward(*args)
        return y, (args, y)

    def bwd(kept: Any, dy: Any) -> Any:
        return tuple(backward(*kept, dy))

    with_rule.defvjp(fwd, bwd)
    return with_rule


def hijax(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A `VJPHiPrimitive` that keeps the same."""
    from jax.experimental.hijax import VJPHiPrimitive

    class Primitive(VJPHiPrimitive):
        def __init__(self, avals: Any, out: Any):
            self.in_avals, self.out_aval, self.params = avals, out, {}
            super().__init__()

        def expand(self, *args: Any) -> Any:
            return forward(*args)

        def vjp_fwd(self, nzs_in: Any, /, *args: Any) -> Any:
            y = self(*args)
            return y, (args, y)

        def vjp_bwd_retval(self, res: Any, outgrad: Any, /) -> Any:
            return tuple(backward(*res, outgrad))

    def rule(*args: Any) -> Any:
        avals = tuple(jax.tree.map(jax.typeof, a) for a in args)
        out = jax.tree.map(jax.typeof, jax.eval_shape(forward, *args))
        return Primitive(avals, out)(*args)

    rule.__name__ = forward.__name__
    rule.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # functions declare none
    return rule


def case(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Callable[[np.random.Generator], tuple[Any, ...]],
    *wrong: tuple[str, str, str],
    intended: Callable[..., Any] | None = None,
    rule: Callable[..., Any] = custom,
    name: str = "",
) -> Case:
    """A case; a mistake is (name, leaves separated by blanks, kind)."""
    mistakes = tuple(Wrong(n, tuple(leaves.split()), kind) for n, leaves, kind in wrong)
    name = name or forward.__name__
    return Case(name, forward, backward, inputs, mistakes, intended, rule)


def function(case: Case, wrong: str = "") -> Callable[..., Any]:
    """The case's function with its rule, right or wrong."""
    return case.rule(case.forward, functools.partial(case.backward, wrong))


def floats(*shapes: Any, positive: bool = False, dtype: Any = jnp.float32) -> Any:
    """Standard normal arguments of these shapes; what is no tuple is given as it is."""

    def inputs(rng: np.random.Generator) -> tuple[Any, ...]:
        def one(shape: Any) -> Any:
            if not isinstance(shape, tuple):
                return shape
            x = rng.standard_normal(shape)
            return jnp.asarray(abs(x) + 0.5 if positive else x, dtype)

        return tuple(map(one, shapes))

    return inputs
