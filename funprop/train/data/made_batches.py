"""Batches that a function makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop.train.data.stacking import like, stacked
from funprop.values import short_line

if TYPE_CHECKING:
    from funprop.typing import Int, PyTree


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
        self.settings: dict[str, Any] = {"updates": updates, "batch_size": self.size, "seed": seed}

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
