"""The same multilayer perceptron twice: ours, and as an expert writes it in plain JAX and optax;
and an expert's update of any loss."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import funprop as fp

Sizes = tuple[int, ...]


def ours(sizes: Sizes) -> fp.Layer:
    """The objective: dense layers with relu between, and the cross-entropy of their logits."""
    layers = [fp.dense(sizes[0])]
    for features in sizes[1:]:
        layers += [fp.relu(), fp.dense(features)]
    return fp.objective(fp.serial(*layers), fp.softmax_cross_entropy())


def expert_loss(params: Any, batch: Any) -> Any:
    """The mean loss in plain JAX."""
    x, y = batch
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x @ w + b, y).mean()


def expert_step(
    optimizer: optax.GradientTransformation, loss: Callable[[Any, Any], Any] = expert_loss
) -> Callable[[Any, Any], Any]:
    """One jitted, donated update in plain JAX, `(state, batch) -> (state, loss)`, of the mean loss
    `(params, batch) -> ()`; the state is params and the optimizer's."""

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, batch: Any) -> Any:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        changes, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), value

    return update


def expert_params(params: Any) -> Any:
    """A copy of our params as the expert holds them."""
    return [(p.w.copy(), p.b.copy()) for p in params if p]
