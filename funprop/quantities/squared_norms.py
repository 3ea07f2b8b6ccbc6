"""The norm of each example's gradient, without the gradient of any."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.layer import Layer, leaf_of
from funprop.maps import around
from funprop.params.frozen import trained
from funprop.params.tapped import untap
from funprop.properties import mixing, refuse_mixing
from funprop.quantities.closed_form import closed_of, sum_squares
from funprop.quantities.each_example import gradients, is_trained, keeping
from funprop.quantities.shared_params import (
    Both,
    Part,
    Place,
    Plan,
    catching,
    parts,
    plan,
    pulled,
)

if TYPE_CHECKING:
    from funprop.quantities.each_example import Kept
    from funprop.typing import Array, Float, PyTree


def squared_norms(layer: Layer) -> Layer:
    """The same layer, whose backward gives, in the place of `dparams`, their squared norms for each
    example alone: a tree of `[batch, ...]`, which `total` sums.

    A layer with a closed form beside its backward (`closed`) gives them from what it keeps and
    `dy`; of any other, each example's gradient is made from its own row of the input, one layer
    after the other, by `vmap` of the layer's two passes. What of the input is not among its
    residuals is kept beside them.

    Of a node that shares params (`reparam`), those that go to one place and unchanged are treated
    so too. For the others the norm of a sum is wanted: by a closed form for a table that is looked
    up in and multiplied by (tied embeddings), else from each example's gradient in them.

    All inputs and outputs have the examples along their first axis, and no layer may mix them: one
    that does (`batch_norm`) is refused where there is a key.
    Source: Goodfellow, arXiv:1510.01799; Li et al., arXiv:2110.05679.

    Raises:
      ValueError: at forward, a layer mixes examples; at backward, a leaf of an input has no axis of
        examples.

    Example:
      >>> import funprop as fp
      >>> model = squared_norms(fp.serial(fp.dense(2, bias=False), fp.dense(1, bias=False)))
      >>> params = fp.DenseParams(jnp.ones((1, 2)), None), fp.DenseParams(jnp.ones((2, 1)), None)
      >>> y, residuals = model.forward(params, jnp.array([[1.0], [2.0]]))
      >>> found, dx = model.backward(params, residuals, jnp.ones((2, 1)))
      >>> total(found).tolist()
      [4.0, 16.0]
    """
    found = over_examples(layer, lambda place: _squares)
    if not layer.mixes:
        return found

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        refuse_mixing("squared_norms", mixing(layer, key), sharded=False)
        return found.forward(params, x, key)

    return leaf_of(found, forward=forward)


def total(found: PyTree) -> Float[Array, " b"]:
    """The squared norms of the whole, from what `squared_norms` gives."""
    leaves = jax.tree.leaves(untap(found)[0])
    return sum(leaf.sum(tuple(range(1, leaf.ndim))) for leaf in leaves)  # pyright: ignore


def over_examples(
    node: Layer, how: Callable[[Place], Callable[[Layer], Layer]], at: Place = ()
) -> Layer:
    """`how(place)` of every leaf; what it puts in the place of `dparams` has the examples first."""
    if not node.children or node.shares:
        return how(at)(node)
    inside = (over_examples(child, how, (*at, i)) for i, child in enumerate(node.children))
    whole = node.rebuild(*inside)
    return _examples_first(whole) if node.copies else whole


def _examples_first(node: Layer) -> Layer:
    """`node` with the axes of copies and of examples exchanged in what is in place of `dparams`."""

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        found, dx = node.backward(params, residuals, dy)
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), untap(found)[0]), dx

    return around(node, _examples_first, backward=backward)


# -------------------------------------------------------------------------- what becomes of a leaf


def _squares(leaf: Layer) -> Layer:
    if is_shared(leaf):
        return _shared(leaf)
    known = closed_of(leaf)
    if known is None:
        return gradients_of(leaf, sum_squares)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not is_trained(params):
            return leaf.backward(params, residuals, dy)
        return known.squares(params, residuals, dy)

    return leaf_of(leaf, backward=backward)


def gradients_of(leaf: Layer, then: Callable[[PyTree], PyTree] = lambda grads: grads) -> Layer:
    """`leaf` with the gradient of each example in the place of `dparams`, or what is made of it."""
    if is_shared(leaf):
        return _shared(leaf, made=True)
    known = closed_of(leaf)

    def closed(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not is_trained(params):
            return leaf.backward(params, residuals, dy)
        grads, dx = known.each(params, residuals, dy)  # pyright: ignore
        return then(jax.tree.map(lambda g, p: g.astype(p.dtype), grads, trained(params))), dx

    if known is not None and known.each is not None:
        return leaf_of(leaf, backward=closed)

    def backward(params: PyTree, kept: Kept, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not is_trained(params):
            return leaf.backward(params, kept, dy)
        dx = leaf.backward(params, kept.residuals, dy)[1]
        return then(gradients(leaf, params, kept, dy)), dx

    return keeping(leaf, backward)


def _both(leaf: Layer) -> Layer:
    """`leaf` with its squared norms, and with all that their closed form is made of."""
    known = closed_of(leaf)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[Both, PyTree]:
        squares, dx = known.squares(params, residuals, dy)  # pyright: ignore
        return Both(squares, (params, residuals, dy)), dx

    return leaf_of(leaf, backward=backward)


HOW: dict[str, Callable[[Layer], Layer]] = {
    "squares": _squares,
    "gradients": gradients_of,
    "both": _both,
}


# -------------------------------------------------------------------- what becomes of shared params


def is_shared(node: Layer) -> bool:
    """Whether `node` is made of one other by `expand`: otherwise it is a leaf to us."""
    return node.shares and len(node.children) == 1


def _shared(node: Layer, *, made: bool = False) -> Layer:
    """`node` with the squared norms of its params in the place of their cotangents; or with their
    gradients, where they are to be `made`.

    Its child gives what the plan asks of each part of the expanded params.
    """

    def child_of(params: PyTree) -> Layer:
        how = plan(node, params, all_made=made).how
        return over_examples(node.children[0], lambda place: HOW[how[place]])

    def then(params: PyTree, expanded: PyTree, found: PyTree) -> PyTree:
        what = plan(node, params, all_made=made)
        if made:
            return _pulled(node, params, expanded, found, what.how)
        return norm_of_sum(node, params, expanded, found, what)

    return catching(node, child_of, then)


def norm_of_sum(node: Layer, params: PyTree, expanded: PyTree, found: PyTree, what: Plan) -> PyTree:
    """The squared norms of the gradient of `params`, of one part of it after the other."""
    how, tied, _ = what
    each = {p.place: p for p in parts(node.children[0], found)}
    squares = [total(each[place].tree) for place in how if how[place] == "squares"]
    squares += [each[place].tree.squares for place in how if how[place] == "both"]
    squares += [2 * _cross(each[a], each[b]) for a, b in tied]
    if "gradients" in how.values():
        squares.append(sum_squares(trained(_pulled(node, params, expanded, found, how))))
    return sum(squares)


def _cross(lookup: Part, product: Part) -> Float[Array, " b"]:
    """The products of the two gradients of one table. That of looking up is `dy_t` in row `id_t`,
    summed, so it is `sum_t dy_t . row id_t of the other`."""
    one, two = closed_of(lookup.layer), closed_of(product.layer)
    numbers, dy = one.looked_up(*lookup.tree.known)  # pyright: ignore
    return (dy * two.rows(*product.tree.known, numbers)).sum((1, 2))  # pyright: ignore


def _pulled(
    node: Layer, params: PyTree, expanded: PyTree, found: PyTree, how: dict[Place, str]
) -> PyTree:
    """The gradients of `params`, of each example, as far as they come from those of expanded ones
    that were made; the others' part is left out."""
    each = {p.place: p.tree for p in parts(node.children[0], found)}

    def of(part: Part) -> PyTree | None:
        return each[part.place] if how[part.place] == "gradients" else None

    return pulled(node, params, expanded, of)
