"""Batches of a source's records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop.train.data.order import shuffled
from funprop.train.data.records import read
from funprop.train.data.stacking import like, stacked

if TYPE_CHECKING:
    from funprop.train.data.in_memory import Last
    from funprop.typing import Int, PyTree


class RecordBatches:
    """Batches of a source's records, in an order of their own every epoch."""

    def __init__(
        self, source: Any, batch_size: int, seed: int, last: Last, padded: bool = False
    ) -> None:
        self.examples, self.size = len(source), batch_size
        self.settings: dict[str, Any] = {
            "examples": self.examples,
            "batch_size": batch_size,
            "seed": seed,
            "last": last,
        }
        self.whole = self.examples // batch_size
        self.updates = self.whole if last == "drop" else -(-self.examples // batch_size)
        self._padded = padded
        if padded:
            self.whole = self.updates
        self._source, self._seed = source, seed
        i = int(shuffled(np.zeros(1, int), self.examples, seed, 0)[0])
        self._like = like(next(read(source, [i])), f"data: record {i}")

    def load(self, epoch: int, first: int, end: int, places: Int[np.ndarray, "places"]) -> PyTree:
        at = np.arange(first, end)[:, None] * self.size + places
        real = at < self.examples
        if not self._padded and not real.all():  # the short batch, by itself
            at, real = at[:, real[0]], real[:, real[0]]
        rows = shuffled(np.minimum(at, self.examples - 1), self.examples, self._seed, epoch)
        flat = rows.ravel().tolist()
        records = read(self._source, flat)
        found = stacked(records, len(flat), self._like, lambda i: f"data: record {flat[i]}")
        batches = jax.tree.map(lambda leaf: leaf.reshape(*at.shape, *leaf.shape[1:]), found)
        return _weighted(batches, real) if self._padded else batches


def _weighted(batches: tuple[Any, ...], real: Any) -> tuple[Any, ...]:
    """With weights, zero in the places that are only filled up."""
    weights = real.astype(np.float32)
    if len(batches) == 2:
        return *batches, weights

    def masked(leaf: Any) -> Any:
        return leaf * real.reshape(*real.shape, *(1,) * (leaf.ndim - 2)).astype(leaf.dtype)

    return *batches[:2], jax.tree.map(masked, batches[2])
