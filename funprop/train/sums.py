"""Sums over many updates, exact to rounding however many there are, in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Num


class Pair(NamedTuple):
    """A number in two parts, `high + low`: about twice the digits of its dtype.

    One by one, a million terms of 0.1 in float32 would sum up to 1% more.
    Source: Dekker 1971, A floating-point technique for extending the available precision.
    """

    high: Any
    low: Any


def nothing(specs: dict[str, trees.Sum]) -> dict[str, trees.Sum]:
    """The sums before the first update, of metrics that look like `specs`."""

    def zero(spec: Any) -> Pair:
        return Pair(*(np.zeros(spec.shape, trees.wide_dtype(spec.dtype)) for _ in range(2)))

    return jax.tree.map(zero, specs)


def plus(sums: dict[str, trees.Sum], metrics: dict[str, trees.Sum]) -> dict[str, trees.Sum]:
    """`sums`, with a `Pair` for each number, and the metrics of one update more.

    Example:
      >>> one = {"loss": trees.Sum(jnp.float32(1.0), jnp.float32(1e-9))}
      >>> sums = plus(plus(nothing(one), one), {"loss": trees.Sum(1e-9, 1)})
      >>> float(on_host(sums)["loss"].total), float(means(on_host(sums))["loss"])
      (1.000000001, 1.0)
    """
    return jax.tree.map(lambda x, pair: _add(pair, jnp.asarray(x)), metrics, sums)


def _add(pair: Pair, x: Num[Array, "..."]) -> Pair:
    dtype = pair.high.dtype
    if trees.is_float(x):
        return _add_float(pair, x.astype(dtype))
    x = x.astype(jnp.int32) if x.dtype == bool else x
    rounded = x.astype(dtype)  # an integer may have more digits than float32
    rest = (x - rounded.astype(x.dtype)).astype(dtype)
    return _add_float(_add_float(pair, rounded), rest)


def _add_float(pair: Pair, x: Float[Array, "..."]) -> Pair:
    total = pair.high + x
    added = total - pair.high
    lost = (pair.high - (total - added)) + (x - added) + pair.low  # Knuth's two-sum
    # Of what is infinite nothing was lost: infinity less itself is NaN.
    lost = jnp.where(jnp.isfinite(total), lost, jnp.zeros_like(lost))
    high = total + lost
    return Pair(high, jnp.where(jnp.isfinite(high), lost - (high - total), jnp.zeros_like(lost)))


def on_host(pairs: Any) -> dict[str, trees.Sum]:
    """The sums in float64; waits for the device."""

    def number(pair: Pair) -> Any:
        return np.asarray(pair.high, np.float64) + np.asarray(pair.low, np.float64)

    return jax.tree.map(number, jax.device_get(pairs), is_leaf=lambda node: isinstance(node, Pair))


def summed(parts: list[dict[str, trees.Sum]]) -> dict[str, trees.Sum]:
    """The sums over parts, in float64; waits for the device."""
    parts = jax.device_get(parts)
    return jax.tree.map(lambda *found: np.sum(np.asarray(found, np.float64), axis=0), *parts)


def means(sums: dict[str, trees.Sum]) -> dict[str, Any]:
    """The means, the loss first (`jit` sorts the keys of a dict); of nothing, NaN. Of a population
    each is an array, a mean a member."""
    names = sorted(sums, key=lambda name: name != "loss")
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: np.divide(sums[name].total, sums[name].weight) for name in names}
