"""Batches by number: of a source's records, or as a function makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from funprop.train.data.order import shuffled
from funprop.train.data.records import read
from funprop.train.data.stacking import like, stacked
from funprop.values import short_line

if TYPE_CHECKING:
    from funprop.train.data.in_memory import Last
    from funprop.typing import Int, PyTree


class Batches(Protocol):
    """Data by number: batch `i` of an epoch is a function of `(seed, epoch, i)`.

    Attributes:
      updates: in an epoch.
      whole: those that are not short, which come first.
      examples: in an epoch.
      size: examples a batch; a short one has fewer.
      settings: what must be the same for a run to go on where it ended; JSON.
    """

    updates: int
    whole: int
    examples: int
    size: int
    settings: dict[str, Any]

    def load(self, epoch: int, first: int, end: int, places: Int[np.ndarray, "places"]) -> PyTree:
        """These places of batches `first` to `end`, `[batches, places, ...]` a leaf, on the host.

        Raises:
          TypeError, ValueError: what is wrong with them, and with which.
        """
        ...


class RecordBatches:
    """Batches of a source's records, in an order of their own every epoch."""

    def __init__(
        self, source: Any, batch_size: int, seed: int, last: Last, padded: bool = False
    ) -> None:
        self.examples, self.size = len(source), batch_size
        self.settings = {
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


class MadeBatches:
    """Batches that a function makes of `(seed, index)`, the index that of the update in the run."""

    def __init__(self, function: Callable[[int, int], PyTree], updates: int, seed: int) -> None:
        self.updates = self.whole = updates
        self._function, self._seed = function, seed
        first = self._made(0)
        self._like = like(first, "data: update 0")
        sizes = {shape[0] if shape else 0 for shape in self._like.shapes}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(
                "data: update 0 must be a batch, arrays with one axis of examples, got shapes "
                f"{', '.join(map(str, self._like.shapes[:3]))}"
            )
        (self.size,) = sizes
        self.examples = self.size * updates
        self.settings = {"updates": updates, "batch_size": self.size, "seed": seed}

    def _made(self, i: int) -> PyTree:
        try:
            return self._function(self._seed, i)
        except Exception as error:
            raise ValueError(f"data: update {i} cannot be made: {short_line(error)}") from error

    def load(self, epoch: int, first: int, end: int, places: Int[np.ndarray, "places"]) -> PyTree:
        before = epoch * self.updates + first
        n = end - first
        made = (self._made(before + i) for i in range(n))
        found = stacked(made, n, self._like, lambda i: f"data: update {before + i}")
        if len(places) == self.size:
            return found
        return jax.tree.map(lambda leaf: leaf[:, places], found)
