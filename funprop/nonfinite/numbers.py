"""How large the numbers of an array are, and how many of them are not finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float, path_string, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Inexact, Int, PyTree, Shaped


class Numbers(NamedTuple):
    """What is told of an array, or of all in a tree.

    Attributes:
      largest: the largest absolute value that is finite; zero where there is none.
      nan: how many are NaN.
      inf: how many are infinite.
      size: how many there are.
      at: the index of the first that is not finite; `None` where all are.
      leaf: the path of the array in its tree that it stands in.
    """

    largest: float = 0.0
    nan: int = 0
    inf: int = 0
    size: int = 0
    at: tuple[int, ...] | None = None
    leaf: str = ""

    @property
    def finite(self) -> bool:
        """Whether all are."""
        return not (self.nan or self.inf)

    @property
    def kind(self) -> str:
        """`NaN`, `infinite`, both, or `finite`."""
        return " and ".join(["NaN"] * bool(self.nan) + ["infinite"] * bool(self.inf)) or "finite"

    def counted(self) -> str:
        """How many of how many, in words.

        Example:
          >>> Numbers(nan=1, inf=2, size=4096).counted()
          '1 NaN and 2 infinite of 4,096'
        """
        found = [(self.nan, "NaN"), (self.inf, "infinite")]
        told = " and ".join(f"{n:,} {kind}" for n, kind in found if n) or "none"
        return f"{told} of {self.size:,}"


def numbers_by_leaf(tree: PyTree) -> dict[str, Numbers]:
    """The `Numbers` of each floating leaf, by its path.

    Example:
      >>> found = numbers_by_leaf({"w": jnp.array([1.0, -jnp.inf, jnp.nan]), "n": jnp.arange(2)})
      >>> found["w"]
      Numbers(largest=1.0, nan=1, inf=1, size=3, at=(1,), leaf='w')
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    floats = [(path_string(path), jnp.asarray(leaf)) for path, leaf in leaves if _counts(leaf)]
    with jax.disable_jit(False):
        each = [(name, leaf.shape, _reduced(leaf)) for name, leaf in floats if leaf.size]
    return {name: _numbers(name, shape, found) for name, shape, found in each}


def numbers(tree: PyTree) -> Numbers:
    """The `Numbers` of all floating leaves together.

    Example:
      >>> numbers((jnp.ones(2), jnp.array([2.0, jnp.nan])))
      Numbers(largest=2.0, nan=1, inf=0, size=4, at=(1,), leaf='1')
    """
    each = list(numbers_by_leaf(tree).values())
    worst = next((one for one in each if not one.finite), Numbers())
    return Numbers(
        max((one.largest for one in each), default=0.0),
        sum(one.nan for one in each),
        sum(one.inf for one in each),
        sum(one.size for one in each),
        worst.at,
        worst.leaf,
    )


def short(value: float) -> str:
    """A number in three digits.

    Example:
      >>> short(105.0), short(3.1e38), short(0.0)
      ('105', '3.1e+38', '0')
    """
    return f"{value or 0.0:.3g}"


def quantity(value: float) -> str:
    """What a scalar is, where it may not be finite.

    Example:
      >>> quantity(float("nan")), quantity(-float("inf")), quantity(2.31)
      ('NaN', 'infinite', '2.31')
    """
    return "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else short(value)


def _counts(leaf: Any) -> bool:
    return isinstance(leaf, float) or (hasattr(leaf, "dtype") and is_float(leaf))


def _numbers(name: str, shape: tuple[int, ...], found: Any) -> Numbers:
    largest, nan, inf, first = (np.asarray(part).item() for part in found)
    at = tuple(map(int, np.unravel_index(first, shape))) if nan or inf else None
    return Numbers(largest, nan, inf, math.prod(shape), at, name)


@jax.jit
def _reduced(
    x: Inexact[Array, "*shape"],
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""], Shaped[Array, ""]]:
    size = jnp.abs(widen(x))
    finite, nan = jnp.isfinite(size), jnp.isnan(size)
    largest = jnp.where(finite, size, jnp.zeros_like(size)).max()
    return largest, nan.sum(), (~finite & ~nan).sum(), jnp.argmin(finite.ravel())
