"""What a loss says of its Hessian in its inputs: a square root of it, beside its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Curvature(NamedTuple):
    """Square roots of the Hessian of a loss's total in the outputs, `sum_c s_c s_c^T`, block by
    block of the examples, as cotangents of the outputs.

    Attributes:
      root: `(residuals, dy) -> [c, *outputs]`, exactly.
      sampled: `(residuals, dy, key) -> [*outputs]`, in expectation: the gradient at labels drawn
        from what the outputs say.
    """

    root: Callable[[Any, Any], Any]
    sampled: Callable[[Any, Any, Any], Any]


def curved(backward: Any, curvature: Curvature) -> Any:
    """`backward`, with what is known of its Hessian beside it."""
    backward.curvature = curvature
    return backward


def curvature_of(layer: Any) -> Curvature | None:
    """What is known of the Hessian of a loss, if anything."""
    return getattr(layer.backward, "curvature", None)
