"""The same multilayer perceptron twice: ours, and as an expert writes it in plain JAX and optax."""

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


def expert_loss(params: Any, x: Any, y: Any) -> Any:
    """The mean loss in plain JAX."""
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x @ w + b, y).mean()


def expert_step(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """One jitted, donated update in plain JAX."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, opt_state: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(expert_loss)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return update


def expert_params(params: Any) -> Any:
    """A copy of our params as the expert holds them."""
    return [(p.w.copy(), p.b.copy()) for p in params if p]
