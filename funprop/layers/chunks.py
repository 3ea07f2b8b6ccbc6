"""A few examples at a time, as many as the caches of a CPU hold; but all of them at once where XLA
splits them over devices: a loop would gather them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.looping import varying
from funprop.mesh import split_by_xla

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array

CACHE = 1 << 20  # bytes; half to twice that is as fast, by docs/benchmarks/convolution.md


def sum_of_chunks(f: Callable[..., Array], *arrays: Array) -> Array:
    """`f(*arrays)`, which is a sum over examples, the first axis, a few of them at a time."""
    n = len(arrays[0])
    size = _size(n, sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in arrays))
    if n <= size or split_by_xla():
        return f(*arrays)
    whole = n // size * size
    chunks = [a[:whole].reshape(-1, size, *a.shape[1:]) for a in arrays]
    one = jax.eval_shape(f, *(a[:size] for a in arrays))

    def add(total: Array, chunk: Any) -> tuple[Array, None]:
        return total + f(*chunk), None

    start = varying(jnp.zeros(one.shape, one.dtype), arrays)
    total, _ = jax.lax.scan(add, start, chunks)
    return total if whole == n else total + f(*(a[whole:] for a in arrays))


def one_by_one(f: Callable[..., Any], *arrays: Array) -> Any:
    """`f(*arrays)`, whose result has an example for every one of `arrays`, the first axis, one at a
    time."""
    if len(arrays[0]) < 2 or split_by_xla():
        return f(*arrays)
    found = jax.lax.map(lambda row: f(*(a[None] for a in row)), arrays)
    return found.reshape(-1, *found.shape[2:])


def _size(n: int, example_bytes: int) -> int:
    """How many examples a chunk has: where that can be, such that none are left over."""
    most = min(max(1, CACHE // max(example_bytes, 1)), max(1, n))
    return next((size for size in range(most, most // 2, -1) if n % size == 0), most)
