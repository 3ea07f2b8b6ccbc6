"""An objective: a model and a loss as one layer, from a batch to a sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.arguments import as_sum
from funprop.checks import described
from funprop.drawing import split
from funprop.keys import split_key
from funprop.layer import Layer, Recorded, check_layer, output_spec
from funprop.located import located
from funprop.metrics import check_names, measured_by
from funprop.names import params_of
from funprop.trees import Sum

if TYPE_CHECKING:
    from funprop.typing import PyTree


def objective(model: Layer, loss: Layer, /, **metrics: Callable[..., Sum]) -> Layer:
    """Model and loss as one layer, from a batch to the loss's `Sum`.

    Args:
      model: from inputs to outputs.
      loss: from `(outputs, targets)` or `(outputs, targets, weights)` to a `Sum`.
      **metrics: functions `(outputs, targets, weights=None) -> Sum`, recorded by their names; one
        without the third argument is for batches without weights.

    Returns:
      A layer whose input is a batch, `(inputs, targets)` or `(inputs, targets, weights)`. An
      example of weight zero has no say in value and gradient, whatever it holds. With weights for
      each place, `[n, t]`, that is so of examples whose weights are all zero, and of targets at
      every place of weight zero; *inputs* at such a place of an example that counts must be finite:
      its other places may be computed from them (attention, recurrences), and a NaN there is NaN
      in the gradient. Its params are the model's; of a loss that has params of its own, both by
      name.

    Raises:
      TypeError: `model` or `loss` is no layer, or a metric no function; or, at forward, `loss`
        gives no `Sum`.

    Example:
      >>> import funprop as fp
      >>> batch = jnp.ones((4, 3)), jnp.zeros(4, int)
      >>> fit_me = objective(fp.dense(2), fp.softmax_cross_entropy(), accuracy=fp.accuracy)
      >>> params = fit_me.init(jax.random.key(0), batch)
      >>> loss, _ = fit_me.forward(params, batch)
      >>> float(loss.weight)
      4.0
    """
    check_layer("model", model, "serial(dense(4))")
    check_layer("loss", loss, "mean_squared()")
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(
                f"{name} must be a function (outputs, targets, weights) -> Sum, got "
                f"{described(metric)}"
            )
    check_names(metrics)
    children = model, loss
    parts = located(children, flat=loss.paramless)

    def init(key: Any, batch: Any) -> PyTree:
        _check_batch(batch)
        batch = trees.canonical(batch)
        model_key, loss_key = split(key)
        params = parts[0].init(model_key, batch[0])
        outputs = output_spec(parts[0], params, batch[0])
        own = parts[1].init(loss_key, (outputs, *batch[1:]))
        return params if loss.paramless else params_of(children, (params, own))

    def forward(params: Any, batch: Any, key: Any = None) -> tuple[Sum, tuple[Any, Any, Any]]:
        _check_batch(batch)
        inputs, *targets = jax.tree.map(_in_jax, batch)
        inputs = with_a_say(inputs, *targets[1:])
        of_model, of_loss = node.split(params)
        model_key, loss_key = split_key(key, 2)
        outputs, model_kept = parts[0].forward(of_model, inputs, model_key)
        loss, loss_kept = parts[1].forward(of_loss, (outputs, *targets), loss_key)
        loss = as_sum("loss", loss)
        measured = [
            Recorded(measured_by(name, metric, outputs, *targets), metric=name)
            for name, metric in metrics.items()
        ]
        return loss, (model_kept, loss_kept, measured)

    def backward(params: Any, residuals: Any, dy: Any) -> tuple[PyTree, Any]:
        model_kept, loss_kept, _ = residuals
        of_model, of_loss = node.split(params)
        dloss, (doutputs, *dtargets) = parts[1].backward(of_loss, loss_kept, dy)
        dmodel, dinputs = parts[0].backward(of_model, model_kept, doutputs)
        return node.join(params, (dmodel, dloss)), (dinputs, *dtargets)

    def rebuild(model: Layer, loss: Layer) -> Layer:
        return objective(model, loss, **metrics)

    node = Layer(init, forward, backward, "objective", children, rebuild, flat=loss.paramless)
    return node


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise ValueError(
            f"batch must be (inputs, targets) or (inputs, targets, weights), got {described(batch)}"
        )
    for name, part in zip(("inputs", "targets", "weights"), batch, strict=False):
        if not jax.tree.leaves(part):
            raise TypeError(f"{name} must be an array, got {described(part)}")
    if trees.length(batch) is None:
        got = trees.shapes_string(batch)
        raise ValueError(f"inputs and targets must have the same length, got shapes {got}")


def _in_jax(leaf: Any) -> Any:
    """NumPy's floats in the dtype that JAX gives them; its integers may be wider than those are."""
    if isinstance(leaf, jax.Array):
        return leaf
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf) if trees.is_float(leaf) else leaf


def with_a_say(inputs: PyTree, *weights: Any) -> PyTree:
    """`inputs`, zero where an example of weight zero has NaN or infinity. Its cotangents are zero,
    but times NaN they would be NaN in the gradient of every weight."""
    if not weights:
        return inputs
    counts = jnp.asarray(weights[0]).astype(bool)  # they may be booleans themselves
    silent = ~counts.any(tuple(range(1, counts.ndim)))

    def cleaned(leaf: Any) -> Any:
        if not trees.is_float(leaf):
            return leaf
        without = silent.reshape(len(silent), *(1,) * (leaf.ndim - 1))
        return jnp.where(without & ~jnp.isfinite(leaf), 0, leaf)

    return jax.tree.map(cleaned, inputs)
