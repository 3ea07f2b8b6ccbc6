"""Where a run's batches come from: which are in an epoch, and how they reach the device."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from funprop.train.arrays import split
from funprop.train.checkpoints.digests import digests
from funprop.train.data.in_memory import Last, blocks, epoch_rows, gather

if TYPE_CHECKING:
    from funprop.typing import Array, Int, PyTree


class Block(NamedTuple):
    """Batches that are on the device, one after another.

    Attributes:
      data: what they are picked from.
      rows: batch `j` is `pick(data, rows[j])`.
      size: examples a batch.
      updates: how many batches there are; there may be more rows, which mean nothing.
    """

    data: PyTree
    rows: Any
    size: int
    updates: int


class Feed(Protocol):
    """The batches of a run: batch `i` of an epoch is a function of seed, epoch and `i` alone.

    Attributes:
      updates: how many an epoch has.
      examples: how many an epoch has.
      size: examples a batch; the last one of an epoch may have fewer.
      pick: `(data, row) -> batch`; traced. The same function for feeds of the same kind.
      settings: what must be the same for a run to go on where it ended; JSON.
    """

    updates: int
    examples: int
    size: int
    pick: Callable[[PyTree, Any], PyTree]

    @property
    def settings(self) -> dict[str, Any]: ...

    def blocks(self, epoch: int, done: int = 0) -> Generator[Block]:
        """Those of an epoch, from its update `done` on; closed by who needs no more of them."""
        ...

    def batch(self, epoch: int, i: int) -> PyTree:
        """Batch `i` of an epoch, by itself."""
        ...


class InMemory:
    """Arrays that are on the device as a whole; batches are rows of them.

    Args:
      data: a tuple of arrays, as `arrays` gives them, on the device.
      batch_size: examples a batch.
      seed: of the order.
      last: what becomes of a last, short batch.
      padded: whether it is filled up to be as long as the others.
      mesh: what the rows of a batch are split over.
    """

    def __init__(
        self,
        data: PyTree,
        batch_size: int,
        seed: int,
        last: Last,
        padded: bool,
        mesh: jax.sharding.Mesh | None,
    ) -> None:
        self.examples, self.size = len(jax.tree.leaves(data)[0]), batch_size
        self.pick = picked_or_padding if padded else picked
        self._data, self._mesh = data, mesh
        self._seed, self._padded = seed, padded
        self._last: Last = last
        self.updates = len(self._rows(0))

    @property
    def settings(self) -> dict[str, Any]:
        """With a digest of the data: another time it must be the same."""
        found = digests({str(i): leaf for i, leaf in enumerate(jax.tree.leaves(self._data))})
        return {
            "examples": self.examples,
            "batch_size": self.size,
            "seed": self._seed,
            "last": self._last,
            "contents": "".join(found.values()),
        }

    def _rows(self, epoch: int) -> Int[np.ndarray, "batches batch_size"]:
        return epoch_rows(self.examples, self.size, self._seed, epoch, self._last)

    def blocks(self, epoch: int, done: int = 0) -> Generator[Block]:
        """All full batches are one block."""
        rows = self._rows(epoch)[done:]
        for block in [rows] if self._padded else blocks(rows):
            if len(block):
                yield Block(self._data, split(block, self._mesh), block.shape[1], len(block))

    def batch(self, epoch: int, i: int) -> PyTree:
        rows = self._rows(epoch)[i]
        rows = rows if self._padded else rows[rows >= 0]
        return self.pick(self._data, jnp.asarray(rows))


def picked(data: PyTree, rows: Int[Array, " batch"]) -> PyTree:
    """The batch of the given rows."""
    return gather(data, rows, padded=False)


def picked_or_padding(data: PyTree, rows: Int[Array, " batch"]) -> PyTree:
    """The same with weights; a row that is none weighs nothing."""
    return gather(data, rows, padded=True)
