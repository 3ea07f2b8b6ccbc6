"""Something of one's own among the residuals of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funprop.layer import Layer


def with_own(layer: Layer, residuals: Any, own: Any) -> tuple[Any, ...]:
    """`own` and the residuals of `layer`, its children's at their places: the mirror law."""
    n = len(layer.children)
    return (*residuals[:n], residuals[n:], own) if n else (residuals, own)


def without_own(layer: Layer, both: tuple[Any, ...]) -> tuple[Any, Any]:
    """`(residuals, own)`: undo `beside`."""
    *children, rest, own = both
    return ((*children, *rest) if layer.children else rest), own
