"""How the numbers of an array are spread: sums, so that those of several arrays add up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

# Of absolute values: two parts a decade, from 1e-12 to 1e4; what is below or above is in the ends.
DECADES = np.arange(-12, 4.5, 0.5)
SUMS = 4  # count, zeros, sum, sum of squares
SIZE = SUMS + len(DECADES) + 1


class Spread(NamedTuple):
    """How the numbers of an array, or of all in a tree, are spread.

    Attributes:
      size: how many there are.
      zeros: the share that is zero.
      mean, deviation: of them.
      bins: how many that are not zero lie, in absolute value, below 1e-12, in each half of a decade
        from there to 1e4, and above.
    """

    size: int
    zeros: float
    mean: float
    deviation: float
    bins: tuple[int, ...]

    @property
    def rms(self) -> float:
        """The root of the mean square."""
        return math.hypot(self.mean, self.deviation)

    def quantile(self, q: float) -> float:
        """Below which absolute value a share `q` of those that are not zero lies, to half a decade,
        even within it; NaN where all are zero."""
        total = sum(self.bins)
        if not total:
            return math.nan
        reached = np.cumsum(self.bins) / total
        i = int(np.searchsorted(reached, q))
        if i in (0, len(DECADES)):
            return float(10 ** DECADES[min(i, len(DECADES) - 1)])
        before = reached[i - 1]
        return float(10 ** (DECADES[i - 1] + 0.5 * (q - before) / (reached[i] - before)))


def sums(tree: PyTree) -> Float[Array, " size"]:
    """What a `Spread` is made of, as one vector, of the floating leaves of a tree: to be added."""
    total = jnp.zeros(SIZE, jnp.float32)
    for leaf in jax.tree.leaves(tree):
        if is_float(leaf) and leaf.size:
            total += _sums(leaf.astype(jnp.float32).reshape(-1))
    return total


def _sums(x: Float[Array, " n"]) -> Float[Array, " size"]:
    size = jnp.abs(x)
    # Counted by comparing, an edge at a time: a scatter or a sort takes far longer on a CPU, and
    # all edges at once are held in memory. What is not finite is in no bin.
    least = jnp.asarray([np.finfo(np.float32).tiny, *10.0**DECADES, np.inf], jnp.float32)
    above = jax.lax.map(lambda edge: jnp.sum(~(size < edge), dtype=jnp.float32), least)
    inside = above[:-1] - above[1:]
    return jnp.concatenate(
        [jnp.stack([jnp.float32(x.size), x.size - above[0], jnp.sum(x), jnp.sum(x * x)]), inside]
    )


def spread(vector: Any) -> Spread | None:
    """Of what `sums` gave, on the host; `None` of no numbers.

    Example:
      >>> found = spread(sums(jnp.array([0.0, 3.0, -4.0, 0.0])))
      >>> found.zeros, found.rms, found.size
      (0.5, 2.5, 4)
    """
    wide = np.asarray(vector, np.float64)
    count, zeros, total, squares = wide[:SUMS]
    if not count:
        return None
    mean = total / count
    deviation = math.sqrt(max(squares / count - mean * mean, 0.0))
    bins = tuple(int(n) for n in wide[SUMS:])
    return Spread(int(count), float(zeros / count), float(mean), deviation, bins)
