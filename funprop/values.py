"""Values as people give them: those that are known while a program is traced, and integers of every
width. Imports nothing of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

if TYPE_CHECKING:
    from jaxtyping import Array, Int, Num

LARGEST = np.iinfo(np.int32).max


def known(x: Any) -> np.ndarray | None:
    """The values of `x` where they can be looked at: not inside `jit`, nor on other machines.
    Integers come in 64 bits, booleans as 0 and 1. NumPy computes at once, inside a trace too.

    Example:
      >>> known(jnp.arange(3)).tolist()
      [0, 1, 2]
      >>> jax.jit(lambda x: x if known(x) is None else -x)(jnp.arange(3)).tolist()
      [0, 1, 2]
    """
    if isinstance(x, (Tracer, jax.ShapeDtypeStruct)):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    values = np.asarray(x)
    narrow = values.dtype == bool or jnp.issubdtype(values.dtype, jnp.integer)
    if narrow and values.dtype not in (np.int64, np.uint64):
        return values.astype(np.int64)  # so that they can be compared with any number
    return values


def to_int32(numbers: Num[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers of any width, or booleans, as `int32`: labels, ids and lengths are compared, and
    looked up with, in this width alone.

    A narrow one wraps where it is compared with a number of classes that it cannot hold, and JAX
    cuts a wide one of NumPy to its lower 32 bits. What does not fit becomes -1, which is in no
    range.

    Example:
      >>> to_int32(np.array([3, 2**32 + 1])).tolist()
      [3, -1]
      >>> to_int32(jnp.array([255], jnp.uint8)) + 1
      Array([256], dtype=int32)
    """
    if not isinstance(numbers, jax.Array):
        numbers = np.asarray(numbers)  # before JAX cuts it
    elif numbers.dtype == jnp.int32:
        return numbers
    if numbers.dtype == bool or jnp.iinfo(numbers.dtype).max <= LARGEST:
        return jnp.asarray(numbers.astype(np.int32))
    fits = (numbers >= 0) & (numbers <= numbers.dtype.type(LARGEST))
    return jnp.where(fits, numbers.astype(np.int32), -1)
