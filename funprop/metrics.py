"""Metrics: what people want to know beside the loss. Each is a function from
`(outputs, targets, weights=None)` to a `Sum`, so that it is exact over batches of any size. They
refuse what losses refuse; an output of NaN is never right."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.losses.targets import check_outputs, classes, given, numbers, shares
from funprop.trees import Sum, is_float, spec_string, sum_of, weighted_sum, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Num

# What `fit` tells beside the metrics, and what transforms of a gradient and wrappers of a step add.
COLUMNS = ("loss", "epoch", "update", "member", "members", "seconds", "examples_per_second")
ADDED = ("skipped", "loss_scale", "clipped", "noise_scale")


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
    one_each = outputs.ndim == 1 and targets.shape == outputs.shape and not is_float(targets)
    if outputs.shape[-1:] == (1,) or one_each:  # before labels of 0 and 1 are out of their range
        raise ValueError(
            f"outputs must have a column for each of two classes or more, got shape "
            f"{outputs.shape}: of one, use binary_accuracy"
        )
    targets, valid = classes(outputs, targets, *given_weights)
    labels = targets.argmax(-1) if is_float(targets) else targets
    found = outputs.argmax(-1, keepdims=True)  # where there is a NaN, that
    right = (found[..., 0].astype(jnp.int32) == labels.astype(jnp.int32)) & ~jnp.isnan(
        jnp.take_along_axis(outputs, found, -1)[..., 0]
    )
    return weighted_sum(_counted(right, valid), *given_weights)


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
    return weighted_sum(_counted(right, valid), *given_weights)


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


def _counted(right: Bool[Array, "*n"], valid: Bool[Array, "*n"]) -> Float[Array, "*n"]:
    """1 where it is right, 0 where it is wrong, NaN where the target makes no sense. Chosen, not
    multiplied as a loss's terms are: XLA makes a product with a boolean a choice between that and
    zero, and zero times NaN is then zero."""
    return jnp.where(valid, widen(right), jnp.nan)


def _given(outputs: Any, targets: Any, weights: Any) -> tuple[Any, ...]:
    """As a loss takes them."""
    parts = given((outputs, targets) if weights is None else (outputs, targets, weights))
    check_outputs(parts[0])
    return parts


def check_names(names: Iterable[str], reserved: tuple[str, ...] = COLUMNS + ADDED) -> None:
    """Raise a `ValueError` where a metric has no name, or one under which something else is told;
    a `TypeError` where it is no string."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"metric {name!r} must be named by a string, got {type(name).__name__}")
        if not name:
            raise ValueError("metric '' needs a name: without one it is told nowhere")
        if name in reserved or name.startswith(("held_out/", "gradient_norm/")):
            told = ", ".join(reserved)
            raise ValueError(f"metric {name!r} needs another name: {told} are reserved")


def measured_by(name: str, metric: Callable[..., Sum], outputs: Any, *targets: Any) -> Sum:
    """What a metric finds; weights come as its third argument, if there are any."""
    if len(targets) == 2:
        takes = inspect.signature(metric).parameters.values()
        places = [p for p in takes if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(places) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in takes):
            raise TypeError(
                f"metric {name!r} must take (outputs, targets, weights) of a batch that has "
                f"weights, got one that takes {len(places)} arguments"
            )
    return metric_sum(name, metric(outputs, *targets))


def metric_sum(name: str, found: Any) -> Sum:
    """What the metric of that name found, as a `Sum`; raises a `TypeError` where it is none."""
    if isinstance(found, tuple) and len(found) == 2 and all(map(_is_number, found)):
        return sum_of(*found)
    got = spec_string(found) if hasattr(found, "dtype") else type(found).__name__
    raise TypeError(f"metric {name!r} must be a Sum(total, weight), got {got}")


def _is_number(part: Any) -> bool:
    return isinstance(part, int | float) or (hasattr(part, "dtype") and hasattr(part, "shape"))
