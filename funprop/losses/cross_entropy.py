"""Losses on classes: softmax and binary cross-entropy, from logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funprop.layer import Layer
from funprop.losses.terms import check_outputs, difference, from_terms
from funprop.trees import is_float, widen

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num

    Numbers = Num[Array, "..."]
    Terms = Float[Array, "*terms"]
    Cotangents = tuple[Any, Any]


def softmax_cross_entropy(smoothing: float = 0.0) -> Layer:
    """`-sum_c q_c log p_c` with `p = softmax(logits)`, one term a row of logits.

    Targets are either labels, integers in `[0, classes)`, of the logits' shape without the last
    axis, or distributions, of the logits' shape; either becomes `q`, a share `smoothing` of it
    spread evenly over the classes. Backward: `dlogits = p sum(q) - q`; `p` is not kept but made
    again from the logits. Safe at logits of any size, and for classes masked with `-inf`.

    A label out of range raises where its value is known, unless its weight is zero. Inside `jit`,
    where it is not, it makes the loss NaN, so that it cannot pass unseen; `fit` then looks at the
    values and says which.

    Source of label smoothing: Szegedy et al., arXiv:1512.00567, section 7.

    Raises:
      ValueError: `smoothing` is not in `[0, 1)`; the shapes do not go together; a label is out of
        range.
      TypeError: labels are neither integers nor distributions.

    Example:
      >>> from funprop import Sum
      >>> logits, labels = jnp.array([[0.0, 0.0], [1e4, 0.0]]), jnp.array([0, 1])
      >>> loss, kept = softmax_cross_entropy().forward((), (logits, labels))
      >>> float(loss.total), float(loss.weight)
      (10000.693359375, 2.0)
      >>> dlogits, _ = softmax_cross_entropy().backward((), kept, Sum(1.0, 0.0))[1]
      >>> dlogits.tolist()
      [[-0.5, 0.5], [1.0, -1.0]]
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")

    def forward(logits: Numbers, targets: Numbers) -> tuple[Terms, Any]:
        _check_classes(logits, targets)
        z = widen(logits)
        shift = jax.lax.stop_gradient(z.max(-1, keepdims=True))
        shift = jnp.where(jnp.isfinite(shift), shift, 0)
        # The shift stays apart from the norm: their sum would lose the norm's digits.
        z = z - shift
        norm = jnp.exp(z).sum(-1, keepdims=True)
        kept = logits, shift, norm, targets
        if is_float(targets):
            return -_dot(smooth(targets, z), z - jnp.log(norm)), kept
        chosen = jnp.take_along_axis(z, targets[..., None], -1, mode="clip")[..., 0]
        if smoothing:  # a Python branch, so that no smoothing costs nothing
            chosen = (1 - smoothing) * chosen + smoothing * z.mean(-1)
        terms = jnp.log(norm)[..., 0] - chosen
        return jnp.where(in_range(targets, z), terms, jnp.nan), kept

    def backward(kept: Any, dterms: Terms) -> Cotangents:
        logits, shift, norm, targets = kept
        z, d = widen(logits) - shift, dterms[..., None]
        p = jnp.exp(z) / norm
        if not is_float(targets):
            return (p - smooth(jax.nn.one_hot(targets, z.shape[-1]), z)) * d, None
        q = smooth(targets, z)
        dlogits = (p * q.sum(-1, keepdims=True) - q) * d
        return dlogits, -(1 - smoothing) * (z - jnp.log(norm)) * d

    def smooth(targets: Numbers, like: Numbers) -> Numbers:
        q = targets.astype(like.dtype)
        return (1 - smoothing) * q + smoothing / like.shape[-1] if smoothing else q

    return from_terms("softmax_cross_entropy", forward, backward, check=check_labels)


def _dot(q: Float[Array, "*n c"], log_p: Float[Array, "*n c"]) -> Float[Array, "*n"]:
    """`sum_c q_c log p_c`, where a class that has no share may have a log p of `-inf`."""
    return jnp.where(q == 0, 0, q * log_p).sum(-1)


def _check_classes(logits: Num[Array, "*n c"], targets: Num[Array, "..."]) -> None:
    check_outputs(logits)
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"logits must have a last axis of classes, got shape {logits.shape}")
    if is_float(targets):
        if targets.shape == logits.shape:
            return
        if targets.shape == logits.shape[:-1]:
            raise TypeError(f"labels must be integers, got {targets.dtype}")
        raise ValueError(f"targets must have the shape {logits.shape}, got {targets.shape}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"labels must have the shape {logits.shape[:-1]}, got {targets.shape}")


def check_labels(logits: Any, targets: Any, weights: Any = None) -> None:
    """Raise for a label out of range; one of weight zero may be anything (often -1 or -100)."""
    if is_float(targets) or any(isinstance(x, Tracer) for x in (targets, weights)):
        return
    labels = np.asarray(targets)  # NumPy computes at once, inside a trace too
    wrong = ~in_range(labels, logits)
    if weights is not None:
        weighted = np.asarray(weights) != 0
        wrong &= weighted.reshape(weighted.shape + (1,) * (wrong.ndim - weighted.ndim))
    if wrong.any():
        last = logits.shape[-1] - 1
        raise ValueError(f"labels must be from 0 to {last}, got {labels[wrong][0]}")


def in_range(labels: Any, logits: Any) -> Any:
    return (labels >= 0) & (labels < logits.shape[-1])


def binary_cross_entropy() -> Layer:
    """`-t log s - (1 - t) log(1 - s)` with `s = sigmoid(logit)`, one term an element.

    Targets are 0 or 1, or probabilities between. Computed as
    `max(z, 0) - z t + log(1 + exp(-|z|))`, safe at logits of any size. Backward:
    `dz = (1 - t) s - t (1 - s)`, in that form because `s - t` loses its digits where both are near
    one.

    Raises:
      ValueError: logits and targets differ in shape.

    Example:
      >>> from funprop import Sum
      >>> logits, targets = jnp.array([0.0, 1e4]), jnp.array([1, 1])
      >>> loss, kept = binary_cross_entropy().forward((), (logits, targets))
      >>> round(float(loss.total), 4)
      0.6931
      >>> binary_cross_entropy().backward((), kept, Sum(1.0, 0.0))[1][0].tolist()
      [-0.5, 0.0]
    """

    def forward(logits: Numbers, targets: Numbers) -> tuple[Terms, Any]:
        difference(logits, targets)  # for its checks
        z = widen(logits)
        t = targets.astype(z.dtype)
        terms = jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z)))
        return terms, (logits, targets)

    def backward(kept: Any, dterms: Terms) -> Cotangents:
        z = widen(kept[0])
        t = kept[1].astype(z.dtype)
        dz = (1 - t) * jax.nn.sigmoid(z) - t * jax.nn.sigmoid(-z)
        return dz * dterms, -z * dterms

    return from_terms("binary_cross_entropy", forward, backward)
