"""Batches by number: of a source's records, or as a function makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
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
