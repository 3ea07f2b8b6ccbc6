"""Is a rule right when it is differentiated again? Hessian-vector products through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funprop.layer import Layer
from funprop.verify.judging.examine import examine
from funprop.verify.judging.rows import as_report
from funprop.verify.report import Report
from funprop.verify.subject import Subject, by_jax, first_line, floats
from funprop.verify.subjects.of_function import of_function
from funprop.verify.subjects.of_layer import of_layer
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.samples import random_numbers


def verify_second_order(
    target: Layer | Callable[..., Any], *args: Any, key: Any = None, seed: int = 0
) -> Report:
    """Judge Hessian-vector products through a hand-written backward pass.

    The gradient `(inputs, dy) -> cotangents` is a function itself. Differentiated through the
    hand-written backward it must give what it gives through autodiff's, as `verify` judges it.

    Args:
      target: a layer, with `(params, x)`; or a differentiable function with its arguments.
      *args: the point.
      key: of a layer that draws random numbers.
      seed: of the vectors.

    Returns:
      A row for each input, and for the cotangent of each output. Where the rule cannot be
      differentiated again there are no rows, and a note says so.

    Raises:
      TypeError, ValueError: as `verify`.

    Example:
      >>> @jax.custom_vjp
      ... def square(x):
      ...     return x * x
      >>> square.defvjp(
      ...     lambda x: (x * x, x), lambda x, dy: (2 * jax.lax.stop_gradient(x) * dy,)
      ... )
      >>> [finding.path for finding in verify_second_order(square, jnp.arange(3.0)).findings]
      ['gradient of square/x']
    """
    if isinstance(target, Layer):
        params, x = jax.tree.map(jnp.asarray, args)
        whole = dataclasses.replace(target, children=(), rebuild=None)
        first = of_layer(whole, params, x, key)
    else:
        first = of_function(target, args)
    if not first.differentiable:
        return Report((), (f"{first.name} has no input that is differentiated",))
    subject = _of_gradient_of(first, seed)
    try:
        specs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in subject.args]
        dys = jax.eval_shape(subject.plain, *specs)
        jax.eval_shape(subject.backward, specs, floats(dys))
    except Exception as error:  # whatever a rule raises that was made to be used once
        note = f"{first.name} cannot be differentiated again: {first_line(error)}"
        return Report((), (note,))
    return as_report([examine(subject, seed, thorough=False)])


def _of_gradient_of(first: Subject, seed: int) -> Subject:
    """The gradient of a subject as a subject, the cotangents of the first among its inputs."""
    jaxpr = jax.make_jaxpr(first.plain)(*first.args)
    n = len(first.args)
    rng = random_numbers(seed)
    dys = [
        jnp.asarray(rng.standard_normal(aval.shape), aval.dtype) for aval in floats(jaxpr.out_avals)
    ]
    autodiff = by_jax(lambda *inputs: Evaluate()(jaxpr, *inputs), first.differentiable)
    differentiable = (*first.differentiable, *range(n, n + len(dys)))

    def hand_written(*inputs: Any) -> list[Any]:
        return first.backward(list(inputs[:n]), list(inputs[n:]))

    return Subject(
        name=f"gradient of {first.name}",
        paths=tuple(
            f"gradient of {first.name}/{path}"
            for path in (*first.paths, *(f"cotangent {i}" for i in range(len(dys))))
        ),
        args=(*first.args, *dys),
        differentiable=differentiable,
        plain=lambda *inputs: autodiff(list(inputs[:n]), list(inputs[n:])),
        forward=hand_written,
        backward=by_jax(hand_written, differentiable),
    )
