"""Residuals by the mirror law: those of each child at its place, behind them what is the node's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

if TYPE_CHECKING:
    from funprop.layer import Layer
    from funprop.typing import PyTree


class Saved(NamedTuple):
    """In the place of a part's residuals, on the way to a `remat` above that keeps the part; what
    is between leaves it as it is.

    Attributes:
      y, residuals: what the part's forward gave.
    """

    y: Any
    residuals: Any


def of_children(layer: Layer, residuals: PyTree) -> tuple[PyTree, ...]:
    """The residuals of each child; `None` where they are not kept (`remat`)."""
    n = len(layer.children)
    kept = isinstance(residuals, tuple) and len(residuals) >= n
    return residuals[:n] if kept else (None,) * n


def with_own(layer: Layer, residuals: Any, own: Any) -> tuple[Any, ...]:
    """`own` and the residuals of `layer`, its children's at their places."""
    n = len(layer.children)
    return (*residuals[:n], residuals[n:], own) if n else (residuals, own)


def without_own(layer: Layer, both: tuple[Any, ...]) -> tuple[Any, Any]:
    """`(residuals, own)`: undo `with_own`."""
    *children, rest, own = both
    return ((*children, *rest) if layer.children else rest), own


def only(residuals: PyTree, kind: type) -> PyTree:
    """`residuals` with only the nodes of one kind left in it, each in its place, and `None`
    elsewhere; what holds none at all is one `None`.

    So nothing of its structure is left, which may differ from trace to trace: residuals may have
    functions and shapes in it.
    """
    if isinstance(residuals, kind):
        return residuals
    parts, tree = jax.tree.flatten(residuals, is_leaf=lambda node: node is not residuals)
    if jax.tree_util.treedef_is_leaf(tree):
        return None
    found = [only(part, kind) for part in parts]
    return tree.unflatten(found) if any(part is not None for part in found) else None
