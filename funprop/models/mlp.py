"""The multilayer perceptron."""

from __future__ import annotations

from typing import TYPE_CHECKING

from funprop.combinators import serial
from funprop.layer import Layer, named
from funprop.layers import dense, relu

if TYPE_CHECKING:
    from collections.abc import Callable


def mlp(*features: int, activation: Callable[[], Layer] = relu) -> Layer:
    """Dense layers with an activation between; none after the last.

    Args:
      *features: how many outputs each dense layer has.
      activation: makes what stands between two of them.

    Shapes: `x [*batch, i]`, `y [*batch, o]`, `o` being the last of `features`.
    Source: Rumelhart, Hinton and Williams, Nature 323 (1986).

    Raises:
      ValueError: there are no features, or a number is not positive.

    Example:
      >>> mlp(128, 64, 10)
      mlp(dense, relu, dense, relu, dense)
    """
    if not features:
        raise ValueError("features must have at least one number, got none")
    layers = [dense(features[0])]
    for wide in features[1:]:
        layers += [activation(), dense(wide)]
    return named("mlp", serial(*layers))
