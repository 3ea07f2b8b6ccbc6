"""The two passes of `attention`, a block of queries at a time. See there for the mathematics.

On a CPU `a[m, k] b[k, n]`, both as they lie in memory, is up to four times as fast as a product
over the first axis of both. So queries and `dy` are turned once, before the blocks, and the sums
for keys and values once, after them; the barriers keep XLA from turning them in each block.

Index legend: as in `attention`; `n` are the rows of a block: its queries, of all `r` heads of a
group.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layers.heads import Heads
from funprop.layers.spoiled import finite, overflown
from funprop.looping import looping, varying
from funprop.mesh import split_by_xla
from funprop.trees import wide_dtype, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float

GROUPS = 8  # of blocks that share a range of keys: more waste less, and compile for longer
CACHED = 2**17  # scores of a block that a core's cache holds


class Group(NamedTuple):
    """Blocks of queries of one size that look at the same keys, `low <= j < high`."""

    starts: tuple[int, ...]
    size: int
    low: int
    high: int

    def cut(self, x: Any, axis: int) -> Any:
        """The blocks' queries out of `x`, block by block: the first axis is the blocks'."""
        first = self.starts[0]
        x = jax.lax.slice_in_dim(x, first, first + len(self.starts) * self.size, axis=axis)
        x = x.reshape(*x.shape[:axis], len(self.starts), self.size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    @property
    def keys(self) -> slice:
        return slice(self.low, self.high)


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


@looping("how", "size")
def forward(
    how: Heads, size: int | None, x: Any, mask: Any
) -> tuple[Float[Array, "*batch t o"], Float[Array, "b g r t"]]:
    """`y`, and the logarithm of each query's sum over keys of `exp z`."""
    x, spoiled = finite(how, x, mask)
    size, time = _size(size, x.shape[-2]), x.shape[-2]

    def of_a_head(q: Any, k: Any, v: Any) -> Any:
        ys, norms = [], []
        for group in groups(how, size, time):
            k_, v_ = k[:, group.keys], v[:, group.keys]

            def block(part: Any, group: Group = group, k_: Any = k_, v_: Any = v_) -> Any:
                i, q = part
                z = _scores(how, group, _rows(q), k_, mask, i)
                top = z.max(-1, keepdims=True)
                top = jnp.where(jnp.isneginf(top), 0, top)
                e = jnp.exp(z - top)
                norm = e.sum(-1, keepdims=True)
                y = _product(e.astype(v_.dtype), v_) / jnp.where(norm == 0, 1, norm)
                norm = top + jnp.log(norm)
                return y.astype(x.dtype).reshape(q.shape), norm.reshape(q.shape[:-1])

            y, norm = jax.lax.map(block, (jnp.asarray(group.starts), group.cut(q, 2)))
            ys.append(_joined(y, 2))
            norms.append(_joined(norm, 2))
        return jnp.concatenate(ys, 2), jnp.concatenate(norms, 2)

    y, norm = _over_heads(size, of_a_head, *jax.lax.optimization_barrier(how.split(x)))
    y = jnp.where(spoiled | overflown(how, norm, mask), jnp.nan, y)
    y = y.reshape(len(y), how.heads, *y.shape[3:]).swapaxes(1, 2)
    return y.reshape(*x.shape[:-1], how.heads * y.shape[-1]), norm


@looping("how", "size")
def backward(
    how: Heads, size: int | None, x: Any, mask: Any, norm: Any, dy: Any
) -> Float[Array, "*batch t p"]:
    """`dx`, from the input, the mask, what forward kept, and `dy`."""
    x, spoiled = finite(how, x, mask)
    q, k, v = how.split(x)
    dy = dy.reshape(len(q), x.shape[-2], how.heads, q.shape[-1]).swapaxes(1, 2)
    dy = dy.reshape(*q.shape[:3], *dy.shape[2:])  # [b, g, r, t, f]
    # Where scores overflow, in a hidden place perhaps: `0 * nan` is no gradient.
    lost = ~(norm < jnp.inf)[..., None]
    spoiled = (spoiled | lost | overflown(how, norm, mask)) & (dy != 0)
    q, dy = jnp.where(lost, 0, q), jnp.where(spoiled, 0, dy)
    norm = jnp.where(lost, jnp.inf, jnp.where(jnp.isneginf(norm)[..., None], 0, norm[..., None]))
    size, time = _size(size, x.shape[-2]), x.shape[-2]

    def of_a_head(q: Any, k: Any, v: Any, norm: Any, dy: Any) -> Any:
        dqs = []
        qt, dyt = jax.lax.optimization_barrier((q.mT, dy.mT))
        zeros = (jnp.zeros(part.mT.shape, widen(part).dtype) for part in (k, v))
        dk, dv = varying(tuple(zeros), q, k, v, norm, dy, mask)  # [b, f, j]
        for group in groups(how, size, time):
            keys = group.keys
            k_, v_ = k[:, keys], v[:, keys]

            def block(
                carry: Any,
                part: Any,
                group: Group = group,
                k_: Any = k_,
                v_: Any = v_,
            ) -> Any:
                dk, dv = carry
                i, q, norm, dy, qt, dyt = part
                rows, norm, dy = _rows(q), _rows(norm), _rows(dy)
                p = jnp.exp(_scores(how, group, rows, k_, mask, i) - norm)
                dv = dv + _product(_columns(dyt), p.astype(dy.dtype))
                dp = _product(dy, v_.mT)
                dp = jnp.where(p == 0, 0, dp)  # a hidden number may be huge
                dz = (p * _centred(p, _centred(p, dp))).astype(q.dtype)
                dk = dk + _product(_columns(qt), dz)
                return (dk, dv), _product(dz, k_).astype(x.dtype).reshape(q.shape)

            turned = (group.cut(part, 3) for part in (qt, dyt))
            parts = (group.cut(part, 2) for part in (q, norm, dy))
            start = jax.tree.map(jnp.zeros_like, (dk[..., keys], dv[..., keys]))
            (dk_, dv_), dq = jax.lax.scan(
                block, start, (jnp.asarray(group.starts), *parts, *turned)
            )
            dk, dv = dk.at[..., keys].add(dk_), dv.at[..., keys].add(dv_)
            dqs.append(_joined(dq, 2))
        dk, dv = jax.lax.optimization_barrier((dk, dv))
        return jnp.concatenate(dqs, 2), dk.mT, dv.mT

    def of_heads(how: Heads, spoiled: Any, *parts: Any) -> Any:
        dq, dk, dv = (found.swapaxes(0, 1) for found in jax.vmap(of_a_head)(*parts))
        return how.joined(jnp.where(spoiled.swapaxes(0, 1), jnp.nan, dq), dk, dv, like=x)

    def few(n: int, *moved: Any) -> Any:
        """Each lot straight to its columns: the sums of all, turned, are never there."""

        def turn(dx: Any, lot: Any) -> tuple[Any, None]:
            first, *parts = lot
            return how.put(dx, of_heads(how.few(n), *parts), first, n), None

        lots = [part.reshape(-1, n, *part.shape[1:]) for part in moved]
        start = varying(jnp.zeros(x.shape, x.dtype), moved, mask)
        return jax.lax.scan(turn, start, (jnp.arange(0, how.kv_heads, n), *lots))[0]

    given = jax.lax.optimization_barrier((q, k, v, norm, dy))
    whole = functools.partial(of_heads, how)
    return _by_cache(size, few, whole, *(part.swapaxes(0, 1) for part in (spoiled, *given)))


def _size(size: int | None, time: int) -> int:
    """Of a block: an eighth of the queries, within what products are fast at and caches hold."""
    return min(time, size or min(max(-(-time // GROUPS), 64), 256))


def _over_heads(size: int, of_a_head: Any, *parts: Any) -> Any:
    """`of_a_head` of each `[b, ...]` in parts `[b, g, ...]`."""
    whole = jax.vmap(of_a_head)

    def few(n: int, *moved: Any) -> Any:
        return jax.lax.map(lambda part: of_a_head(*part), moved, batch_size=n)

    found = _by_cache(size, few, whole, *(part.swapaxes(0, 1) for part in parts))
    return jax.tree.map(lambda part: part.swapaxes(0, 1), found)


def _by_cache(size: int, few: Any, whole: Any, *moved: Any) -> Any:
    """All groups of heads of `[g, b, r, t, f]` at once; but on a CPU as many as its cache holds
    scores of, one lot after the other. The batch stays whole, as do heads that `shard` may have
    split over devices: a loop would gather them."""
    heads, batch, each, time, _ = moved[0].shape
    fit = min(heads, max(1, CACHED // max(1, batch * each * size * time)))
    n = next(n for n in range(fit, 0, -1) if heads % n == 0)
    if n == heads or not batch or split_by_xla():
        return whole(*moved)
    # By the platform that this is lowered for, which need not be this machine's.
    return jax.lax.platform_dependent(*moved, cpu=functools.partial(few, n), default=whole)


def _scores(how: Heads, group: Group, q: Any, k: Any, mask: Any, i: Any) -> Any:
    """`z[b, n, j]` in float32 at least, `-inf` where a query does not see."""
    z = _product(q, k.mT)
    query = i + jnp.arange(group.size)[:, None]
    seen = how.visible(query, jnp.arange(group.low, group.high)[None])
    seen = jnp.tile(seen, (z.shape[1] // group.size, 1))[None]
    if mask is not None:
        rows = mask.reshape(len(q), mask.shape[-1])[:, group.keys]
        seen = seen & rows[:, None, :]
    return jnp.where(seen, z, -jnp.inf)


def _centred(p: Any, dp: Any) -> Any:
    """`dp_ij - sum_j p_ij dp_ij`. Once more takes out what rounding left: where one `p` is almost
    one, it is all there is."""
    # A product of vectors and no sum of products, which XLA does not fuse so well on a CPU.
    return dp - jnp.vecdot(p, dp, precision="highest")[..., None]


def _rows(x: Any) -> Any:
    """`[b, r, i, f] -> [b, n, f]`."""
    return x.reshape(len(x), x.shape[1] * x.shape[2], x.shape[3])


def _columns(x: Any) -> Any:
    """`[b, r, f, i] -> [b, f, n]`."""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], x.shape[1] * x.shape[3])


def _joined(blocks: Any, axis: int) -> Any:
    """The transpose of `Group.cut`."""
    n, size = blocks.shape[0], blocks.shape[axis + 1]
    blocks = jnp.moveaxis(blocks, 0, axis)
    return blocks.reshape(*blocks.shape[:axis], n * size, *blocks.shape[axis + 2 :])


def _product(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, preferred_element_type=wide_dtype(a.dtype))
