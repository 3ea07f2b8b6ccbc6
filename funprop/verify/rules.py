"""Every custom rule that a function reaches, judged on the inputs that it gets there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.verify.adapters import of_rule
from funprop.verify.judging.examine import examine
from funprop.verify.judging.rows import as_report
from funprop.verify.report import Report
from funprop.verify.subject import arrays, first_line, floats, refused, without_keys
from funprop.verify.truth import internals
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.kept_rules import rules_survive_differentiation


def verify_rules(function: Callable[..., Any], *args: Any, seed: int = 0) -> Report:
    """Judge every custom rule that `function(*args)` reaches, on the very inputs that it gets.

    Finds each `jax.custom_vjp` and `jax.custom_jvp`, in whose code it may be, under jit, scan,
    cond, while, remat, vmap, shard_map and grad. A rule that is called several times at one place,
    under a scan, is judged at a few of its calls.

    Args:
      function: any function of arrays: a model, a loss, a whole training step.
      *args: its arguments, any pytrees.
      seed: of the cotangents.

    Raises:
      TypeError, ValueError: the function does not take these arguments.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> @jax.custom_vjp
      ... def double(x):
      ...     return 2 * x
      >>> double.defvjp(lambda x: (double(x), None), lambda _, dy: (dy,))
      >>> model = jax.jit(lambda x: jax.nn.relu(double(x)).sum())
      >>> report = verify_rules(model, jnp.array([1.0, 2.0]))
      >>> [(check.path, check.story or "ok") for check in report.checks]
      [('double/x', 'factor'), ('relu/x', 'ok')]
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    for i, arg in enumerate(args):
        arrays(arg, f"args[{i}]")
    try:
        calls = rule_calls(function, *args)
    except (TypeError, ValueError) as error:
        raise refused(error, getattr(function, "__name__", "function")) from None
    found: list[Any] = []
    notes: list[str] = []
    groups: dict[tuple[str, str, str], list[tuple[Any, list[Any]]]] = {}
    for eqn, inputs in calls:
        if any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in inputs):
            note = f"{internals.rule_name(eqn)} was not judged: its inputs are complex"
            notes += [note] if note not in notes else []
            continue
        specs = ",".join(f"{v.dtype}{v.shape}" for v in inputs)
        groups.setdefault((internals.rule_name(eqn), internals.rule_source(eqn), specs), []).append(
            (eqn, inputs)
        )
    for (name, source, _), group in groups.items():
        picked = _spread(_distinct(group), SEEN)
        for eqn, inputs in picked:
            subject = of_rule(eqn, inputs)
            if not subject.differentiable or not floats(
                jax.eval_shape(subject.plain, *subject.args)
            ):
                continue
            try:
                found.append(examine(subject, seed, thorough=False))
            except (ValueError, TypeError, NameError) as error:
                notes.append(f"{name} ({source}) was not judged: {first_line(error)}")
        where = f"{name} is at {source}; {len(group)} calls, {len(picked)} judged"
        notes.append(where)
    if not calls:
        notes.append("no custom rule is reached")
    report = as_report(found)
    return report._replace(notes=(*report.notes, *notes))


SEEN = 3  # calls of one rule at inputs of the same shapes that are judged


def _distinct(group: list[Any]) -> list[Any]:
    kept, seen = [], set()
    for eqn, inputs in group:
        bits = tuple(np.asarray(v).tobytes() for v in without_keys(inputs)[0])
        if bits not in seen:
            seen.add(bits)
            kept.append((eqn, inputs))
    return kept


def _spread(items: list[Any], n: int) -> list[Any]:
    """At most `n` of the items, the first and the last among them."""
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def rule_calls(function: Callable[..., Any], *args: Any) -> list[tuple[Any, list[Any]]]:
    """Every call of a custom rule that `function(*args)` makes, with the inputs that it gets.

    Returns:
      Pairs of an equation and its inputs, one for every call that was run: under a scan each step,
      under a while loop the last turn, under shard_map each device.
    """
    with rules_survive_differentiation():
        jaxpr = jax.make_jaxpr(function)(*args)
    whats: list[Any] = []

    @jax.jit
    def run(*leaves: Any) -> list[Any]:
        log: list[Any] = []
        Evaluate(log=log)(jaxpr, *leaves)
        whats[:] = [what for what, _ in log]
        return [values for _, values in log]

    calls = []
    for eqn, (inputs, ran) in zip(whats, run(*jax.tree.leaves(args)), strict=True):
        if any(trees.is_float(value) for value in inputs):
            calls += [
                (eqn, [value[tuple(place)] for value in inputs])
                for place in np.argwhere(np.asarray(ran))
            ]
    return calls
