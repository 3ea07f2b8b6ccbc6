"""Batches of data that is not in memory: loaded by one thread while the device computes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop import trees
from funprop.train import processes
from funprop.train.arrays import AXIS
from funprop.train.data.batches import Batches
from funprop.train.data.feeds import Block
from funprop.train.data.prefetch import ahead

if TYPE_CHECKING:
    from funprop.typing import PyTree

# A block of batches is loaded at once: as many bytes as cost little memory, and no more than can be
# had in the time of a device call, so that a slow source does not keep the device waiting for long.
BLOCK_BYTES = 4 * 2**20
BLOCK_SECONDS = 0.2


class Streamed:
    """The feed of batches that are loaded as they are needed; see `funprop.train.data.feeds.Feed`.

    Blocks have one shape, so that one program serves them all: that which closes an epoch has
    places that hold nothing. Over a mesh, a process loads the places of its own devices alone.
    """

    def __init__(self, batches: Batches, mesh: jax.sharding.Mesh | None) -> None:
        self.updates, self.size = batches.updates, batches.size
        self.examples = min(batches.examples, self.updates * self.size)
        self.settings, self.pick = batches.settings, batch_of
        self._batches, self._mesh = batches, mesh
        self._everywhere = np.arange(self.size)
        self._places = _places_here(self.size, mesh)
        # What a thread does not inherit.
        config: Any = jax.config
        self._x64, self._device = config.jax_enable_x64, config.jax_default_device
        start = time.perf_counter()
        first = batches.load(0, 0, 1, self._places)
        seconds = time.perf_counter() - start
        fitting = BLOCK_BYTES / max(1, trees.nbytes(first)), BLOCK_SECONDS / max(seconds, 1e-9)
        self._long = max(1, processes.of_first(int(min(*fitting, batches.whole, 2**20))))
        self.rows = np.arange(self._long, dtype=np.int32)
        self.example = jax.tree.map(self._spec, first)

    def batch(self, epoch: int, i: int) -> PyTree:
        """Batch `i` of an epoch on the host, by itself and whole."""
        loaded = self._batches.load(epoch, i, i + 1, self._everywhere)
        return jax.tree.map(lambda leaf: leaf[0], loaded)

    def blocks(self, epoch: int, done: int = 0) -> Generator[Block]:
        """Those of an epoch from its update `done` on, each loaded while others are in use."""
        return ahead(self._blocks(epoch, done))

    def _spec(self, leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((self._long, self.size, *leaf.shape[2:]), leaf.dtype)

    def _blocks(self, epoch: int, done: int) -> Iterator[Block]:
        # The first ones are short, and each twice as long as the one before: the device waits for
        # the first, and none is ahead of the second.
        some = max(1, self._long // 16)
        while done < self.updates:
            end = min(done + some, max(self._batches.whole, done + 1), self.updates)
            some = min(2 * some, self._long)
            with jax.enable_x64(self._x64), jax.default_device(self._device):
                loaded = self._batches.load(epoch, done, end, self._places)
                block = self._placed(loaded, end - done, done < self._batches.whole)
            yield block
            del loaded, block
            done = end

    def _placed(self, loaded: PyTree, updates: int, whole: bool) -> Block:
        long = self._long if whole else 1

        def placed(leaf: Any) -> Any:
            if updates < long:
                missing = np.zeros((long - updates, *leaf.shape[1:]), leaf.dtype)
                leaf = np.concatenate([leaf, missing])
            if self._mesh is None:
                return jax.device_put(leaf)
            return _over(self._mesh, leaf, self._places, self.size)

        size = jax.tree.leaves(loaded)[0].shape[1] if self._mesh is None else self.size
        return Block(jax.tree.map(placed, loaded), self.rows[:long], size, updates)


def batch_of(data: PyTree, row: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[row], data)


def _split(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    return jax.NamedSharding(mesh, jax.P(None, AXIS))


def _places_here(batch_size: int, mesh: jax.sharding.Mesh | None) -> np.ndarray:
    """Which examples of a batch are those of this process's devices."""
    every = np.arange(batch_size)
    if mesh is None:
        return every
    indices: Any = _split(mesh).addressable_devices_indices_map((1, batch_size)).values()
    return np.unique(np.concatenate([every[places] for _, places in indices]))


def _over(mesh: jax.sharding.Mesh, leaf: Any, places: np.ndarray, batch_size: int) -> jax.Array:
    """The array over all devices, of which this process has these places of a batch."""
    shape = leaf.shape[0], batch_size, *leaf.shape[2:]

    def of_device(index: Any) -> np.ndarray:
        first, end, _ = index[1].indices(batch_size)
        here = slice(*np.searchsorted(places, (first, end)))
        return leaf[:, here]

    return jax.make_array_from_callback(shape, _split(mesh), of_device)
