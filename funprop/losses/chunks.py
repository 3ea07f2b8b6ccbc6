"""Logits a chunk of the classes at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.looping import looping, varying
from funprop.losses.cross_entropy import finite_below, relative
from funprop.losses.smoothed import Norms, Smoothed, each
from funprop.losses.terms import apart
from funprop.trees import wide_dtype

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Int


class Chunk(NamedTuple):
    """Some of the classes: the first of them, and their weights and biases."""

    start: Any
    w: Any
    b: Any

    def logits(self, rows: Float[Array, "n i"]) -> Float[Array, "n c"]:
        """`z[n,c] = sum_i x[n,i] w[c,i] + b[c]`, in float32 at least."""
        z = product(rows, self.w.T)
        return z if self.b is None else z + self.b.astype(z.dtype)[None]

    def is_target(self, labels: Int[Array, " n"]) -> Any:
        """Which of these classes is the label's: `[n, c]`."""
        here = (self.start + jnp.arange(len(self.w))).astype(labels.dtype)
        return labels[:, None] == here[None]

    def at_target(self, z: Float[Array, "n c"], labels: Int[Array, " n"], other: Any) -> Any:
        """`z` at the label, where that is one of these classes, else `other`: `[n]`. Looked up: to
        search all of `z` would cost a sixth of the product that made it."""
        place = labels.astype(jnp.int32) - self.start
        found = jnp.take_along_axis(z, place[:, None], 1, mode="clip")[:, 0]
        return jnp.where((place >= 0) & (place < len(self.w)), found, other)

    def put(self, whole: Any, part: Any) -> Any:
        """`whole` with the part of these classes in its place."""
        if whole is None:
            return None
        return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), self.start, 0)

    def add(self, whole: Any, part: Any) -> Any:
        """`whole` and, in the place of these classes, the part of them, added."""
        if whole is None:
            return None
        before = jax.lax.dynamic_slice_in_dim(whole, self.start, len(self.w))
        return self.put(whole, before + part)


@looping("smoothed", "chunk")
def forward(
    smoothed: Smoothed,
    params: Any,
    rows: Float[Array, "n i"],
    labels: Int[Array, " n"],
    hidden: Bool[Array, " n"] | None,
    chunk: int,
) -> tuple[Float[Array, " n"], Norms]:
    """The terms, and each row's shift and norm."""

    def step(carry: Any, part: Chunk) -> Any:
        top, norm, target, total = carry
        z = apart(part.logits(rows), hidden)
        higher = jnp.maximum(top, jax.lax.stop_gradient(z.max(-1)))
        # The sums so far were relative to the old maximum.
        shift = finite_below(higher)
        norm = norm * jnp.exp(relative(top, shift)) + jnp.exp(each(z, shift)).sum(-1)
        target = part.at_target(z, labels, target)
        if smoothed.share:
            moved = jnp.where(part.start == 0, 0, relative(finite_below(top), shift))
            before = jnp.asarray(part.start, z.dtype) * moved
            total = total + before + each(z, shift).sum(-1)
        return higher, norm, target, total

    zeros = jnp.zeros(len(rows), wide_dtype(rows.dtype))
    start = varying((zeros - jnp.inf, zeros, zeros, zeros), params, rows, labels, hidden)
    top, norm, target, total = over_chunks(step, start, params, chunk)
    norms = finite_below(top), jnp.log(jnp.where(norm == 0, 1, norm))  # zero: all are masked
    return smoothed.terms(norms, target, total if smoothed.share else None), norms


def over_chunks(step: Callable[[Any, Chunk], Any], carry: Any, params: Any, chunk: int) -> Any:
    """`carry = step(carry, chunk)` for every chunk of the classes; the last may be shorter."""
    classes = len(params.w)
    whole, rest = divmod(classes, chunk)

    def take(start: Any, size: int) -> Chunk:
        return Chunk(
            start,
            *(
                None if p is None else jax.lax.dynamic_slice_in_dim(p, start, size, 0)
                for p in params
            ),
        )

    def one(i: Any, carry: Any) -> Any:
        return step(carry, take(i * chunk, chunk))

    carry = jax.lax.fori_loop(0, whole, one, carry) if whole else carry
    return step(carry, take(classes - rest, rest)) if rest else carry


def product(a: Any, b: Any) -> Any:
    """`a @ b`, summed in float32 at least."""
    dtype = max(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.matmul(a, b, preferred_element_type=wide_dtype(dtype))
