"""Many cotangents at once, *columns*: one function of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from funprop.trees import add

if TYPE_CHECKING:
    from funprop.typing import PyTree


def each_column(one: Callable[[PyTree], PyTree], dy: PyTree) -> PyTree:
    """`one` of every column; a single one needs no map."""
    if len(jax.tree.leaves(dy)[0]) > 1:
        return jax.vmap(one)(dy)
    return jax.tree.map(lambda d: d[None], one(jax.tree.map(lambda d: d[0], dy)))


def in_turn(one: Callable[[PyTree], tuple[PyTree, PyTree]], dy: PyTree) -> tuple[PyTree, PyTree]:
    """What `one` finds of every column, summed one after the other, and each column's `dx`."""
    found, dx = one(jax.tree.map(lambda d: d[0], dy))
    first = jax.tree.map(lambda d: d[None], dx)
    if len(jax.tree.leaves(dy)[0]) == 1:
        return found, first
    rest = jax.tree.map(lambda d: d[1:], dy)

    def added(total: PyTree, d: PyTree) -> tuple[PyTree, PyTree]:
        more, dx = one(d)
        return add(total, more), dx

    found, others = jax.lax.scan(added, found, rest)
    return found, jax.tree.map(lambda *d: jnp.concatenate(d), first, others)
