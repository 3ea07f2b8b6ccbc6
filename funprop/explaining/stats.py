"""What is told of an array: where its numbers lie, and all of them where they are few."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float

if TYPE_CHECKING:
    from funprop.typing import PyTree

FEW = 64  # so many numbers are kept as they are
BINS = 24


class Stats(NamedTuple):
    """What is told of an array.

    Attributes:
      shape, dtype: of it.
      mean, deviation, least, largest: of its finite numbers.
      norm: of all.
      zeros: the share of numbers that are zero.
      nonfinite: how many are infinite or NaN.
      values: the numbers in nested lists, where there are at most 64; else `None`.
      first: the first eight.
      bins: how many lie in each of 24 parts from the least to the largest.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: float
    deviation: float
    norm: float
    least: float
    largest: float
    zeros: float
    nonfinite: int
    values: Any
    first: list[float]
    bins: list[int]


def stats(array: Any) -> Stats:
    """The `Stats` of an array.

    Example:
      >>> found = stats(np.array([3.0, 0.0, -4.0, 0.0]))
      >>> found.norm, found.zeros, found.values
      (5.0, 0.5, [3.0, 0.0, -4.0, 0.0])
    """
    x = np.asarray(array)
    wide = x.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    some = finite if finite.size else np.zeros(1)
    return Stats(
        x.shape,
        str(x.dtype),
        float(some.mean()),
        float(some.std()),
        float(np.sqrt((wide * wide).sum())),
        float(some.min()),
        float(some.max()),
        float((wide == 0).mean()) if wide.size else 0.0,
        int(wide.size - finite.size),
        wide.tolist() if wide.size <= FEW else None,
        wide.ravel()[:8].tolist(),
        _bins(some),
    )


def stats_of(tree: PyTree) -> Stats | None:
    """The `Stats` of the first floating leaf, or else of the first leaf; `None` where none is."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    numbers = [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)]
    floats = [leaf for leaf in numbers if is_float(leaf)]
    chosen = (floats or numbers)[:1]
    return stats(chosen[0]) if chosen else None


def _bins(some: Any) -> list[int]:
    low, high = float(some.min()), float(some.max())
    if not (math.isfinite(high - low) and high > low):
        return [int(some.size)]
    return np.histogram(some, BINS, (low, high))[0].tolist()
