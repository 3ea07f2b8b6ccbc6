"""A batch changed in ways of which it is known what an update must make of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from funprop.verify.training.layout import is_array
from funprop.verify.training.running import is_real


@dataclasses.dataclass(frozen=True)
class Examples:
    """A batch, and along which axis its examples stand.

    Leaves that are no longer or shorter than the others belong to each example; the rest, such as a
    number for the whole batch, is left as it is.
    """

    batch: Any
    axis: int = 0

    @property
    def n(self) -> int:
        """How many examples there are; 0 where there is no such axis."""
        return next(
            (np.shape(x)[self.axis] for x in jax.tree.leaves(self.batch) if self._long(x)), 0
        )

    def _long(self, leaf: Any) -> bool:
        return is_array(leaf) and np.ndim(leaf) > self.axis

    def mapped(self, function: Callable[[np.ndarray], Any]) -> Any:
        """The batch with `function` of each leaf that holds something of each example."""
        n = self.n

        def of(leaf: Any) -> Any:
            mine = self._long(leaf) and np.shape(leaf)[self.axis] == n
            return function(np.asarray(leaf)) if mine else leaf

        return jax.tree.map(of, self.batch)

    def taken(self, rows: Sequence[int] | np.ndarray) -> Any:
        """The batch of these examples, in this order."""
        return self.mapped(lambda leaf: np.take(leaf, np.asarray(rows, int), self.axis))

    def part(self, n: int) -> Examples:
        """The first `n` examples."""
        return Examples(self.taken(range(n)), self.axis)

    def twice(self) -> Any:
        """Every example twice, the second time behind all others."""
        return self.taken([*range(self.n), *range(self.n)])

    def turned(self, seed: int) -> Any:
        """The examples in another order, as few as can be in their place."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(self.n) for _ in range(32)]
        return self.taken(min(orders, key=lambda order: int((order == np.arange(self.n)).sum())))

    def spoilt(self) -> Any:
        """The first example with a NaN in each of its floating leaves; `None` where none floats."""
        if not any(is_real(leaf) and self._long(leaf) for leaf in jax.tree.leaves(self.batch)):
            return None

        def of(leaf: np.ndarray) -> np.ndarray:
            if not is_real(leaf):
                return leaf
            leaf = np.array(leaf)
            np.moveaxis(leaf, self.axis, 0)[0] = np.nan
            return leaf

        return self.mapped(of)


def filled(batch: Any, mask: Callable[[Any], Any], seed: int) -> Any:
    """The batch with other numbers where `mask` is zero, in every leaf whose shape begins as the
    mask's does, the mask's own aside; `None` where nothing could be filled."""
    keep = np.asarray(mask(batch)) != 0
    rng = np.random.default_rng(seed)
    leaves, treedef = jax.tree.flatten(batch)
    changed = False
    for i, leaf in enumerate(leaves):
        if not is_array(leaf) or np.shape(leaf)[: keep.ndim] != keep.shape or keep.all():
            continue
        new = [*leaves[:i], _others(np.asarray(leaf), keep, rng), *leaves[i + 1 :]]
        there = jax.tree.unflatten(treedef, new)
        if np.array_equal(np.asarray(mask(there)) != 0, keep):  # it is not what the mask is made of
            leaves, changed = new, True
    return jax.tree.unflatten(treedef, leaves) if changed else None


def _others(leaf: np.ndarray, keep: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other numbers of the same kind where nothing is kept."""
    if is_real(leaf):
        scale = float(np.abs(leaf[keep].astype(np.float64)).max(initial=0)) or 1.0
        drawn = (3 * scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
    else:
        drawn = rng.choice(np.unique(leaf), leaf.shape) if leaf.size else leaf
    return np.where(keep.reshape(keep.shape + (1,) * (leaf.ndim - keep.ndim)), leaf, drawn)


def masked_whole(examples: Examples, mask: Callable[[Any], Any] | None) -> set[int]:
    """Which examples a mask leaves nothing of."""
    keep = None if mask is None else np.asarray(mask(examples.batch)) != 0
    if keep is None or keep.ndim <= examples.axis or keep.shape[examples.axis] != examples.n:
        return set()
    rest = tuple(i for i in range(keep.ndim) if i != examples.axis)
    return set(np.flatnonzero(~keep.any(rest)).tolist())


def mask_leaf(batch: Any, mask: Callable[[Any], Any]) -> int | None:
    """Which leaf of the batch the mask is, where it is one as it stands."""
    given = mask(batch)
    leaves = jax.tree.leaves(batch)
    return next((i for i, leaf in enumerate(leaves) if leaf is given), None)


def with_masked(examples: Examples, mask: Callable[[Any], Any]) -> Any:
    """The batch with as many examples more, all masked: behind, as padding stands; `None` where it
    is not known how to mask."""
    place = mask_leaf(examples.batch, mask)
    if place is None:
        return None
    leaves, treedef = jax.tree.flatten(examples.twice())
    longer = np.array(leaves[place])
    np.moveaxis(longer, examples.axis, 0)[examples.n :] = 0
    leaves[place] = longer
    return jax.tree.unflatten(treedef, leaves)


def unequal(examples: Examples, mask: Callable[[Any], Any] | None) -> Examples:
    """The same examples of unequal weights: what of the first half is masked is more; the batch as
    it is where nothing can be masked."""
    place = None if mask is None else mask_leaf(examples.batch, mask)
    if place is None or examples.n < 4:
        return examples
    leaves, treedef = jax.tree.flatten(examples.batch)
    masked = np.array(leaves[place])
    rows = np.moveaxis(masked, examples.axis, 0)
    rows[: examples.n // 4] = 0
    leaves[place] = masked
    return Examples(jax.tree.unflatten(treedef, leaves), examples.axis)
