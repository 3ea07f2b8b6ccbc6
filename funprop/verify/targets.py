"""What can be verified: layers, functions, gradients of a loss, and every rule in a jaxpr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.checks import check_known
from funprop.inspect.visits import compiled_visits
from funprop.layer import Layer
from funprop.located import check_params
from funprop.verify.judging.examine import examine, traced
from funprop.verify.judging.on_device import products_in_float32
from funprop.verify.judging.rows import Findings, as_report
from funprop.verify.report import Report
from funprop.verify.subject import Subject, arrays, first_line, floats, has_no_rule, refused
from funprop.verify.subjects.of_function import of_function, of_gradient
from funprop.verify.subjects.of_layer import of_layer
from funprop.verify.truth import internals
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.programs import jit_of
from funprop.verify.truth.same import surely_same


@internals.quiet_callbacks()
@products_in_float32()
def verify(
    target: Layer | Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    intended: Callable[..., Any] | None = None,
    key: Any = None,
    seed: int = 0,
) -> Report:
    """Judge a backward pass: is it right, where is it wrong, and in what way?

    The truth is `jax.vjp` of the plain forward pass in float64, custom rules taken away; where
    that cannot be had, central differences. A gradient may be as far from it as autodiff in the
    same precision is, within a factor. There is no tolerance to set.

    A part of more than 200,000 numbers is judged at the given inputs only: as it runs against
    autodiff in the same precision, where these agree to the last few digits, and against float64
    where they do not, or in a precision below float32. Where all its axes can be cut, the
    mathematics (in float64) and the laws are judged at a corner of the inputs instead.

    Args:
      target: a layer, with `(params, x)`; a differentiable function, such as a `jax.custom_vjp`,
        with its arguments; or, with `reference`, a hand-written gradient `(params, batch) -> grads`
        (or a `Gradient`), with its arguments.
      *args: the point to judge it at. Inputs that people forget are tried beside it.
      reference: the loss `(params, batch) -> total`, or `(total, weight, ...)`, that a hand-written
        gradient belongs to; or, for a function, another one that computes the same.
      intended: for a function whose gradient is meant to be another than its own derivative
        (straight-through, stochastic rounding, a scaled gradient): one of the same arguments whose
        derivative it is; for `round` with the gradient of the identity, `lambda x: x`. All else is
        judged as ever. An attribute `intended` of the function says the same; so does a layer of
        itself, `layer(..., intended=)`.
      key: of a layer that draws random numbers.
      seed: of the cotangents and of the inputs that are tried.

    Raises:
      TypeError: an argument is not an array or not real, or does not fit the function.
      ValueError: nothing can be differentiated; or the forward pass is not deterministic, has side
        effects, or gives NaN or infinity at this point; or a `reference` gives `(mean, n)`.

    Example:
      >>> import funprop as fp
      >>> def wrong(params, x, dy):
      ...     return (), x * dy  # should be 2 * x * dy
      >>> square = fp.layer(forward=lambda params, x: (x * x, x), backward=wrong, name="square")
      >>> model = fp.serial(fp.tanh(), square)
      >>> report = verify(model, ((), ()), jnp.linspace(0.1, 1, 5))
      >>> [(finding.path, finding.story) for finding in report.findings]
      [('square/dx', 'factor')]
    """
    for i, arg in enumerate(args):
        check_known(f"args[{i}]", arg)
    if isinstance(target, Layer):
        if reference is not None:
            raise TypeError("reference must not be given for a layer: its forward pass is it")
        if intended is not None:
            raise TypeError("intended is for a function: a layer says it, layer(..., intended=)")
        return as_report(_of_parts(target, args, key, seed))
    if not callable(target):
        raise TypeError(f"target must be a layer or a function, got {type(target).__name__}")
    if key is not None:
        raise TypeError("key is for a layer: give a function its keys among its arguments")
    intended = intended or getattr(target, "intended", None)
    if intended is not None and reference is not None:
        raise TypeError("reference and intended must not both be given")
    if reference is None:
        subject = of_function(target, args, intended=intended)
    elif _is_gradient(target, reference, args):
        _check_sums(reference, args)
        subject = of_gradient(target, reference, args)
    else:
        subject = of_function(target, args, reference)
    _check(subject)
    return as_report([examine(subject, seed, finite=False)])


# ------------------------------------------------------------------------------- layers by parts


def _of_parts(layer: Layer, args: tuple[Any, ...], key: Any, seed: int) -> list[Findings]:
    if len(args) != 2:
        raise TypeError(f"a layer is verified with (params, x), got {len(args)} arguments")
    params, x = args
    for value, what in ((params, "params"), (x, "x")):
        arrays(value, what)
    params, x = jax.tree.map(jnp.asarray, (params, x))
    whole = of_layer(layer, params, x, key)
    try:
        _check(whole)
    except (TypeError, ValueError):
        check_params(layer, params, x)  # where they are the cause, that says more
        raise
    found = []
    made: dict[Any, Instruments] = {}  # copies of a part, under a scan, are compiled once
    for n, visit in enumerate(compiled_visits(layer, params, x, key)):
        finite = n > 0  # the first is the whole, and its outputs are
        subject = of_layer(visit.layer, visit.params, visit.x, visit.key, visit.path)
        if not subject.differentiable:
            continue
        kind = (id(visit.layer), tuple((leaf.shape, leaf.dtype) for leaf in subject.args))
        first = kind not in made
        if first:
            try:
                made[kind] = traced(subject)
            except Exception:  # it is told by examine
                found.append(examine(subject, seed, finite=finite))
                continue
        thorough = not visit.layer.children
        judged = examine(subject, seed, thorough, made[kind], first, finite)
        if visit.layer.intended is not None and first:
            judged.notes.append(
                f"{subject.name}: judged by the gradient that it says is intended, not by that of "
                "its forward pass"
            )
        found.append(judged)
    return found


# -------------------------------------------------------------------------------- what is refused


RUNS = 4  # a few numbers drawn anew may be the same once


def _check(subject: Subject) -> None:
    """Raise where the target cannot be judged, whatever it gives."""
    name = subject.name
    if not subject.differentiable:
        raise ValueError(f"{name} has no input of floating dtype to differentiate")
    specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in subject.args]
    try:
        # Traced twice: JAX keeps the trace of a function that it knows, for all that follows.
        first = jax.make_jaxpr(subject.plain)(*specs)
        second = jax.make_jaxpr(lambda *leaves: subject.plain(*leaves))(*specs)
    except (TypeError, ValueError) as error:
        raise refused(error, name) from None
    except AttributeError as error:
        if has_no_rule(error):
            raise refused(error, name) from None
        raise
    outputs: list[Any] = list(first.out_avals)
    if not any(jnp.issubdtype(aval.dtype, jnp.inexact) for aval in outputs):
        raise ValueError(f"{name} has no output of floating dtype")
    for aval in outputs:
        if jnp.issubdtype(aval.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must give real numbers, got {aval.str_short()}")
    if any(eqn.primitive.name == "io_callback" for eqn in internals.equations(first)):
        raise ValueError(f"{name} has side effects: it calls io_callback")
    if surely_same(first, second):
        return
    run = jit_of(sum(leaf.size for leaf in subject.args))(
        lambda *leaves: [Evaluate()(j, *leaves) for j in (first, second)]
    )
    try:
        one, *others = (outputs for _ in range(RUNS) for outputs in run(*subject.args))
    except jax.errors.JaxRuntimeError as error:  # raised by Python code that it calls
        raise refused(error, name) from None
    for a, b in ((a, b) for two in others for a, b in zip(floats(one), floats(two), strict=True)):
        if not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True):
            raise ValueError(
                f"{name} is not deterministic: called twice, it gives different outputs"
            )


def _check_sums(loss_fn: Any, args: tuple[Any, ...]) -> None:
    """Raise where a loss gives a mean beside a weight: of a batch with every example twice the
    weight doubles, and the total stays."""
    value = loss_fn(*args)
    if not isinstance(value, tuple) or len(value) < 2 or len(args) < 2:
        return
    try:
        twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), args[1])
        more = loss_fn(args[0], twice, *args[2:])
    except Exception:  # not every function takes a batch of another size
        return
    (total, weight), (larger, heavier) = ([float(v) for v in got[:2]] for got in (value, more))
    if heavier > 1.5 * weight and total and abs(larger - total) < 0.1 * abs(total):
        raise ValueError(
            "reference must give sums over the batch, got a total that stays where each example is "
            "there twice and the weight doubles: for a mean over n examples return (mean * n, n)"
        )


def _is_gradient(target: Any, reference: Any, args: tuple[Any, ...]) -> bool:
    """Whether the target gives gradients of the reference, and not the same outputs."""
    try:
        got = jax.eval_shape(target, *args)
        value = jax.eval_shape(reference, *args)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = first_line(error)
        raise kind(f"target and reference do not both take these arguments: {reason}") from None
    return (
        hasattr(got, "grads")
        or jax.tree.structure(got) != jax.tree.structure(value)
        or [leaf.shape for leaf in jax.tree.leaves(got)]
        != [leaf.shape for leaf in jax.tree.leaves(value)]
    )
