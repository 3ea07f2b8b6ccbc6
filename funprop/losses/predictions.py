"""The likeliest class of each row, the logits a chunk of the classes at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.looping import varying
from funprop.losses.chunks import Chunk, over_chunks
from funprop.losses.linear_cross_entropy import LinearParams, check_params
from funprop.trees import require_float, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Int


def linear_predictions(
    params: LinearParams, x: Float[Array, "*n i"], *, chunk: int = 1024
) -> Int[Array, "*n"]:
    """The most likely class of every row, in chunks as the loss is: no logits exist whole.

    Raises:
      TypeError: `params` are others, or `x` is no array of floats.

    Example:
      >>> params = LinearParams(jnp.eye(3), None)
      >>> linear_predictions(params, jnp.array([[0.0, 1.0, 0.0]]), chunk=2).tolist()
      [1]
    """
    check_params(params)
    require_float(x)
    rows = x.reshape(-1, x.shape[-1])

    def step(carry: Any, part: Chunk) -> Any:
        top, best = carry
        z = part.logits(rows)
        higher = z.max(-1) > top
        place = (part.start + z.argmax(-1)).astype(best.dtype)
        return jnp.maximum(top, z.max(-1)), jnp.where(higher, place, best)

    top = jnp.full(len(rows), -jnp.inf, widen(rows).dtype)
    start = varying((top, jnp.zeros(len(rows), jnp.int32)), params, rows)
    _, best = over_chunks(step, start, params, chunk)
    return best.reshape(x.shape[:-1])
