"""Norms and the weighted sum of every example's gradient by one backward pass: book-keeping.

The pass that finds the norms has in hand, at each layer, all that the layer's part of the sum is
made of. It is kept in the place of `dparams`, beside the squares; once the norms are known, and
from them the factors, each layer's sum is one product, with no second pass down the model.
Source: Bu et al., arXiv:2210.00038.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.layer import Layer, leaf_of, recorded
from funprop.params.frozen import trained
from funprop.params.tapped import Tapped, untap
from funprop.quantities.book import (
    Booked,
    Each,
    Left,
    Made,
    Rows,
    Shared,
    of_all_copies,
    over_parts,
)
from funprop.quantities.closed_form import closed_of, sum_squares
from funprop.quantities.each_example import gradients, is_trained, keeping
from funprop.quantities.shared_params import Both, Place, map_parts, plan
from funprop.quantities.squared_norms import gradients_of, is_shared, norm_of_sum
from funprop.residuals import of_children
from funprop.trees import nbytes

if TYPE_CHECKING:
    from funprop.quantities.each_example import Kept
    from funprop.typing import PyTree


def booked(layer: Layer, budget: int) -> Layer:
    """The same layer, whose backward gives a `Booked` in the place of each part's `dparams`.

    Of each part, what is smaller: every example's gradient, from which both the norms and the sum
    are then made, or residuals and `dy`. The gradients of a weight are smaller where there are many
    places an example; and there they are less arithmetic than the norms by `outer_squares` too.

    Args:
      layer: as for `squared_norms`.
      budget: bytes that a loss may keep beside; the other parts keep what they must.
    """

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return over(_standing(layer, residuals)).backward(params, residuals, dy)

    def over(standing: set[Place]) -> Layer:
        def of(place: Place, leaf: Layer) -> Layer:
            return _booked(leaf, budget=budget, stands=place in standing)

        return map_parts(layer, of)

    return leaf_of(layer, forward=over(set()).forward, backward=backward)


def booking(
    objective: Layer, budget: int | None, params: PyTree, batch: PyTree, key: Any
) -> Layer | None:
    """`booked(objective)`, if what it keeps is no more than `budget` (half as much again as params
    and residuals, if none is given) and no `tap` watches the cotangents, which are to be the sum's.
    """
    if budget is None:
        kept = jax.eval_shape(lambda *args: objective.forward(*args)[1], params, batch, key)
        budget = nbytes((params, kept)) * 3 // 2  # what cheap parts run again is kept here
    noting = booked(objective, budget)

    def once(params: PyTree, batch: PyTree, key: Any) -> PyTree:
        loss, residuals = noting.forward(params, batch, key)
        return noting.backward(params, residuals, jax.tree.map(jnp.ones_like, loss))[0]

    found = jax.eval_shape(once, params, batch, key) if budget else None
    fits = found is not None and recorded(found) is None and nbytes(found) <= budget
    return noting if fits else None


# ------------------------------------------------------------------------- the parts of a model


def _standing(layer: Layer, residuals: PyTree, at: Place = ()) -> set[Place]:
    """The places of the leaves that find in the whole's residuals what they left there; not where
    a rewrite has it in another memory (`offload`)."""
    if not layer.children or layer.shares:
        here = jax.tree.leaves(residuals) if isinstance(residuals, Left) else [None]
        return set() if any(map(_is_away, here)) else {at}
    each = enumerate(zip(layer.children, of_children(layer, residuals), strict=True))
    return {place for i, (child, own) in each for place in _standing(child, own, (*at, i))}


def _is_away(leaf: Any) -> bool:
    return leaf is None or jax.typeof(leaf).memory_space != jax.memory.Space.Device


# -------------------------------------------------------------------------- what becomes of a leaf


def _booked(leaf: Layer, *, budget: int, stands: bool) -> Layer:
    known = closed_of(leaf)
    if is_shared(leaf):
        return _marking(_shared(leaf, budget, stands))
    if known is None:
        return _marking(_unknown(leaf, stands))
    if known.booked is not None:
        forward, backward = known.booked.passes(budget)

        def noted(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[Booked, PyTree]:
            squares, kept, dx = backward(params, residuals, dy)
            return Booked(squares, kept), dx

        return _marking(leaf_of(leaf, forward=forward, backward=noted))

    def closed(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[Any, PyTree]:
        if not is_trained(params):
            return leaf.backward(params, residuals, dy)
        if known.each is not None:
            made = jax.eval_shape(known.each, params, residuals, dy)
            if nbytes(made[0]) <= nbytes((residuals, dy)):
                grads, dx = known.each(params, residuals, dy)
                return Booked(sum_squares(grads), Made(grads)), dx
        squares, dx = known.squares(params, residuals, dy)
        return Booked(squares, Rows(None if stands else residuals, dy)), dx

    return _marking(leaf_of(leaf, backward=closed))


def _marking(leaf: Layer) -> Layer:
    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, Left]:
        y, residuals = leaf.forward(params, x, key)
        return y, Left(residuals)

    def backward(params: PyTree, residuals: Left, dy: PyTree) -> tuple[PyTree, PyTree]:
        return leaf.backward(params, residuals.residuals, dy)

    return leaf_of(leaf, forward=forward, backward=backward)


def _unknown(leaf: Layer, stands: bool) -> Layer:
    """`leaf`, of which no closed form is known: each example's gradient is made."""

    def backward(params: PyTree, kept: Kept, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not is_trained(params):
            return leaf.backward(params, kept, dy)
        dparams, dx = leaf.backward(params, kept.residuals, dy)
        _, seen = untap(dparams)
        grads = gradients(leaf, params, kept, dy)
        rows = Rows(None if stands else kept.residuals, dy)
        many = all(d.ndim for d in jax.tree.leaves(dy)) and nbytes(grads) > nbytes((kept, dy))
        found = Booked(sum_squares(grads), rows if many else Each(grads))
        return (found if seen is None else Tapped(found, seen)), dx

    return keeping(leaf, backward)


def _made(leaf: Layer) -> Layer:
    """`leaf` with each example's gradient, of which others make the norms."""
    inner = gradients_of(leaf)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        grads, dx = inner.backward(params, residuals, dy)
        return (Booked(None, Each(grads)) if is_trained(params) else grads), dx

    return leaf_of(inner, backward=backward)


def _shared(node: Layer, budget: int, stands: bool) -> Layer:
    """`node`, which shares params: what its child gives is caught on its way, as by
    `squared_norms`."""

    def over(params: PyTree, standing: set[Place], caught: list[Any]) -> Layer:
        how = plan(node, params).how

        def of(place: Place, leaf: Layer) -> Layer:
            if how[place] == "gradients":
                return _marking(_made(leaf))
            own = stands and place in standing and how[place] != "both"
            return _booked(leaf, budget=budget, stands=own)

        child = map_parts(node.children[0], of)

        def backward(expanded: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
            found, dx = child.backward(expanded, residuals, dy)
            caught.append((expanded, found))
            return jax.tree.map(jnp.zeros_like, trained(expanded)), dx

        return node.rebuild(leaf_of(child, backward=backward))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return over(params, set(), []).forward(params, x, key)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        caught: list[Any] = []
        standing = _standing(node.children[0], residuals[0])
        _, dx = over(params, standing, caught).backward(params, residuals, dy)
        ((expanded, found),) = caught
        what = plan(node, params)
        tied = {place for pair in what.tied for place in pair}
        of = functools.partial(_plain, tied)
        plain = over_parts(node.children[0], of, expanded, found, residuals=None)
        return Booked(norm_of_sum(node, params, expanded, plain, what), Shared(found)), dx

    return leaf_of(node, forward=forward, backward=backward)


def _plain(
    tied: set[Place], leaf: Layer, at: Place, lead: int, params: PyTree, got: Any, _: None
) -> PyTree:
    """What `squared_norms` would have given, or what it asks of parts of which more is wanted."""
    if not isinstance(got, Booked):
        return got
    if at in tied:
        return Both(got.squares, (params, got.kept.residuals, got.kept.dy))
    if got.squares is None:  # the gradients, with the examples in front of the copies
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, lead, 0), got.kept.grads)
    return of_all_copies(got.squares)
