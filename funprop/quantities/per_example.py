"""What the examples of a batch say of its gradient: each one's, and how they differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.arguments import check_given
from funprop.layer import Layer, leaf_of
from funprop.properties import mixing, refuse_mixing
from funprop.quantities.closed_form import closed_of, gram, squares_over_first
from funprop.quantities.columns import (
    Quantity,
    check_objective,
    one_pass,
    with_columns,
)
from funprop.quantities.each_example import is_trained
from funprop.quantities.outer import placed, products, second_moment
from funprop.quantities.shared_params import map_parts
from funprop.quantities.squared_norms import gradients_of, over_examples, squared_norms, total
from funprop.trees import Sum, length, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

Given = Callable[..., Any]


def per_example_gradients(objective: Layer) -> Given:
    """The gradient of every example, by one backward pass: each layer's by its closed form, or from
    the example's row of what the layer was given.

    Args:
      objective: a layer from a batch to a `Sum`, the examples along the first axis of all that its
        layers give to each other.

    Returns:
      `(params, batch, key=None) -> grads`, like the gradient, with the examples in front; an
      example's weight is in its own. They add up to `backprop(objective)`'s.

    Raises:
      TypeError: `objective` is no layer, or gives no `Sum`.
      ValueError: when called, there is a key and a layer mixes examples (`batch_norm`).

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> per_example_gradients(line)(params, batch).w.tolist()
      [[[-2.0]], [[-8.0]]]
    """
    check_objective(objective)

    rewritten = over_examples(objective, lambda place: gradients_of)

    def gradients(params: PyTree, batch: PyTree, key: Any = None) -> PyTree:
        refuse_mixing("per_example_gradients", mixing(objective, key), sharded=False)
        return one_pass(rewritten, objective, params, batch, key)[0]

    return gradients


def per_example_norms(objective: Layer) -> Given:
    """The L2 norm of every example's gradient, over all params, without the gradient of any where a
    layer has a closed form for it.

    Returns:
      `(params, batch, key=None) -> norms`, `[b]`.

    Source: Goodfellow, arXiv:1510.01799; Li et al., arXiv:2110.05679.

    Raises: as `per_example_gradients`.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> per_example_norms(line)(params, batch).tolist()
      [2.0, 8.0]
    """
    check_objective(objective)
    rewritten = squared_norms(objective)

    def norms(params: PyTree, batch: PyTree, key: Any = None) -> Float[Array, " b"]:
        refuse_mixing("per_example_norms", mixing(objective, key), sharded=False)
        found, _ = one_pass(rewritten, objective, params, batch, key)
        return jnp.sqrt(jnp.maximum(total(found), 0))

    return norms


def per_example_dot_products(objective: Layer) -> Given:
    """The products of the gradients of all pairs of examples: which pull the same way. It is also
    the kernel of the network's tangents, weighted by the loss's cotangents.

    Returns:
      `(params, batch, key=None) -> products`, `[b, b]`; the diagonal is the squared norms.

    Raises: as `per_example_gradients`.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> per_example_dot_products(line)(params, batch).tolist()
      [[4.0, 16.0], [16.0, 64.0]]
    """
    check_objective(objective)

    def pairs(leaf: Layer) -> Layer:
        known = closed_of(leaf)
        outer = known.outer if known is not None else None
        made = gradients_of(leaf)

        def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
            if outer is not None:
                found = products(params, *outer(residuals, dy))
                return found, leaf.backward(params, residuals, dy)[1]
            grads, dx = made.backward(params, residuals, dy)
            return (_gram_of(grads) if is_trained(params) else grads), dx

        return leaf_of(leaf if outer else made, backward=backward)

    rewritten = map_parts(objective, lambda place, leaf: pairs(leaf))

    def dot_products(params: PyTree, batch: PyTree, key: Any = None) -> Float[Array, "b b"]:
        refuse_mixing("per_example_dot_products", mixing(objective, key), sharded=False)
        found, _ = one_pass(rewritten, objective, params, batch, key)
        parts = [part.sum(tuple(range(part.ndim - 2))) for part in jax.tree.leaves(found)]
        return sum(parts)  # pyright: ignore

    return dot_products


def _gram_of(grads: PyTree) -> Float[Array, "b b"]:
    flat = (widen(g).reshape(1, len(g), math.prod(g.shape[1:])) for g in jax.tree.leaves(grads))
    return sum(gram(rows)[0] for rows in flat)  # pyright: ignore


class Moments(NamedTuple):
    """In the place of a part's params: the sums of every example's gradient and of its square."""

    first: Any
    second: Any


def gradient_variance(objective: Layer) -> Given:
    """How much every element of the gradient differs from example to example.

    Of `b` examples with gradients `g_i`, `sum_i (g_i - mean)^2 / (b - 1)`: without bias, by one
    backward pass, and of a layer with a closed form without a gradient of any example in memory.
    It is a difference of two sums: in float32 nothing is left of a variance that is a millionth of
    the mean's square or less; in float64 there is.

    Returns:
      `(params, batch, key=None) -> variance`, like the gradient. The mean is over the examples, so
      it is the variance of *one* example's gradient; that of a batch's sum is `b` times it.

    Raises: as `per_example_gradients`; ValueError: there are fewer than two examples.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> gradient_variance(line)(params, batch).w.tolist()  # of -2 and -8
      [[18.0]]
    """
    check_objective(objective)

    def closed(params: Any, rows: Any, d: Any) -> Moments:
        wide, dy = widen(rows), widen(d[0])
        dw = jnp.einsum("bti,bto->io", wide, dy)
        return Moments(placed(params, dw, dy.sum((0, 1))), second_moment(params, rows, d))

    def made(params: Any, grads: PyTree) -> Moments:
        wide = jax.tree.map(widen, grads)
        summed = jax.tree.map(lambda g: g.sum(0), wide)
        return Moments(summed, jax.tree.map(squares_over_first, wide))

    def variance(params: PyTree, batch: PyTree, key: Any = None) -> PyTree:
        b = _two_or_more("gradient_variance", batch)
        quantity = Quantity(closed, made)
        found, _ = with_columns("gradient_variance", objective, quantity, params, batch, key)

        def of(moments: Moments) -> PyTree:
            return jax.tree.map(_variance, moments.first, moments.second)

        def _variance(first: Any, second: Any) -> Any:
            return jnp.maximum(second - first * first / b, 0) / (b - 1)

        return jax.tree.map(of, found, is_leaf=lambda node: isinstance(node, Moments))

    return variance


def noise_scale(objective: Layer) -> Given:
    """The batch size at which a gradient's noise is as large as the gradient: beyond it, larger
    batches make little of more work.

    `tr(S) / |G|^2`, with `S` the covariance of one example's gradient and `G` their mean, both
    without bias, in units of the loss's weight. `gradient_statistics` finds the same from a few
    parts of a batch; here every example is a part, so that one batch says more.
    Source: McCandlish et al., arXiv:1812.06162, appendix A.1.

    Returns:
      `(params, batch, key=None) -> Sum`, of `tr(S)` and `|G|^2`; its mean over batches is the
      noise scale.

    Raises: as `per_example_gradients`; ValueError: there are fewer than two examples.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> found = noise_scale(line)(params, batch)  # of -2 and -8: a variance of 18
      >>> float(found.total), float(found.weight)
      (18.0, 16.0)
    """
    check_objective(objective)
    norms = squared_norms(objective)

    def scale(params: PyTree, batch: PyTree, key: Any = None) -> Sum:
        b = _two_or_more("noise_scale", batch)
        refuse_mixing("noise_scale", mixing(objective, key), sharded=False)
        squares = total(one_pass(norms, objective, params, batch, key)[0])
        grads, (_, whole) = one_pass(objective, objective, params, batch, key)
        whole = jnp.where(whole == 0, 1, whole).astype(squares.dtype)
        weights = _weights(batch, whole, b)
        some = weights != 0
        each = jnp.where(some, weights, 1)
        n = jnp.maximum(some.sum(dtype=each.dtype), 1)
        leaves = [jnp.square(widen(g) / whole).sum() for g in jax.tree.leaves(grads)]
        big = sum(leaf.astype(each.dtype) for leaf in leaves)
        size = jnp.where(some, squares / each**2, 0).sum() / n
        apart = jnp.where(some, 1 / each, 0).sum() / n - 1 / whole
        noise = (size - big) / jnp.where(apart == 0, 1, apart)
        return Sum(noise, big - noise / whole)

    return scale


def _weights(batch: Any, whole: Any, b: int) -> Float[Array, " b"]:
    """The share of every example in the loss's weight."""
    if not isinstance(batch, tuple) or len(batch) != 3:
        return jnp.full(b, whole / b)
    own = jnp.asarray(batch[2]).astype(whole.dtype)
    own = own.sum(tuple(range(1, own.ndim)))
    return own * whole / jnp.where(own.sum() == 0, 1, own.sum())


def _two_or_more(who: str, batch: PyTree) -> int:
    check_given(batch, None, None)
    b = length(batch)
    if b is None or b < 2:
        raise ValueError(f"{who} needs a batch of two examples or more, got {b or 'none'}")
    return b
