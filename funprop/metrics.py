"""Metrics: what people want to know beside the loss. Each is a function from
`(outputs, targets, weights=None)` to a `Sum`, so that it is exact over batches of any size. They
refuse what losses refuse; an output of NaN is never right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.losses.targets import check_outputs, classes, given, numbers, shares
from funprop.losses.terms import spoiled
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
    outputs, targets, *given_weights = _given(outputs, targets, weights)
    targets, valid = classes(outputs, targets, *given_weights)
    if outputs.shape[-1] < 2:
        raise ValueError(
            f"outputs must have a column for each of two classes or more, got shape "
            f"{outputs.shape}: of one, use binary_accuracy"
        )
    labels = targets.argmax(-1) if is_float(targets) else targets
    found = outputs.argmax(-1, keepdims=True)  # where there is a NaN, that
    right = (found[..., 0].astype(jnp.int32) == labels.astype(jnp.int32)) & ~jnp.isnan(
        jnp.take_along_axis(outputs, found, -1)[..., 0]
    )
    return weighted_sum(spoiled(widen(right), valid), *given_weights)


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
    logits, targets, *given_weights = _given(logits, targets, weights)
    targets, valid = shares(logits, targets, *given_weights)
    right = ((logits > 0) == (targets > 0.5)) & ~jnp.isnan(logits)
    return weighted_sum(spoiled(widen(right), valid), *given_weights)


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
    outputs, targets, *given_weights = _given(outputs, targets, weights)
    targets, _ = numbers(outputs, targets)
    return weighted_sum(jnp.abs(widen(outputs) - targets), *given_weights)


def _given(outputs: Any, targets: Any, weights: Any) -> tuple[Any, ...]:
    """As a loss takes them."""
    parts = given((outputs, targets) if weights is None else (outputs, targets, weights))
    check_outputs(parts[0])
    return parts
