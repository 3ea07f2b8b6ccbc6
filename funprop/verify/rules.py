"""Every custom rule that a function reaches, judged on the inputs that it gets there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.judging.examine import examine
from funprop.verify.judging.on_device import products_in_float32
from funprop.verify.judging.rows import Findings, as_report
from funprop.verify.report import Report
from funprop.verify.subject import (
    arrays,
    first_line,
    floats,
    has_no_rule,
    is_floating,
    refused,
    without_keys,
)
from funprop.verify.subjects.of_rule import of_rule
from funprop.verify.subjects.rule_calls import Call, rule_calls
from funprop.verify.truth import apart, internals, rule_names
from funprop.verify.truth.kept_rules import rules_survive_differentiation


@internals.quiet_callbacks()
@products_in_float32()
def verify_rules(
    function: Callable[..., Any],
    *args: Any,
    intended: Mapping[str, Callable[..., Any]] | None = None,
    seed: int = 0,
) -> Report:
    """Judge every custom rule that `function(*args)` reaches, on the very inputs that it gets.

    Finds each `jax.custom_vjp` and `jax.custom_jvp`, in whose code it may be, under jit, scan,
    cond, while, remat, vmap, shard_map and grad. A rule that is called several times at one place,
    under a scan, is judged at a few of its calls; one in a branch that the arguments do not take,
    at others that take it, if some are found.

    Args:
      function: any function of arrays: a model, a loss, a whole training step.
      *args: its arguments, any pytrees.
      intended: for rules that mean another derivative than their function's own, by the name of
        the function: see `verify`. An attribute `intended` of the function says the same.
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
        with rules_survive_differentiation() as said:
            calls, missed = rule_calls(function, *args, seed=seed)
    except (TypeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise refused(error, getattr(function, "__name__", "function")) from None
    except AttributeError as error:
        if has_no_rule(error):
            raise refused(error, getattr(function, "__name__", "function")) from None
        raise
    found: list[Findings] = []
    notes: list[str] = []
    groups: dict[tuple[str, str, str, Hashable], list[Call]] = {}
    for call in calls:
        specs = ",".join(f"{v.dtype}{v.shape}" for v in call.inputs)
        name, source = rule_names.rule_name(call.equation), rule_names.rule_source(call.equation)
        groups.setdefault((name, source, specs, apart.mark(call.equation)), []).append(call)
    for (name, source, *_), group in groups.items():
        if any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in group[0].inputs):
            notes.append(f"{name} was not judged: its inputs are complex")
            continue
        picked = _spread(_distinct(group), SEEN)
        judged = 0
        for call in picked:
            try:
                found += _judged(call, {**said, **(intended or {})}.get(name), seed)
                judged += 1
            except jax.errors.UnexpectedTracerError:
                notes.append(
                    f"{name} ({source}) was not judged: it closes over a value of the function "
                    "around it, which may be given to it as an argument"
                )
            except (ValueError, TypeError, NameError) as error:
                notes.append(f"{name} ({source}) was not judged: {first_line(error)}")
        place = internals.equation_source(group[0].equation)
        calls_ = "1 call" if len(group) == 1 else f"{len(group)} calls"
        from_ = f", from {place}" if place else ""
        if all(call.point for call in group):
            only = dict.fromkeys(call.point for call in group)
            from_ += f", reached only with {', '.join(only)}"
        notes.append(f"{name} is at {source}; {calls_}{from_}; {judged} judged")
    for eqn in missed:
        name, source = rule_names.rule_name(eqn), rule_names.rule_source(eqn)
        if (name, source) not in {known[:2] for known in groups}:
            notes.append(f"{name} ({source}) was not judged: no arguments that were tried reach it")
    if not (calls or missed):
        notes.append("no custom rule is reached")
    for name in sorted(set(intended or ()) - {known[0] for known in groups}):
        notes.append(f"intended: no rule called {name} is reached")
    report = as_report(found)
    return report._replace(notes=tuple(dict.fromkeys((*report.notes, *notes))))


SEEN = 3  # calls of one rule at inputs of the same shapes that are judged


def _judged(call: Call, intended: Callable[..., Any] | None, seed: int) -> list[Findings]:
    """What is found of one call; nothing where it has no input or output to differentiate."""
    subject = of_rule(call.equation, call.inputs, call.used, intended)
    if not floats(jax.eval_shape(subject.plain, *subject.args)):
        return []
    found = Findings([], [], [])
    if subject.differentiable:
        found = examine(subject, seed, thorough=False)
    forbidden = [
        subject.paths[i]
        for i, v in enumerate(subject.args)
        if is_floating(v) and i not in subject.differentiable and subject.paths[i][-1] != "/"
    ]
    if not forbidden:
        return [found]
    note = f"{', '.join(forbidden)}: not judged, the rule does not let it be differentiated"
    return [found._replace(notes=[*found.notes, note])]


def _distinct(group: list[Call]) -> list[Call]:
    kept = {}
    for call in group:
        bits = tuple(np.asarray(v).tobytes() for v in without_keys(call.inputs)[0])
        kept.setdefault((bits, call.used), call)
    return list(kept.values())


def _spread(items: list[Any], n: int) -> list[Any]:
    """At most `n` of the items, the first and the last among them."""
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]
