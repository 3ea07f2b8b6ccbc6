"""Columns through a node that shares params: a quantity of those that are made of others.

A part whose params are the node's own, used there alone, has the quantity that it would have
elsewhere. The others give what their gradients are made of, for every column; these are made one
column after the other, example by example, pulled back, and only then made a quantity.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layer import Layer, leaf_of
from funprop.params.frozen import trained
from funprop.params.selection import Place
from funprop.params.tapped import untap
from funprop.quantities.each_example import without_input
from funprop.quantities.shared_params import (
    Part,
    catching,
    divided,
    key_of,
    map_parts,
    over_copies,
    parts,
    placed,
    pulled,
)
from funprop.quantities.squared_norms import gradients_of
from funprop.quantities.turns import each_column, in_turn

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Seen(NamedTuple):
    """In the place of a part's `dparams`: what every example's gradient is made of, by columns."""

    residuals: Any
    dy: Any


class How(NamedTuple):
    """What becomes of the parts of a node.

    Attributes:
      own: of a part with params of its own: its backward takes columns, and gives a quantity.
      seeing: of another: its backward gives a `Seen`.
      meant: the layer that a `Seen` is of.
      made: the quantity from every example's gradients, `(params, grads) -> found`.
    """

    own: Callable[[Layer], Layer]
    seeing: Callable[[Layer], Layer]
    meant: Callable[[Layer], Layer]
    made: Callable[[Any, PyTree], PyTree]


def seeing(leaf: Layer) -> Layer:
    """`leaf` with a `Seen` in the place of its `dparams`."""

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[Seen, PyTree]:
        kept = without_input(residuals)
        return Seen(residuals, dy), each_column(lambda d: leaf.backward(params, kept, d)[1], dy)

    return leaf_of(gradients_of(leaf), backward=backward)


def of_shared(node: Layer, how: How) -> Layer:
    """`node`, of one child whose params it makes, with a quantity in the place of `dparams`."""

    def child_of(params: PyTree) -> Layer:
        own = divided(node, params).own

        def of_part(place: Place, part: Layer) -> Layer:
            return (how.own if place in own else how.seeing)(part)

        return map_parts(node.children[0], of_part)

    def then(params: PyTree, expanded: PyTree, found: PyTree) -> PyTree:
        whole, own, others = divided(node, params)
        of_parts = {part.place: part for part in parts(node.children[0], found)}
        leaves = jax.tree.leaves(params)

        def of_others(grads: PyTree) -> list[Any]:
            numbers = jax.tree.leaves(whole), jax.tree.leaves(grads)
            each = dict(zip(*numbers, strict=True))
            own = [jax.tree.map(leaves.__getitem__, ids) for ids in others]
            made = [jax.tree.map(each.__getitem__, ids) for ids in others]
            return [how.made(*given) for given in zip(own, made, strict=True)]

        seen = {place: p for place, p in of_parts.items() if isinstance(p.tree, Seen)}
        if seen:
            columns = {place: _first(p.lead, p.tree.dy) for place, p in seen.items()}
            through = functools.partial(_through, node, params, expanded, seen, how.meant)
            rest, _ = in_turn(lambda dy: (of_others(through(dy)), ()), columns)
        else:  # what no part has
            rest = of_others(jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), trained(params)))
        values = {key_of(ids): of_parts[place].tree for place, ids in own.items()}
        values |= {key_of(ids): of for ids, of in zip(others, rest, strict=True)}
        return placed(whole, values, lambda ids: ids)

    return catching(node, child_of, then)


def _through(
    node: Layer,
    params: PyTree,
    expanded: PyTree,
    seen: dict[Place, Any],
    meant: Callable[[Layer], Layer],
    dy: dict[Place, PyTree],
) -> PyTree:
    """The gradients of `params`, of each example, for one column, as far as they come through the
    parts that are `seen`."""

    def of(part: Part) -> PyTree | None:
        if part.place not in seen:
            return None
        backward = gradients_of(meant(part.layer)).backward
        one = over_copies(lambda *given: backward(*given)[0], part.lead)
        grads = one(part.tree, seen[part.place].tree.residuals, dy[part.place])
        return _first(part.lead, trained(untap(grads)[0]))

    return trained(pulled(node, params, expanded, of))


def _first(axis: int, tree: PyTree) -> PyTree:
    """`tree` with this axis of every leaf in front."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), tree)
