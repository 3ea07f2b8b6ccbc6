"""Params that are not trained, and what is trained of a tree of params."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.params.roles import UNTRAINED, declared

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Frozen(NamedTuple):
    """Params that are not trained: in the place of their gradient there is `None`.

    Attributes:
      frozen: the params of one part.
    """

    frozen: Any

    roles = {"frozen": "frozen"}


def as_frozen(params: PyTree) -> PyTree:
    """`params` fixed; where there are none, nothing to fix."""
    return Frozen(params) if jax.tree.leaves(params) else params


def thawed(params: PyTree) -> PyTree:
    """Undo `as_frozen`."""
    if isinstance(params, Frozen):
        return params.frozen
    if jax.tree.leaves(params):
        raise TypeError(f"params must be Frozen(params), got {type(params).__name__}")
    return params


def trained(params: PyTree) -> PyTree:
    """`params` with `None` in the place of what is frozen or a statistic: the structure of their
    gradient.

    Example:
      >>> trained((Frozen(1.0), 2.0))
      (None, 2.0)
    """

    def of(node: Any) -> Any:
        if not _has_untrained(node):
            return node
        said = declared(node) or {}
        parts = [
            None if said.get(field) in UNTRAINED else trained(part)
            for field, part in zip(node._fields, node, strict=True)
        ]
        whole = all(said.get(field) in UNTRAINED for field in node._fields)
        return None if whole else node._make(parts)

    return jax.tree.map(of, params, is_leaf=_has_untrained)


def with_trained(params: PyTree, new: PyTree) -> PyTree:
    """`params` with what is trained taken from `new`.

    Example:
      >>> with_trained((Frozen(1.0), 2.0), (None, 3.0))
      (Frozen(frozen=1.0), 3.0)
    """

    def of(node: Any, new: Any) -> Any:
        if not _has_untrained(node):
            return new
        if new is None:
            return node
        said = declared(node) or {}
        return node._make(
            part if said.get(field) in UNTRAINED else with_trained(part, other)
            for field, part, other in zip(node._fields, node, new, strict=True)
        )

    return jax.tree.map(of, params, new, is_leaf=_has_untrained)


def _has_untrained(node: Any) -> bool:
    said = declared(node)
    return said is not None and any(role in UNTRAINED for role in said.values())
