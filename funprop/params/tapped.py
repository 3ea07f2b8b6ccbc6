"""What was seen of a cotangent, beside `dparams` in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.layer import Recorded, recorded

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Tapped(NamedTuple):
    """What `tap` puts in the place of a layer's `dparams` when it watches cotangents.

    Attributes:
      dparams: the layer's own.
      seen: `Recorded`, what was watched.
    """

    dparams: Any
    seen: Recorded


def untap(dparams: PyTree) -> tuple[PyTree, PyTree]:
    """`(dparams, seen)`: the plain ones, as an optimizer takes them, and what `tap` saw.

    `seen` has the structure of what was given, with only the `Recorded` left in it, each in its
    place, and `None` elsewhere.

    Example:
      >>> untap((1.0, Tapped(2.0, Recorded(3.0))))[0]
      (1.0, 2.0)
    """

    def is_tapped(node: Any) -> bool:
        return isinstance(node, Tapped)

    def plain(node: Any) -> Any:
        return untap(node.dparams)[0] if is_tapped(node) else node

    return jax.tree.map(plain, dparams, is_leaf=is_tapped), recorded(dparams)


def map_plain(function: Callable[..., Any], dparams: PyTree, *others: PyTree) -> PyTree:
    """`function` of every leaf of the plain ones, `None` among them, and of what `others` have
    there; what was seen stays in its place."""

    def of(node: Any, *rest: Any) -> Any:
        if isinstance(node, Tapped):
            return node._replace(dparams=map_plain(function, node.dparams, *rest))
        return function(node, *rest)

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, Tapped)

    return jax.tree.map(of, dparams, *others, is_leaf=is_leaf)
