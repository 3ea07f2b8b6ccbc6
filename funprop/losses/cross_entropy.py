"""Losses on classes: softmax and binary cross-entropy, from logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.layer import Layer
from funprop.losses.targets import classes, shares
from funprop.losses.terms import Hessian, from_terms
from funprop.trees import is_float, lifted, widen
from funprop.values import is_zero, number_within

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Num

    Numbers = Num[Array, "..."]
    Terms = Float[Array, "*terms"]
    Cotangents = tuple[Any, Any]


def softmax_cross_entropy(smoothing: float = 0.0) -> Layer:
    """`-sum_c q_c log p_c` with `p = softmax(logits)`, one term a row of logits.

    Targets are either labels, integers in `[0, classes)`, of the logits' shape without the last
    axis, or distributions, of the logits' shape; either becomes `q`, a share `smoothing` of it
    spread evenly over the classes. Backward: `dlogits = p sum(q) - q`; `p` is not kept but made
    again from the logits. Safe at logits of any size. A class masked with `-inf` has a `p` of zero:
    where it has a share of the target, the loss is infinite, the gradient still `p sum(q) - q`.
    Classes at `+inf` share all of `p` evenly.

    A label out of range, or shares that are negative or do not sum to one (within 1%, or the
    rounding of their dtype), raise where their values are known, unless the weight is zero. Inside
    `jit`, where they are not, they make loss and gradient NaN, so that they cannot pass unseen;
    `fit` then looks at the values and says which.

    Source of label smoothing: Szegedy et al., arXiv:1512.00567, section 7.

    Raises:
      ValueError: `smoothing` is not in `[0, 1)`; the shapes do not go together; a label is out of
        range, or a target no distribution.
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
    smoothing = number_within(
        smoothing, "smoothing", lambda s: 0 <= s < 1, "at least 0 and below 1"
    )

    def forward(logits: Numbers, targets: Numbers) -> tuple[Terms, Any]:
        if not logits.size and 0 in logits.shape[-1:]:
            raise ValueError(f"logits must have a last axis of classes, got shape {logits.shape}")
        top = jax.lax.stop_gradient(widen(logits).max(-1, keepdims=True))
        shift = finite_below(top)
        # The shift stays apart from the norm: their sum would lose the norm's digits.
        z = relative(widen(logits), shift)
        norm = jnp.exp(z).sum(-1, keepdims=True)
        norm = jnp.where(norm == 0, 1, norm)  # all classes masked: each has a p of zero
        kept = logits, shift, norm, targets
        if is_float(targets):
            # Not from `z`: XLA would keep that for here, rather than make it again.
            log_p = relative(widen(logits), shift, jnp.log(norm))
            return -_dot(smooth(targets, z), log_p), kept
        chosen = jnp.take_along_axis(z, targets[..., None], -1, mode="clip")[..., 0]
        if not is_zero(smoothing):  # a Python branch, so that no smoothing costs nothing
            chosen = (1 - smoothing) * chosen + smoothing * z.mean(-1)
        return jnp.log(norm)[..., 0] - chosen, kept

    def backward(kept: Any, dterms: Terms) -> Cotangents:
        logits, shift, norm, targets = kept
        z, d = relative(widen(logits), shift), dterms[..., None]
        p = jnp.exp(z) / norm
        if not is_float(targets):
            return (p - smooth(jax.nn.one_hot(targets, z.shape[-1]), z)) * d, None
        q = smooth(targets, z)
        dlogits = (p * q.sum(-1, keepdims=True) - q) * d
        return dlogits, -(1 - smoothing) * (z - jnp.log(norm)) * d

    def smooth(targets: Numbers, like: Numbers) -> Numbers:
        q = targets.astype(like.dtype)
        return q if is_zero(smoothing) else (1 - smoothing) * q + smoothing / like.shape[-1]

    def root(kept: Any) -> Float[Array, "k *terms k"]:
        p, size = predicted(kept)
        z = p[..., None, :]
        columns = lifted(jnp.eye(p.shape[-1], dtype=p.dtype), z) - z  # [*terms, k, o]
        return jnp.moveaxis(columns * jnp.sqrt(p)[..., None] * size[..., None], -2, 0)

    def sampled(kept: Any, key: Any) -> Float[Array, "*terms k"]:
        p, size = predicted(kept)
        drawn = jax.random.categorical(key, jnp.log(p))
        return (p - jax.nn.one_hot(drawn, p.shape[-1], dtype=p.dtype)) * size

    def predicted(kept: Any) -> tuple[Numbers, Numbers]:
        """`p`, and the square root of the sum of the target's shares."""
        logits, shift, norm, targets = kept
        z = relative(widen(logits), shift)
        q = smooth(targets, z).sum(-1, keepdims=True) if is_float(targets) else jnp.ones_like(norm)
        return jnp.exp(z) / norm, jnp.sqrt(q)

    hessian = Hessian(root, sampled)  # diag p - p p^T, times the sum of the shares
    return from_terms("softmax_cross_entropy", classes, forward, backward, over=1, hessian=hessian)


def finite_below(top: Float[Array, "..."]) -> Float[Array, "..."]:
    """What is taken from logits whose largest is `top`: that, or zero where all are `-inf`."""
    return jnp.where(top == -jnp.inf, 0, top)


def relative(
    z: Float[Array, "*n c"], shift: Float[Array, "*n 1"], less: Any = 0
) -> Float[Array, "*n c"]:
    """`z - shift - less`; a logit of `+inf` is the largest there is, and level with its like."""
    return jnp.where(z == jnp.inf, -less, z - shift - less)


def _dot(q: Float[Array, "*n c"], log_p: Float[Array, "*n c"]) -> Float[Array, "*n"]:
    """`sum_c q_c log p_c`, where a class that has no share may have a log p of `-inf`."""
    return jnp.where((q == 0) & (log_p == -jnp.inf), 0, q * log_p).sum(-1)


def binary_cross_entropy() -> Layer:
    """`-t log s - (1 - t) log(1 - s)` with `s = sigmoid(logit)`, one term an element.

    Targets are 0 or 1, or probabilities between; others raise, or inside `jit` make loss and
    gradient NaN. Computed as `log(1 + exp(-|z|))` and `|z|` times the share of the other side, safe
    at logits of any size, infinite ones too. Backward:
    `dz = (1 - t) s - t (1 - s)`, in that form because `s - t` loses its digits where both are near
    one.

    Raises:
      ValueError: logits and targets differ in shape, or a target is not from 0 to 1.

    Example:
      >>> from funprop import Sum
      >>> logits, targets = jnp.array([0.0, 1e4]), jnp.array([1, 1])
      >>> loss, kept = binary_cross_entropy().forward((), (logits, targets))
      >>> round(float(loss.total), 4)
      0.6931
      >>> binary_cross_entropy().backward((), kept, Sum(1.0, 0.0))[1][0].tolist()
      [-0.5, 0.0]
    """

    def forward(logits: Numbers, t: Numbers) -> tuple[Terms, Any]:
        z = widen(logits)
        positive = z > 0
        below = jnp.where(positive, -z, z)  # -|z|
        # The share of the other side: its sum with `max(z, 0)` would lose digits, or be inf - inf.
        share = jnp.where(positive, 1 - t, t)
        linear = jnp.where((share == 0) & (below == -jnp.inf), 0, share * below)
        return jnp.log1p(jnp.exp(below)) - linear, (logits, t)

    def backward(kept: Any, dterms: Terms) -> Cotangents:
        z, t = widen(kept[0]), kept[1]
        dz = (1 - t) * jax.nn.sigmoid(z) - t * jax.nn.sigmoid(-z)
        return dz * dterms, -z * dterms

    def root(kept: Any) -> Float[Array, "1 *terms"]:
        z = widen(kept[0])
        return jnp.sqrt(jax.nn.sigmoid(z) * jax.nn.sigmoid(-z))[None]

    def sampled(kept: Any, key: Any) -> Terms:
        p = jax.nn.sigmoid(widen(kept[0]))
        return p - jax.random.bernoulli(key, p).astype(p.dtype)

    hessian = Hessian(root, sampled)  # s (1 - s)
    return from_terms("binary_cross_entropy", shares, forward, backward, hessian=hessian)
