"""A custom rule that was found in a jaxpr, to be judged."""

from __future__ import annotations

import dataclasses
import functools
import linecache
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funprop.verify.subject import (
    Subject,
    by_jax,
    is_floating,
    of_floats,
    without_keys,
)
from funprop.verify.subjects.of_function import check_intended
from funprop.verify.truth import internals, rule_names, solves
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.solves import is_solve, solved


def of_rule(
    eqn: Any,
    inputs: Any,
    used: Sequence[bool] | None = None,
    intended: Callable[..., Any] | None = None,
) -> Subject:
    """A custom rule that was found in a jaxpr, at the inputs that it gets there.

    Args:
      eqn: that calls it.
      inputs: that it gets.
      used: which outputs anything is made of; the rule need not be right for the others.
      intended: whose derivative is meant, in the place of its function's own.
    """
    names = solves.input_names(eqn) if is_solve(eqn) else rule_names.input_names(eqn)
    differentiable = tuple(
        i
        for i, (name, leaf) in enumerate(zip(names, inputs, strict=True))
        if name and is_floating(leaf)
    )
    inputs, with_keys = without_keys(inputs)
    call, plain = internals.call_function(eqn), functools.partial(_plain, eqn)
    some = used is not None and any(used)

    def picked(outputs: list[Any]) -> list[Any]:
        return [y for y, u in zip(outputs, used or (), strict=True) if u] if some else outputs

    def forward(*inputs: Any) -> list[Any]:
        return picked(call(*with_keys(inputs)))

    differentiable = _allowed(forward, inputs, differentiable)
    internals.forget_traces(eqn)
    subject = Subject(
        name=rule_names.rule_name(eqn),
        paths=tuple(f"{rule_names.rule_name(eqn)}/{name}" for name in names),
        args=tuple(inputs),
        differentiable=differentiable,
        plain=lambda *inputs: picked(plain(with_keys(inputs))),
        forward=forward,
        backward=by_jax(forward, differentiable),
        source=rule_names.rule_source(eqn),
    )
    if intended is not None:
        return _meant(subject, intended, [bool(name) for name in names], picked, with_keys)
    return _of_root(subject, eqn) if rule_names.is_root(eqn) else subject


def _meant(
    subject: Subject, intended: Callable[..., Any], named: list[bool], picked: Any, with_keys: Any
) -> Subject:
    """The rule, to be judged by the derivative of another function of its named inputs."""

    def plain(*inputs: Any) -> list[Any]:
        given = [v for v, own in zip(with_keys(inputs), named, strict=True) if own]
        return picked(jax.tree.leaves(intended(*given)))

    check_intended(plain, subject.forward, subject.args)
    return dataclasses.replace(subject, plain=plain, outputs=subject.plain)


def _plain(eqn: Any, inputs: list[Any]) -> list[Any]:
    if is_solve(eqn):
        return solved(Evaluate(), eqn, inputs)
    return Evaluate()(internals.plain_jaxpr(eqn), *inputs)


def _of_root(subject: Subject, eqn: Any) -> Subject:
    """`jax.lax.custom_root`: the derivative is that of the equation that is solved, whatever the
    solver is given. What both are given is one input, and what the solver alone is given, none."""
    first: dict[int, int] = {}
    spread = [first.setdefault(id(atom), len(first)) for atom in eqn.invars]
    places = [spread.index(n) for n in range(len(first))]

    def tied(function: Any) -> Any:
        return lambda *given: function(*(given[n] for n in spread))

    forward = tied(subject.forward)
    args = tuple(subject.args[i] for i in places)
    moving = tuple(n for n, i in enumerate(places) if i in subject.differentiable)
    ys, pullback = jax.vjp(of_floats(forward, args, moving), *(args[n] for n in moving))
    moved = [bool(jnp.any(g != 0)) for g in pullback([jnp.ones_like(y) for y in ys])]
    if any(moved):
        moving = tuple(n for n, m in zip(moving, moved, strict=True) if m)
    return dataclasses.replace(
        subject,
        paths=tuple(
            subject.paths[i] if n in moving else f"{subject.name}/" for n, i in enumerate(places)
        ),
        args=args,
        differentiable=moving,
        plain=tied(subject.plain),
        forward=forward,
        backward=by_jax(forward, moving),
    )


def _allowed(forward: Any, inputs: Any, differentiable: tuple[int, ...]) -> tuple[int, ...]:
    """The inputs that the rule lets be differentiated; where it fails for each, all of them, or
    none where it says itself that it is not to be differentiated."""
    forbids: list[bool] = []

    def runs(places: tuple[int, ...]) -> bool:
        def pulled(*inputs: Any) -> Any:
            ys, pullback = jax.vjp(of_floats(forward, inputs, places), *(inputs[i] for i in places))
            return pullback(ys)

        try:
            with internals.unfiltered_errors():
                jax.eval_shape(pulled, *inputs)
        except Exception as error:  # whatever a rule raises to forbid it
            forbids.append(_is_said(error))
            return False
        return True

    if not differentiable or runs(differentiable):
        return differentiable
    some = tuple(i for i in differentiable if runs((i,)))
    return some or (() if all(forbids) else differentiable)


def _is_said(error: Exception) -> bool:
    """Whether an error was raised by a line of the rule's package that says `raise`: what a
    mistake raises comes out of JAX or NumPy, or of a line that does something else."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    code = linecache.getline(frame.f_code.co_filename, line)
    return package not in ("jax", "jaxlib", "numpy", "funprop") and code.lstrip().startswith(
        "raise "
    )
