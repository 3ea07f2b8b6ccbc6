"""Params that their own backward pass updates, and a loop that writes them where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Updating(NamedTuple):
    """Params that their own backward pass updates.

    What comes back in their place of `dparams` is no cotangent but the next `Updating`, with the
    same shapes and dtypes: a loop over layers may write it where the old one was.

    Attributes:
      params: of one layer.
      opt_state: the optimizer's, for these params; `()` where there are none.
    """

    params: Any
    opt_state: Any


def is_updating(params: PyTree) -> bool:
    """Whether `params` has leaves and each of them is within an `Updating`."""
    found = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Updating))
    return bool(jax.tree.leaves(found)) and all(isinstance(node, Updating) for node in found)


def scan_in_place(
    one: Callable[[PyTree, Any], tuple[PyTree, PyTree]], dy: PyTree, params: PyTree, kept: PyTree
) -> tuple[PyTree, PyTree]:
    """The reverse scan of `one`, its new params in the memory of the old ones.

    As outputs of the scan they would need memory beside the old ones. Carried through it they are
    written in place, if XLA finds no read of a stack that might come after the write. It does find
    one where it fuses a read of one stack (a moment) into the write of another (the params), and
    then copies all stacks in every iteration. It fuses nothing across a branch: hence one that is
    always taken. (A barrier is gone before XLA fuses on CPU.)
    """
    n = jax.tree.leaves(params)[0].shape[0]

    def read(stack: PyTree, i: Any) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stack
        )

    def step(carry: Any, copy: Any) -> tuple[Any, None]:
        (dy, stack), (i, kept) = carry, copy
        dx, updated = jax.lax.cond(
            i >= 0, lambda: one(dy, (read(stack, i), kept)), lambda: (dy, read(stack, i))
        )
        stack = jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, i, 0), stack, updated
        )
        return (dx, stack), None

    (dx, updated), _ = jax.lax.scan(step, (dy, params), (jnp.arange(n), kept), reverse=True)
    return dx, updated
