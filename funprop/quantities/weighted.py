"""Each example's part of the gradient multiplied by a factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from funprop.layer import Layer
from funprop.maps import map_layers
from funprop.quantities.closed_form import closed_of
from funprop.quantities.each_example import gradients, keeping, without_input
from funprop.trees import Sum, spread, wide_dtype, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

AT_ONCE = 8  # examples


def weighted(objective: Layer, factors: Float[Array, " b"]) -> Layer:
    """The same objective, whose backward gives the gradient of the losses times the factors.

    Backward is linear in `dy`, and what comes out of the loss is one cotangent an example: it is
    multiplied there, once, and the rest is the backward pass as it is. Of a loss with params,
    theirs must be weighted too: by a closed form, or from each example's gradient in them. A loss
    is a leaf whose output, and so whose cotangent, is a `Sum`; there may be several.

    Backward takes the residuals of `objective` or of `squared_norms(objective)`.

    Raises:
      ValueError: at backward, the cotangents of the loss's inputs have not one row an example.
    """
    return map_layers(lambda leaf: _weighed(leaf, factors), objective)


def _weighed(loss: Layer, factors: Float[Array, " b"]) -> Layer:
    known = closed_of(loss)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        kept = without_input(residuals)
        if not isinstance(dy, Sum):
            return loss.backward(params, kept, dy)
        if known is not None and known.weighted is not None:
            return loss.backward(params, known.weighted(kept, factors), dy)
        dparams, dx = loss.backward(params, kept, dy)
        if jax.tree.leaves(dparams):
            dparams = weighted_sum_of(gradients(loss, params, residuals, dy), factors)
        return dparams, jax.tree.map(lambda d: each_times(d, factors), dx)

    return keeping(loss, backward)


def weighted_sum_of(grads: PyTree, factors: Float[Array, " b"], axis: int = 0) -> PyTree:
    """The sum over one axis of every leaf, the examples', each entry times its factor."""
    return jax.tree.map(lambda leaf: _weighted_sum(leaf, factors, axis).astype(leaf.dtype), grads)


def _weighted_sum(leaf: Array, factors: Float[Array, " b"], axis: int) -> Array:
    """A few examples at a time, whose sum is written out: XLA's own sum over an axis in front goes
    through memory in strides, and takes ten times as long on a CPU."""

    def some(total: Array, start: Array | int, size: int) -> Array:
        of = jax.lax.dynamic_slice_in_dim(factors, start, size)
        for i in range(size):
            part = jax.lax.dynamic_index_in_dim(leaf, start + i, axis, keepdims=False)
            total = total + jnp.where(of[i] == 0, 0, of[i].astype(wide) * part.astype(wide))
        return total

    wide, n = wide_dtype(leaf.dtype), len(factors)
    total = jnp.zeros(leaf.shape[:axis] + leaf.shape[axis + 1 :], wide)
    turns, rest = divmod(n, AT_ONCE)
    if turns:
        total = jax.lax.fori_loop(0, turns, lambda i, t: some(t, i * AT_ONCE, AT_ONCE), total)
    return some(total, turns * AT_ONCE, rest)


def each_times(d: Array, factors: Float[Array, " b"]) -> Array:
    if d.shape[:1] != factors.shape:
        raise ValueError(
            f"outputs and targets must have a first axis of {len(factors)} examples, got shape "
            f"{tuple(d.shape)}"
        )
    return _times(d, factors).astype(d.dtype)


def _times(d: Array, factors: Float[Array, " b"]) -> Array:
    """Each entry times its factor, in float32 at least; a factor of zero removes it, whatever it
    is."""
    wide = widen(d)
    each = spread(factors, wide)
    return jnp.where(each == 0, 0, wide * each)
