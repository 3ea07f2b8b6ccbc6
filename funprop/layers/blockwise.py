"""The two passes of `attention`, a block of queries at a time. See there for the mathematics."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layers.chunks import is_local
from funprop.layers.heads import Heads
from funprop.layers.spoiled import finite
from funprop.trees import widen

if TYPE_CHECKING:
    from jaxtyping import Array, Float

GROUPS = 8  # of blocks that share a range of keys: more waste less, and compile for longer
CACHED = 2**16  # scores of a block that a core's cache holds


class Group(NamedTuple):
    """Blocks of queries of one size that look at the same keys, `low <= j < high`."""

    starts: tuple[int, ...]
    size: int
    low: int
    high: int


def groups(how: Heads, size: int, time: int) -> list[Group]:
    """All queries, in blocks, with no more keys than they may see between them."""
    starts = list(range(0, time - time % size, size))
    each = -(-len(starts) // GROUPS)
    parts = [(starts[i : i + each], size) for i in range(0, len(starts), each)]
    if time % size:  # the last block is shorter
        parts.append(([time - time % size], time % size))
    found = []
    for places, length in parts:
        first, last = places[0], places[-1] + length - 1
        low = 0 if how.window is None else max(0, first - how.window + 1)
        high = time if how.window is None else min(time, last + how.window)
        found.append(Group(tuple(places), length, low, min(high, last + 1) if how.causal else high))
    return found


def forward(how: Heads, size: int | None, x: Any, mask: Any) -> Float[Array, "*batch t o"]:
    """`y`."""
    x, spoiled = finite(how, x, mask)
    size = _size(size, x.shape[-2])

    def of_a_head(q: Any, k: Any, v: Any) -> Any:
        parts = []
        for group in groups(how, size, x.shape[-2]):
            k_, v_ = k[:, group.low : group.high], v[:, group.low : group.high]

            def block(i: Any, group: Group = group, k_: Any = k_, v_: Any = v_) -> Any:
                p, _ = _softmax(how, group, _cut(q, i, group.size), k_, mask, i)
                return _product("brij,bjf->brif", p.astype(v_.dtype), v_).astype(x.dtype)

            parts.append(_joined(jax.lax.map(block, jnp.asarray(group.starts))))
        return jnp.concatenate(parts, -2)

    y = jnp.where(spoiled, jnp.nan, _over_heads(size, of_a_head, *how.split(x)))
    y = y.reshape(len(y), how.heads, *y.shape[3:]).swapaxes(1, 2)
    return y.reshape(*x.shape[:-1], how.heads * y.shape[-1])


def backward(
    how: Heads, size: int | None, x: Any, mask: Any, dy: Any
) -> Float[Array, "*batch t p"]:
    """`dx`, from the input, the mask, and `dy`."""
    x, spoiled = finite(how, x, mask)
    q, k, v = how.split(x)
    dy = dy.reshape(len(q), x.shape[-2], how.heads, q.shape[-1]).swapaxes(1, 2)
    dy = dy.reshape(*q.shape[:3], *dy.shape[2:])  # [b, g, r, t, f]
    nowhere, dy = spoiled & (dy != 0), jnp.where(spoiled, 0, dy)
    size = _size(size, x.shape[-2])

    def of_a_head(q: Any, k: Any, v: Any, dy: Any) -> Any:
        dqs, dk, dv = [], jnp.zeros(k.shape, widen(k).dtype), jnp.zeros(v.shape, widen(v).dtype)
        for group in groups(how, size, x.shape[-2]):
            keys = slice(group.low, group.high)
            k_, v_ = k[:, keys], v[:, keys]

            def block(carry: Any, i: Any, group: Group = group, k_: Any = k_, v_: Any = v_) -> Any:
                dk, dv = carry
                q_i, dy_i = _cut(q, i, group.size), _cut(dy, i, group.size)
                p, norm = _softmax(how, group, q_i, k_, mask, i)
                # Where scores overflow, in a hidden place perhaps: `0 * nan` is no gradient.
                lost = ~jnp.isfinite(norm)
                p = jnp.where(lost, 0, p)
                dv = dv + _product("brij,brif->bjf", p.astype(dy.dtype), dy_i)
                dp = _product("brif,bjf->brij", dy_i, v_)
                dp = jnp.where(p == 0, 0, dp)  # a hidden number may be huge
                dz = (p * _centred(p, _centred(p, dp))).astype(q.dtype)
                dk = dk + _product("brij,brif->bjf", dz, q_i)
                dq = _product("brij,bjf->brif", dz, k_).astype(x.dtype)
                return (dk, dv), jnp.where(lost & (dy_i != 0), jnp.nan, dq)

            start = jax.tree.map(jnp.zeros_like, (dk[:, keys], dv[:, keys]))
            (dk_, dv_), dq = jax.lax.scan(block, start, jnp.asarray(group.starts))
            dk, dv = dk.at[:, keys].add(dk_), dv.at[:, keys].add(dv_)
            dqs.append(_joined(dq))
        return jnp.concatenate(dqs, -2), dk, dv

    dq, dk, dv = _over_heads(size, of_a_head, q, k, v, dy)
    return how.joined(jnp.where(nowhere, jnp.nan, dq), dk, dv, like=x)


def _size(size: int | None, time: int) -> int:
    """Of a block: an eighth of the queries, within what products are fast at and caches hold."""
    return min(time, size or min(max(-(-time // GROUPS), 64), 256))


def _over_heads(size: int, of_a_head: Any, *parts: Any) -> Any:
    """`of_a_head` of each `[b, ...]` in parts `[b, g, ...]`: all at once, but on a CPU as many as
    its cache holds scores of, one after the other. The batch stays whole, as do heads that `shard`
    may have split over devices: a loop would gather them."""
    batch, heads, each, time, _ = parts[0].shape
    fit = min(heads, max(1, CACHED // max(1, batch * each * size * time)))
    cached = next(n for n in range(fit, 0, -1) if heads % n == 0)

    def run(at_once: int, *moved: Any) -> Any:
        if not batch:  # nothing to loop over, which `map` cannot divide
            return jax.vmap(of_a_head)(*moved)
        return jax.lax.map(lambda part: of_a_head(*part), moved, batch_size=at_once)

    moved = tuple(part.swapaxes(0, 1) for part in parts)
    some, whole = (functools.partial(run, n) for n in (cached, heads))
    # By the platform that this is lowered for, which need not be this machine's.
    split = is_local() and cached < heads
    found = jax.lax.platform_dependent(*moved, cpu=some, default=whole) if split else whole(*moved)
    return jax.tree.map(lambda part: part.swapaxes(0, 1), found)


def _softmax(how: Heads, group: Group, q: Any, k: Any, mask: Any, i: Any) -> Any:
    """`p[b,r,i,j]` in float32 at least, zero for a query that sees nothing; and the norms."""
    z = _product("brif,bjf->brij", q, k)
    query = i + jnp.arange(group.size)[:, None]
    seen = how.visible(query, jnp.arange(group.low, group.high)[None])[None, None]
    if mask is not None:
        rows = mask.reshape(len(q), mask.shape[-1])[:, group.low : group.high]
        seen = seen & rows[:, None, None, :]
    z = jnp.where(seen, z, -jnp.inf)
    top = z.max(-1, keepdims=True)
    e = jnp.exp(z - jnp.where(jnp.isfinite(top), top, 0))
    norm = e.sum(-1, keepdims=True)
    return e / jnp.where(norm == 0, 1, norm), norm


def _centred(p: Any, dp: Any) -> Any:
    """`dp_ij - sum_j p_ij dp_ij`. Once more takes out what rounding left: where one `p` is almost
    one, it is all there is."""
    # A product of vectors and no sum of products, which XLA does not fuse so well on a CPU.
    return dp - jnp.vecdot(p, dp, precision="highest")[..., None]


def _cut(x: Any, start: Any, size: int) -> Any:
    return jax.lax.dynamic_slice_in_dim(x, start, size, -2)


def _joined(blocks: Any) -> Any:
    """`[n, ..., i, f] -> [..., n i, f]`."""
    blocks = jnp.moveaxis(blocks, 0, -3)
    n, i, f = blocks.shape[-3:]
    return blocks.reshape(*blocks.shape[:-3], n * i, f)


def _product(indices: str, a: Any, b: Any) -> Any:
    return jnp.einsum(indices, a, b, preferred_element_type=widen(a).dtype)
