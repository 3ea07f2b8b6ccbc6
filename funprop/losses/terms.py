"""What losses share: each is the weighted sum of its *terms*, beside the sum of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.layer import Layer, layer
from funprop.trees import Sum, is_float, spread, weighted_sum, widen

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


def from_terms(
    name: str,
    forward: Callable[[Any, Any], tuple[Float[Array, "*terms"], Any]],
    backward: Callable[[Any, Float[Array, "*terms"]], tuple[Any, Any]],
    check: Callable[..., None] = lambda outputs, targets, weights=None: None,
) -> Layer:
    """A loss from its terms.

    Args:
      name: what paths and messages call it.
      forward: `(outputs, targets) -> (terms, kept)`, in float32 at least.
      backward: `(kept, dterms) -> (doutputs, dtargets)`.
      check: `(outputs, targets, weights=None)`, raises where their values, if known, are wrong.
    """

    def loss_forward(params: tuple[()], x: tuple[Any, ...]) -> tuple[Sum, Any]:
        if not isinstance(x, tuple) or len(x) not in (2, 3):
            raise ValueError("x must be (outputs, targets) or (outputs, targets, weights)")
        outputs, targets, *weights = (jnp.asarray(part) for part in x)
        terms, kept = forward(outputs, targets)
        check(outputs, targets, *weights)
        return weighted_sum(terms, *weights), (kept, terms, outputs, targets, *weights)

    def loss_backward(
        params: tuple[()], residuals: tuple[Any, ...], dy: tuple[Any, Any]
    ) -> tuple[tuple[()], tuple[Any, ...]]:
        kept, terms, outputs, targets, *weights = residuals
        dterms, dweights = pull_sum(dy, terms, *weights)
        cotangents = zip(backward(kept, dterms), (outputs, targets), strict=True)
        return (), (*(_like(d, part) for d, part in cotangents), *dweights)

    return layer(forward=loss_forward, backward=loss_backward, name=name)


def pull_sum(
    dy: tuple[Any, Any], terms: Float[Array, "*terms"], *weights: Num[Array, "..."]
) -> tuple[Float[Array, "*terms"], tuple[Any, ...]]:
    """The pullback of `weighted_sum`: the cotangents of the terms, and of the weights, if any."""
    dtotal, dweight = dy
    if not weights:
        return jnp.broadcast_to(dtotal, terms.shape).astype(terms.dtype), ()
    (w,) = weights
    trailing = tuple(range(w.ndim, terms.ndim))
    return dtotal * spread(w, terms), (_like((dtotal * terms + dweight).sum(trailing), w),)


def _like(cotangent: Any, part: Any) -> Any:
    """In the dtype of what it belongs to; `None` for integers."""
    return cotangent.astype(part.dtype) if is_float(part) else None


def difference(
    outputs: Num[Array, "*terms"], targets: Num[Array, "*terms"]
) -> Float[Array, "*terms"]:
    """`outputs - targets` in float32 at least, their shapes checked."""
    check_outputs(outputs)
    if outputs.shape != targets.shape:
        raise ValueError(f"targets must have the shape {outputs.shape}, got {targets.shape}")
    outputs = widen(outputs)
    return outputs - targets.astype(outputs.dtype)


def check_outputs(outputs: Num[Array, "..."]) -> None:
    """Raise a `TypeError` where they are not of floating dtype."""
    if not is_float(outputs):
        raise TypeError(f"outputs must be of floating dtype, got {outputs.dtype}")
