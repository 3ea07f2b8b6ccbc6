"""Losses. Each is a layer from `(outputs, targets)` or `(outputs, targets, weights)` to a `Sum`.

A loss is the weighted sum of its *terms*, with the sum of their weights beside it; nobody takes a
mean before the step does. `weights` covers the leading axes of the terms: one weight an example, or
one a token. One of exactly zero removes its term from value and gradient, whatever outputs and
targets hold there. Terms are computed in float32 at least, cotangents returned in the dtypes of the
inputs.
"""

from funprop.losses.cross_entropy import binary_cross_entropy, softmax_cross_entropy
from funprop.losses.linear_cross_entropy import LinearParams, linear_cross_entropy
from funprop.losses.predictions import linear_predictions
from funprop.losses.regression import huber, mean_absolute, mean_squared

__all__ = [
    "LinearParams",
    "binary_cross_entropy",
    "huber",
    "linear_cross_entropy",
    "linear_predictions",
    "mean_absolute",
    "mean_squared",
    "softmax_cross_entropy",
]
