"""Dropout: noise that is drawn twice and kept never."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.trees import require_float
from funprop.values import is_zero, number_within

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Key


@told(FORMULAS["dropout"])
def dropout(rate: float) -> Layer:
    """Zero each element with probability `rate` and scale the others by `1 / (1 - rate)`.

    Without a key, the identity. Keeps the key, not the mask: backward draws the same noise again.
    Source: Srivastava et al., Journal of Machine Learning Research 15 (2014).

    Raises:
      ValueError: `rate` is not in `[0, 1)`.

    Example:
      >>> y, key = dropout(0.5).forward((), jnp.ones(4), jax.random.key(1))
      >>> dx = dropout(0.5).backward((), key, jnp.ones(4))[1]
      >>> bool((dx == y).all()), sorted({*y.tolist()})
      (True, [0.0, 2.0])
    """
    rate = number_within(rate, "rate", lambda r: 0 <= r < 1, "at least 0 and below 1")

    def masked(x: Float[Array, "*shape"], key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
        if key is None or is_zero(rate):
            return x
        kept = jax.random.bernoulli(key, 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), jnp.where(x == x, 0, x))  # NaN is never lost

    def forward(
        params: tuple[()], x: Float[Array, "*shape"], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "*shape"], Key[Array, ""] | None]:
        require_float(x)
        return masked(x, key), key

    def backward(
        params: tuple[()], key: Key[Array, ""] | None, dy: Float[Array, "*shape"]
    ) -> tuple[tuple[()], Float[Array, "*shape"]]:
        return (), masked(dy, key)  # linear in x, so its own transpose

    return layer(
        forward=forward, backward=backward, name="dropout", draws=not is_zero(rate), pointwise=True
    )
