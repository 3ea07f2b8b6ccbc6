"""A digest of an array that does not hang on how the array is split over devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from funprop.typing import Array, UInt32

# The finaliser of MurmurHash3 (Appleby 2011), and two odd multipliers for the places.
FIRST, SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
PLACES = np.uint32(0x9E3779B1), np.uint32(0x27D4EB2F)


def digests(arrays: dict[str, Any]) -> dict[str, str]:
    """16 hexadecimal digits for each array, of its bits and their places.

    The sum, modulo 2^32, of a hash of every number and its place: sums do not hang on the order, so
    each device adds up what it holds, and 8 devices get what one gets. It finds damage, in memory
    or on a disk; against somebody who means harm it is no help.

    Args:
      arrays: JAX's, wherever they are, or NumPy's; any dtype but those of keys and objects.

    Example:
      >>> one, other = jnp.array([1.0, 2.0]), jnp.array([2.0, 1.0])
      >>> found = digests({"one": one, "other": other, "again": np.array([1, 2], "f4")})
      >>> found["one"] == found["again"], found["one"] == found["other"], len(found["one"])
      (True, False, 16)
    """
    words = {name: _host_words(x) for name, x in arrays.items()}
    found = jax.device_get(_sums(words))
    return {name: "".join(f"{int(part):08x}" for part in found[name]) for name in arrays}


def _host_words(x: Any) -> Any:
    """NumPy's arrays as words already: their dtypes may be wider than JAX has them."""
    if isinstance(x, jax.Array):
        return x
    array = np.asarray(x)
    if array.dtype.kind == "V" and _narrow(array.dtype):
        array = array.astype(np.int8 if jnp.issubdtype(array.dtype, jnp.integer) else np.float32)
    array = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="), copy=False)
    size = array.dtype.itemsize
    if size <= 4:
        return array.reshape(-1).view(f"u{size}")
    return array.reshape(-1).view("u4")


@jax.jit
def _sums(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: _sum(_words(x)) for name, x in arrays.items()}


def _words(x: Any) -> UInt32[Array, "..."]:
    """The bits of an array as 32-bit numbers: one for each of its numbers, two for wide ones."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], -1)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize == 1 and jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(jnp.uint8).astype(jnp.uint32)  # narrower ones, as int4, have no bits to see
    if _narrow(x.dtype):
        x = x.astype(jnp.float32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _narrow(dtype: Any) -> bool:
    """Whether its numbers have less than a byte, as those of int4 and float4."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits < 8
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits < 8


def _sum(words: UInt32[Array, "..."]) -> UInt32[Array, " 2"]:
    place = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place + along * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.stack([_mixed(words ^ (place * by + by)).sum(dtype=jnp.uint32) for by in PLACES])


def _mixed(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    h = (h ^ (h >> 16)) * FIRST
    h = (h ^ (h >> 13)) * SECOND
    return h ^ (h >> 16)
