"""Layer -> Layer: the same function, its backward done in another way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from funprop.layer import Layer, by_vjp, recorded

if TYPE_CHECKING:
    from jaxtyping import PyTree


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


def remat(layer: Layer) -> Layer:
    """The same layer keeping only its input; its forward is run again in the backward pass.

    Costs one more forward and saves what the layer would have kept; wrap a block, not a leaf.
    Source: Chen et al., arXiv:1604.06174 (gradient checkpointing).

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> block = remat(fp.serial(fp.gelu(), fp.tanh()))
      >>> y, kept = block.forward(((), ()), jnp.zeros(2))
      >>> len(jax.tree.leaves(kept))
      1
    """
    nothing_of_children = (None,) * len(layer.children)  # the mirror law

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, residuals = layer.forward(params, x, key)
        return y, (*nothing_of_children, x, key, recorded(residuals))

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        *_, x, key, _ = residuals
        # Without the barrier XLA sees the same computation twice, merges it, and keeps everything.
        params, x, dy = jax.lax.optimization_barrier((params, x, dy))
        _, again = layer.forward(params, x, key)
        return layer.backward(params, again, dy)

    if not layer.children:
        return Layer(layer.init, forward, backward, layer.name)

    def rebuild(*children: Layer) -> Layer:
        return remat(layer.rebuild(*children))

    return Layer(layer.init, forward, backward, layer.name, layer.children, rebuild)
