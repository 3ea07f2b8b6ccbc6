"""An operation, its right backward rule, and wrong ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Mutant(NamedTuple):
    """A wrong rule.

    Attributes:
      name: what is wrong.
      backward: `(args, y, dy) -> grads`.
      leaves: the arguments whose gradient is wrong.
      stories: the explanations that are right.
      forward: another forward pass, where the operation's own cannot show the mistake.
    """

    name: str
    backward: Callable[..., Any]
    leaves: tuple[str, ...]
    stories: tuple[str, ...]


class Operation(NamedTuple):
    """A function, its inputs, and rules for it.

    Attributes:
      name: of the operation.
      forward: `(*args) -> y`; `backward`: `(args, y, dy) -> grads`, `None` for integers.
      inputs: `rng -> args`, floats in float32.
      mutants: the wrong rules.
      scalable: which arguments may be scaled by 1e-4 to 1e4.
      kinks: other inputs, at kinks and ties.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: Callable[[np.random.Generator], tuple[Any, ...]]
    mutants: tuple[Mutant, ...]
    scalable: tuple[int, ...] = (0,)
    kinks: Callable[[np.random.Generator], tuple[Any, ...]] | None = None


def mutant(name: str, backward: Any, leaves: str, *stories: str) -> Mutant:
    """A wrong rule; `leaves` are separated by blanks."""
    return Mutant(name, backward, tuple(leaves.split()), stories)


def as_rule(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """The function with that backward pass as its rule; its arguments called as forward's are."""

    def rule(*args: Any) -> Any:
        return forward(*args)

    rule.__name__ = getattr(forward, "__name__", "rule")
    rule.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # functions declare none
    with_rule = jax.custom_vjp(rule)

    def fwd(*args: Any) -> Any:
        y = forward(*args)
        return y, (args, y)

    def bwd(kept: Any, dy: Any) -> Any:
        args, y = kept
        return tuple(backward(args, y, dy))

    with_rule.defvjp(fwd, bwd)
    return with_rule


def changed(backward: Callable[..., Any], place: int, change: Callable[[Any], Any]) -> Any:
    """The rule with one gradient changed."""

    def rule(args: Any, y: Any, dy: Any) -> Any:
        grads = list(backward(args, y, dy))
        grads[place] = change(grads[place])
        return grads

    return rule


def normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    """Standard normal arguments of these shapes."""
    return lambda rng: tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
