"""Recomputing instead of keeping."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax

from funprop.layer import Layer, recorded

if TYPE_CHECKING:
    from jaxtyping import PyTree


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

    def rebuild(*children: Layer) -> Layer:
        return remat(layer.rebuild(*children))

    return dataclasses.replace(
        layer, forward=forward, backward=backward, rebuild=rebuild if layer.children else None
    )
