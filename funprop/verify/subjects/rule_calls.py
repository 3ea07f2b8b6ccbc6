"""Where a function calls custom rules, and what it gives them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.verify.inputs import points
from funprop.verify.inputs.branches import other_branches
from funprop.verify.subjects.of_function import of_function
from funprop.verify.truth import internals
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.primitives import OPAQUE
from funprop.verify.truth.programs import MANY
from funprop.verify.truth.samples import random_numbers
from funprop.verify.truth.thresholds import thresholds

POINTS = 3  # at which such a rule is looked at: one may be zero, and hide what is wrong
TRIED = 32  # other arguments, for rules in branches that the given ones do not take


class Call(NamedTuple):
    """One call of a custom rule.

    Attributes:
      equation: that calls it.
      inputs: that it gets.
      used: which of its outputs anything is made of.
      point: what is particular about the arguments at which it is made; empty for the given ones.
    """

    equation: Any
    inputs: list[Any]
    used: tuple[bool, ...]
    point: str = ""


def rule_calls(
    function: Callable[..., Any], *args: Any, seed: int = 0
) -> tuple[list[Call], list[Any]]:
    """Every call of a custom rule that `function(*args)` makes: under a scan each step, under a
    while loop the last turn, under shard_map each device. And the equations that stand in branches
    that neither these arguments take nor any others that were tried."""
    jaxpr = jax.make_jaxpr(function)(*args)
    whats: list[Any] = []

    @jax.jit
    def run(*leaves: Any) -> list[Any]:
        log: list[Any] = []
        Evaluate(log=log)(jaxpr, *leaves)
        whats[:] = [what for what, _ in log]
        return [values for _, values in log]

    used = _used(jaxpr)

    def reached(point: str, *leaves: Any) -> Iterator[Call]:
        for eqn, (inputs, ran) in zip(whats, run(*leaves), strict=True):
            for place in np.argwhere(np.asarray(ran)):
                values = [value[tuple(place)] for value in inputs]
                yield Call(eqn, values, used[id(eqn)], point)

    calls = list(reached("", *jax.tree.leaves(args)))
    missed = _without(whats, calls)
    sought = {id(eqn): POINTS for eqn in missed}
    for point in _others(jaxpr, function, args, seed) if missed else ():
        found = [c for c in reached(point.name, *point.inputs) if sought.get(id(c.equation))]
        calls += found
        sought.update({i: sought[i] - 1 for i in {id(call.equation) for call in found}})
        if not any(sought.values()):
            break
    missed = _without(missed, calls)
    return [c for c in calls if any(map(trees.is_float, c.inputs))], missed


def _without(equations: list[Any], calls: list[Call]) -> list[Any]:
    """The equations of which there is no call."""
    known = {id(call.equation) for call in calls}
    return [eqn for eqn in equations if id(eqn) not in known]


def _others(
    jaxpr: Any, function: Callable[..., Any], args: Any, seed: int
) -> Iterator[points.Point]:
    """Other arguments, flat, some of which may take other branches; none for what is large, may
    run without an end, or calls code whose effects nobody knows."""
    wild = any(e.primitive.name in {"while", *OPAQUE} for e in internals.equations(jaxpr))
    if wild or sum(np.size(leaf) for leaf in jax.tree.leaves(args)) > MANY:
        return
    subject = of_function(function, args)
    rng = random_numbers(seed)
    tried = itertools.chain(
        other_branches(subject, thresholds(jaxpr), rng), points.same_shape(subject, rng)
    )
    leaves = list(map(jnp.asarray, jax.tree.leaves(args)))
    for point in itertools.islice(tried, TRIED):
        inputs = [_like(*pair) for pair in zip(leaves, point.inputs, strict=True)]
        yield point._replace(inputs=inputs)


def _like(given: Any, value: Any) -> Any:
    """The value in the dtype of what was given; of a random key, the key."""
    if jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
        return given
    return np.asarray(value, given.dtype)


def _used(jaxpr: Any) -> dict[int, tuple[bool, ...]]:
    """Which outputs of each equation, by its id, are used in the jaxpr that it stands in."""
    opened = internals.open_jaxpr(jaxpr)[0]
    read = {id(atom) for eqn in opened.eqns for atom in eqn.invars}
    read |= {id(atom) for atom in opened.outvars}
    found = {}
    for eqn in opened.eqns:
        found[id(eqn)] = tuple(id(v) in read for v in eqn.outvars)
        for inner in internals.inner_jaxprs(eqn):
            found |= _used(inner)
    return found
