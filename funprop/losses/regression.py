"""Losses on numbers: squared, absolute, and Huber's between the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.layer import Layer
from funprop.losses.targets import numbers
from funprop.losses.terms import Hessian, from_terms
from funprop.trees import widen
from funprop.values import number_within

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Num

    Numbers = Num[Array, "..."]
    Terms = Float[Array, "*terms"]
    Cotangents = tuple[Any, Any]


def mean_squared() -> Layer:
    """`(output - target)^2`, one term an element.

    Raises:
      ValueError: outputs and targets differ in shape.

    Example:
      >>> loss, _ = mean_squared().forward((), (jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
      >>> float(loss.mean)
      2.0
    """

    def forward(outputs: Numbers, targets: Numbers) -> tuple[Terms, Any]:
        error = widen(outputs) - targets
        return error * error, error

    def backward(error: Terms, dterms: Terms) -> Cotangents:
        return 2 * error * dterms, -2 * error * dterms

    def root(error: Terms) -> Float[Array, "1 *terms"]:
        return jnp.full_like(error, 2**0.5)[None]

    def sampled(error: Terms, key: Any) -> Terms:
        return 2**0.5 * jax.random.normal(key, error.shape, error.dtype)

    hessian = Hessian(root, sampled)  # 2; of targets, normal with a variance of 1/2
    return from_terms("mean_squared", numbers, forward, backward, hessian=hessian)


def mean_absolute() -> Layer:
    """`|output - target|`, one term an element; the derivative at 0 is taken as 0.

    Raises:
      ValueError: outputs and targets differ in shape.

    Example:
      >>> loss, _ = mean_absolute().forward((), (jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
      >>> float(loss.mean)
      1.0
    """

    def forward(outputs: Numbers, targets: Numbers) -> tuple[Terms, Any]:
        error = widen(outputs) - targets
        return jnp.abs(error), error

    def backward(error: Terms, dterms: Terms) -> Cotangents:
        return jnp.sign(error) * dterms, -jnp.sign(error) * dterms

    return from_terms("mean_absolute", numbers, forward, backward)


def huber(delta: float = 1.0) -> Layer:
    """`e^2 / 2` where `|e| <= delta`, else `delta (|e| - delta / 2)`, with `e = output - target`.

    Source: Huber, Annals of Mathematical Statistics 35 (1964).

    Raises:
      ValueError: `delta` is not positive; outputs and targets differ in shape.

    Example:
      >>> loss, _ = huber().forward((), (jnp.array([1.0, 4.0]), jnp.array([0.0, 0.0])))
      >>> float(loss.total)
      4.0
    """
    delta = number_within(delta, "delta", lambda d: d > 0, "positive")

    def forward(outputs: Numbers, targets: Numbers) -> tuple[Terms, Any]:
        error = widen(outputs) - targets
        clipped = jnp.clip(error, -delta, delta)
        return clipped * (error - 0.5 * clipped), clipped

    def backward(clipped: Terms, dterms: Terms) -> Cotangents:
        return clipped * dterms, -clipped * dterms

    return from_terms("huber", numbers, forward, backward)
