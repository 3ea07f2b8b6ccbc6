"""The backward that JAX takes of a layer's forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop.checks import check_function
from funprop.decoding import through
from funprop.functions import by_vjp
from funprop.layer import Layer, check_layer, leaf_of, recorded

if TYPE_CHECKING:
    from funprop.typing import PyTree


def autodiff(layer: Layer, policy: Callable[..., Any] | None = None) -> Layer:
    """The same layer with its backward taken by `jax.vjp` of its forward.

    On one layer, a reference for its backward; `map_layers(autodiff, model)` is one for every
    layer of a model. Of a combinator it makes a leaf, as no backward inside it is run any more:
    `autodiff(model)` is what `jax.grad` makes of the whole.

    Args:
      layer: whose forward JAX can differentiate.
      policy: one of `jax.checkpoint_policies`: what may be kept; the rest is recomputed. Without
        one, JAX keeps what it needs.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> reference = autodiff(fp.tanh())
      >>> y, kept = reference.forward((), jnp.zeros(2))
      >>> reference.backward((), kept, jnp.ones(2))[1].tolist()
      [1.0, 1.0]
    """
    check_layer("layer", layer)
    if policy is not None:
        check_function("policy", policy, "as those of jax.checkpoint_policies are")
    if policy is None:
        return _by_vjp(layer, layer.forward)

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        def output(params: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
            y, residuals = layer.forward(params, x, key)
            return y, recorded(residuals)

        return jax.checkpoint(output, policy=policy)(params, x)

    return _by_vjp(layer, forward)


def _by_vjp(layer: Layer, forward: Callable[..., Any]) -> Layer:
    forward, backward = by_vjp(forward)
    return leaf_of(layer, forward=forward, backward=backward, decoding=through(layer))
