"""What a loss says of its Hessian in its inputs: a square root of it, beside its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from funprop.layer import Layer


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


class Output(NamedTuple):
    """A loss with params as two layers, of which the Gauss-Newton matrix is: what gives the outputs
    that a plain loss is of.

    Attributes:
      layer: with the loss's params, from its inputs to those outputs.
      loss: without params, of them; it says its Hessian.
      cleaned: `(inputs, *weights) -> inputs`, without NaN where a weight of zero hides them.
    """

    layer: Layer
    loss: Layer
    cleaned: Callable[..., Any]


def with_output(backward: Any, output: Output) -> Any:
    """`backward` of a loss with params, with the two layers that it is made of."""
    backward.output = output
    return backward


def output_of(layer: Any) -> Output | None:
    """The two layers that a loss with params is made of, if it is."""
    return getattr(layer.backward, "output", None)
