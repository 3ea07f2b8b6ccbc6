"""A sum over parts that is bracketed one way, however many devices the parts are spread over.

Neighbours are added in pairs, and those sums in pairs, while their number is even; what is left is
added from the first to the last. A device adds up the pairs that are its own; the rest is added
after an exchange. So it is one tree, cut at a height that depends on the number of devices.

Equal brackets alone do not make equal bits: XLA compiles `a * b + c` to one rounding or to two,
depending on what it fuses. Loops whose length XLA cannot know stand between what computes, what
adds and what uses the sum, for it neither unrolls nor looks through those. (On a CPU, optimization
barriers are gone when it fuses.) That the length is hidden is a precaution: see
docs/benchmarks/ordered.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from funprop.typing import Array, Int, PyTree, Shaped


def hidden_zero(tree: PyTree) -> Int[Array, ""]:
    """Zero, in a way that XLA does not see: a number that is below zero and above."""
    numbers = (x for x in jax.tree.leaves(tree) if x.size and jnp.issubdtype(x.dtype, jnp.number))
    some = next(numbers, jnp.zeros(1)).ravel()[0].real
    return ((some > 0) & (some < 0)).astype(jnp.int32)


def sums_of_own(part: Callable[[Any], PyTree], n: int, zero: Int[Array, ""]) -> PyTree:
    """`part(0)` to `part(n - 1)`, computed one after the other and added in pairs while even.

    As a binary counter carries: of each height at most one sum waits for its neighbour, so that
    memory grows with the logarithm of `n`. Returns the sums that are left, along a first axis.
    """
    height = halvings(n)
    spec = jax.eval_shape(part, zero)

    def step(i: Any, sums: PyTree) -> PyTree:
        def has_neighbour(carried: tuple[Any, PyTree]) -> Any:
            level, _ = carried
            return (level < height) & ((i >> level) % 2 == 1)

        def add(carried: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
            level, total = carried
            return level + 1, jax.tree.map(lambda s, t: s[level] + t, sums, total)

        level, total = jax.lax.while_loop(has_neighbour, add, (jnp.zeros_like(i), part(i)))
        place = jnp.where(level < height, level, height + (i >> height))
        return jax.tree.map(lambda s, t: s.at[place].set(t), sums, total)

    # Those that wait, by their height, and behind them those that are left: one write a part.
    rows = height + (n >> height)
    room = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), spec)
    sums = jax.lax.fori_loop(0, n + zero, step, room)
    return jax.tree.map(lambda leaf: leaf[height:], sums)


def sum_of_all(
    sums: PyTree, zero: Int[Array, ""], parts: int, devices: int, axis: str | None
) -> PyTree:
    """The sum over the devices along `axis`, each of which has `sums` along the first axis.

    All leaves of a dtype travel as one vector. Each device adds up a slice of it and gives the
    result to all.
    """
    leaves, tree = jax.tree.flatten(sums)
    totals: list[Any] = [None] * len(leaves)
    for dtype in sorted({leaf.dtype for leaf in leaves}, key=str):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        rows = [leaves[i].reshape(len(leaves[i]), -1) for i in places]
        # Filled up to a length that is the same on any number of devices.
        filling = jnp.zeros((len(rows[0]), -sum(row.shape[1] for row in rows) % parts), dtype)
        vectors = jnp.concatenate([*rows, filling], axis=1)
        if axis is not None and devices > 1:
            slices = jax.lax.all_to_all(vectors, axis, split_axis=1, concat_axis=0, tiled=True)
            total = jax.lax.all_gather(_in_pairs(slices, zero), axis, tiled=True)
        else:
            total = _in_pairs(vectors, zero)
        ends = [0]
        for i, row in zip(places, rows, strict=True):
            ends.append(ends[-1] + row.shape[1])
            totals[i] = total[ends[-2] : ends[-1]].reshape(leaves[i].shape[1:])
    return tree.unflatten(totals)


def halvings(n: int) -> int:
    """How often `n` can be halved.

    Example:
      >>> [halvings(n) for n in (1, 6, 8)]
      [0, 1, 3]
    """
    return (n & -n).bit_length() - 1


def _in_pairs(rows: Shaped[Array, "n size"], zero: Int[Array, ""]) -> Shaped[Array, "size"]:
    for _ in range(halvings(len(rows))):
        rows = rows[0::2] + rows[1::2]
    return jax.lax.fori_loop(1, len(rows) + zero, lambda i, total: total + rows[i], rows[0])
