"""A model is a tree of layers that can be mapped, as `jax.tree.map` maps arrays."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from funprop.checks import check_function
from funprop.layer import Layer, check_layer
from funprop.names import below

if TYPE_CHECKING:
    from collections.abc import Callable


def map_layers(function: Callable[[Layer], Layer], model: Layer) -> Layer:
    """Apply `function` to every leaf of the model and rebuild the combinators above.

    As `jax.tree.map` is to arrays, so is this to layers; `map_layers(autodiff, model)` is the
    reference for a model whose backward is written by hand.

    Raises:
      TypeError: `model` is no layer, or `function` none from layers to layers.

    Example:
      >>> import funprop as fp
      >>> map_layers(lambda l: fp.named(l.name.upper(), l), fp.serial(fp.dense(4), fp.relu()))
      serial(DENSE, RELU)
    """
    check_function("function", function, "from a layer to a layer")
    check_layer("model", model)

    def one(_: str, node: Layer) -> Layer:
        found = node if node.children else function(node)
        check_layer("what function gives", found)
        return found

    return map_nodes(one, model)


def map_nodes(function: Callable[[str, Layer], Layer], model: Layer, path: str = "") -> Layer:
    """Apply `function(path, layer)` to every node, children before the node above them."""
    children = [
        map_nodes(function, child, place)
        for child, place in zip(model.children, below(path, model), strict=True)
    ]
    return function(path, model.rebuild(*children) if children else model)


def around(layer: Layer, rewrite: Callable[[Layer], Layer], **functions: Any) -> Layer:
    """`layer` with other functions and with its children: what a rewrite makes of a node whose
    parts stay for others to rewrite. These rebuild it, and it is `rewrite` of the new one."""

    def rebuild(*children: Layer) -> Layer:
        return rewrite(layer.rebuild(*children))

    return dataclasses.replace(layer, rebuild=rebuild if layer.children else None, **functions)
