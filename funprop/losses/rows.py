"""Logits a chunk of the rows at a time, and with them the gradient: three products, not four."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.looping import looping, varying
from funprop.losses.chunks import Chunk, over_chunks, product
from funprop.losses.cross_entropy import finite_below
from funprop.losses.smoothed import Smoothed, each
from funprop.losses.terms import apart, zero_at
from funprop.trees import widen

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Int

LITTLE = 2**18  # numbers: it does not pay to divide them


class Taken(NamedTuple):
    """The gradient for a `dtotal` of one, taken in the forward pass: of the rows, `w` and `b`."""

    x: Any
    w: Any
    b: Any


@looping("smoothed", "size")
def forward(
    smoothed: Smoothed,
    params: Any,
    rows: Float[Array, "n i"],
    labels: Int[Array, " n"],
    d: Float[Array, " n"],
    hidden: Bool[Array, " n"] | None,
    size: int,
) -> tuple[Any, Any, Taken]:
    """The terms, each row's shift and norm, and the gradient of `sum_n d_n term_n`.

        dz_nc = (p_nc (1 + 2 zeta l_n) - q_nc) d_n,    dx = dz w,    dw = dz^T x.

    `dw` is added up over the chunks, in float32 at least. In float16, where a scale of the loss
    comes too late for what underflows here, so are the products.
    """
    whole = Chunk(0, *params)
    narrow = rows.dtype if rows.dtype != jnp.float16 else jnp.float32

    count = _count(len(rows), size)
    length = len(rows) // count
    tile = tile_of(length, len(params.w), rows.shape[1])

    def step(carry: Any, part: Any) -> Any:
        dw, db = carry
        x, labels, d, hidden = part
        terms, norms, e, total = softmax_of(smoothed, whole, x, labels, hidden)
        p = e / total[:, None]
        dz = zero_at(smoothed.gradient(p, whole.is_target(labels), norms, d), hidden)
        db = None if db is None else db + dz.sum(0)
        x, dz = x.astype(narrow), dz.astype(narrow)

        def some(dw: Any, part: Chunk) -> Any:
            of_part = jax.lax.dynamic_slice_in_dim(dz, part.start, len(part.w), 1)
            return part.add(dw, product(of_part.T, x))  # dw[c,i] = sum_n dz[n,c] x[n,i]

        dw = over_chunks(some, dw, params, tile)
        dx = product(dz, params.w)  # dx[n,i] = sum_c dz[n,c] w[c,i]
        return (dw, db), (terms, norms, dx.astype(narrow))

    carry = jax.tree.map(lambda p: jnp.zeros_like(widen(p)), (params.w, params.b))
    carry = varying(carry, params, rows, labels, d, hidden)
    found = []
    for first, turns, each_turn in ((0, count, length), (count * length, 1, len(rows) % count)):
        if each_turn:
            cut = functools.partial(_cut, first=first, turns=turns, length=each_turn)
            carry, out = jax.lax.scan(step, carry, jax.tree.map(cut, (rows, labels, d, hidden)))
            found.append(jax.tree.map(_joined, out))
    terms, norms, dx = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
    return terms, norms, Taken(dx, *carry)


def sized(take: Callable[..., Any], sizes: tuple[int, int], *given: Any) -> Any:
    """`take` in chunks of the size that suits what it is compiled for: a CPU, or anything else."""
    on_cpu, elsewhere = (functools.partial(take, size=size) for size in sizes)
    if sizes[0] == sizes[1]:
        return on_cpu(*given)
    return jax.lax.platform_dependent(*given, cpu=on_cpu, default=elsewhere)


def softmax_of(
    smoothed: Smoothed, whole: Chunk, x: Float[Array, "n i"], labels: Int[Array, " n"], hidden: Any
) -> tuple[Any, Any, Any, Any]:
    """The terms of some rows, each one's shift and norm, and what their softmax is `e / total` of:
    all with their derivatives, by which a gradient made of it can be differentiated again."""
    z = apart(whole.logits(x), hidden)
    target = whole.at_target(z, labels, jnp.zeros(len(z), z.dtype))
    # No target is greater than all, but so it is looked up first: then `e` is written over `z`.
    shift = finite_below(jax.lax.stop_gradient(jnp.maximum(z.max(-1), target)))
    e = jnp.exp(each(z, shift))
    total = e.sum(-1)
    total = jnp.where(total == 0, 1, total)  # zero: all classes are masked
    norms = shift, jnp.log(total)
    over = each(z, shift).sum(-1) if smoothed.share else None
    terms = smoothed.terms(norms, target, over)
    return terms, norms, e, total


def tile_of(rows: int, classes: int, inputs: int) -> int:
    """Classes at a time: their part of `dz` and of `dw` takes an eighth of what the logits of the
    rows do, or nearly, and `LITTLE` at least. Where it can be, none are left over: XLA would make
    `dz` of those from the logits once more, and so keep both."""
    most = min(classes, max(1, max(rows * classes // 8, LITTLE) // (inputs + rows)))
    near = (*range(most, most // 2, -1), *range(most + 1, 2 * most))
    return next((tile for tile in near if classes % tile == 0), most)


def _count(n: int, size: int) -> int:
    """How many chunks: such that none is larger than `size`, and nothing is left over if it can."""
    least = math.ceil(n / size)
    return next((c for c in range(least, 2 * least) if n % c == 0), least)


def _cut(a: Any, first: int, turns: int, length: int) -> Any:
    """`[turns, length, ...]`: each turn takes every `turns`-th row, so that rows which lie together
    on one of several devices are spread over all turns."""
    a = jax.lax.slice_in_dim(a, first, first + turns * length)
    return a.reshape(length, turns, *a.shape[1:]).swapaxes(0, 1)


def _joined(a: Any) -> Any:
    """The inverse of `_cut`."""
    return a.swapaxes(0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:])
