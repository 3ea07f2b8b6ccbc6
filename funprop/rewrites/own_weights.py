"""Rewrites of layers by what their params are for, wherever in a model these are its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop.layer import Layer, check_layer
from funprop.params.roles import roles
from funprop.params.selection import Pattern, map_places, places
from funprop.rewrites.copies import apart

if TYPE_CHECKING:
    from funprop.typing import PyTree


def map_own(function: Callable[[Layer], Layer], model: Layer, where: Pattern | None) -> Layer:
    """`function` applied to the leaves of `model` that have params, or of its parts at `where`.

    Left out are parts whose params are made of others, whatever they do with them (`reparam`).
    """
    check_layer("model", model)

    def look(node: Layer) -> Layer:
        if not node.children:
            return node if node.paramless else function(node)
        if node.hands_on:  # the others' params are made from the first's
            first, *made = node.children[0].children
            return node.rebuild(node.children[0].rebuild(look(first), *made))
        return node if node.shares else node.rebuild(*map(look, node.children))

    if where is None:
        return look(model)
    model, _, chosen = apart(model, where)
    return map_places(places(chosen, model, into_shared=False), model, look)


def weights(params: PyTree) -> PyTree:
    """`params` with `None` in the place of what is no weight."""
    return jax.tree.map(lambda leaf, r: leaf if r == "weight" else None, params, roles(params))


def with_weights(function: Callable[..., Any], new: PyTree, params: PyTree) -> PyTree:
    """`params`, with `function(new, weight)` in the place of each weight that `new` has one for."""

    def of(n: Any, w: Any) -> Any:
        return w if n is None else function(n, w)

    return jax.tree.map(of, new, params, is_leaf=lambda n: n is None)
