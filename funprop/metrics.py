"""Metrics: what people want to know beside the loss. Each is a function from
`(outputs, targets, weights=None)` to a `Sum`, so that it is exact over batches of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from funprop.trees import Sum, is_float, weighted_sum, widen

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


def accuracy(
    outputs: Float[Array, "*n c"],
    targets: Num[Array, "..."],
    weights: Num[Array, "..."] | None = None,
) -> Sum:
    """The share of rows whose largest output is at the target's class.

    Args:
      outputs: logits or probabilities.
      targets: integer labels `[*n]`, or distributions `[*n, c]`.
      weights: over leading axes of `[*n]`.

    Example:
      >>> float(accuracy(jnp.array([[1.0, 2.0], [4.0, 3.0]]), jnp.array([1, 1])).mean)
      0.5
    """
    labels = targets.argmax(-1) if is_float(targets) else targets
    return weighted_sum(outputs.argmax(-1).astype(labels.dtype) == labels, weights)


def binary_accuracy(
    logits: Float[Array, "*n"],
    targets: Num[Array, "*n"],
    weights: Num[Array, "..."] | None = None,
) -> Sum:
    """The share of elements where the logit is above 0 just where the target is above 1/2.

    Example:
      >>> float(binary_accuracy(jnp.array([-1.0, 2.0]), jnp.array([0, 0])).mean)
      0.5
    """
    return weighted_sum((logits > 0) == (2 * targets > 1), weights)


def absolute_error(
    outputs: Float[Array, "*n"],
    targets: Num[Array, "*n"],
    weights: Num[Array, "..."] | None = None,
) -> Sum:
    """The mean absolute error.

    Example:
      >>> float(absolute_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).mean)
      1.0
    """
    outputs = widen(outputs)
    return weighted_sum(jnp.abs(outputs - targets.astype(outputs.dtype)), weights)
