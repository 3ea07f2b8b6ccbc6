"""The backward that JAX takes of a layer's forward."""

from __future__ import annotations

from funprop.layer import Layer, by_vjp


def autodiff(layer: Layer) -> Layer:
    """The same layer with its backward taken by `jax.vjp` of its forward.

    On one layer, a reference for its backward; `map_layers(autodiff, model)` is one for every
    layer of a model. Of a combinator it makes a leaf, as no backward inside it is run any more:
    `autodiff(model)` is what `jax.grad` makes of the whole.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> reference = autodiff(fp.tanh())
      >>> y, kept = reference.forward((), jnp.zeros(2))
      >>> reference.backward((), kept, jnp.ones(2))[1].tolist()
      [1.0, 1.0]
    """
    return Layer(layer.init, *by_vjp(layer.forward), layer.name)
