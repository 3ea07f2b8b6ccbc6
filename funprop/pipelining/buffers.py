"""Room for some microbatches' arrays, each at the place of its number modulo how many there are."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from funprop.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Room:
    """Buffers for trees like one.

    Microbatches come and go in order, so one that comes has the place of one that has gone.

    Attributes:
      like: the specs of a tree. Its structure is that of the first trace, also for what later ones
        store: structures may hold functions, which no two traces have the same.
      n: for how many trees.
    """

    like: Any
    n: int

    def empty(self) -> list[Any]:
        """The buffers, all zero."""
        raw = jax.eval_shape(lambda tree: list(map(_bits, jax.tree.leaves(tree))), self.like)
        return [jnp.zeros((self.n, *leaf.shape), leaf.dtype) for leaf in raw]

    def stored(self, buffers: list[Any], i: Any, tree: PyTree) -> list[Any]:
        """The buffers with the tree of microbatch `i`."""
        put = jax.lax.dynamic_update_index_in_dim
        leaves = map(_bits, jax.tree.leaves(tree))
        return [put(b, leaf, i % self.n, 0) for b, leaf in zip(buffers, leaves, strict=True)]

    def read(self, buffers: list[Any], i: Any) -> Any:
        """The tree of microbatch `i`."""
        take = jax.lax.dynamic_index_in_dim
        each = [take(buffer, i % self.n, 0, keepdims=False) for buffer in buffers]
        leaves = [
            jax.random.wrap_key_data(bits, impl=impl) if impl else bits
            for bits, impl in zip(each, self._impls(), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(self.like), leaves)

    def _impls(self) -> list[Any]:
        """How each leaf that is random keys draws; `None` of the others."""
        found: list[Any] = []

        def look(tree: PyTree) -> None:
            for leaf in jax.tree.leaves(tree):
                found.append(jax.random.key_impl(leaf) if _is_key(leaf) else None)

        jax.eval_shape(look, self.like)
        return found


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(leaf: Any) -> Any:
    """A random key as the numbers it consists of: no array can be made of keys without any."""
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
