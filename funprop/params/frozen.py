"""Params that are not trained, and what is trained of a tree of params."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Frozen(NamedTuple):
    """Params that are not trained: in the place of their gradient there is `None`.

    Attributes:
      params: of one layer.
    """

    params: Any


def trained(params: PyTree) -> PyTree:
    """`params` with `None` in the place of what is frozen: the structure of their gradient.

    Example:
      >>> trained((Frozen(1.0), 2.0))
      (None, 2.0)
    """
    return jax.tree.map(lambda p: None if _is_frozen(p) else p, params, is_leaf=_is_frozen)


def with_trained(params: PyTree, new: PyTree) -> PyTree:
    """`params` with what is trained taken from `new`.

    Example:
      >>> with_trained((Frozen(1.0), 2.0), (None, 3.0))
      (Frozen(params=1.0), 3.0)
    """
    return jax.tree.map(lambda p, n: p if _is_frozen(p) else n, params, new, is_leaf=_is_frozen)


def _is_frozen(node: Any) -> bool:
    return isinstance(node, Frozen)
