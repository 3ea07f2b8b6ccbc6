"""In-memory data: batch `i` is a pure function of `(seed, i)`, so a resumed run sees the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees

if TYPE_CHECKING:
    from jaxtyping import Array, Int, PyTree, Shaped

Last = Literal["pad", "drop"]


def check_data(data: PyTree, what: str = "data") -> int:
    """The number of examples in `data`, a tuple `(inputs, targets)` or with weights as a third.

    Raises:
      TypeError: `data` is no such tuple.
      ValueError: it is empty, its leaves differ in length, or hold NaN or infinity.

    Example:
      >>> check_data((np.zeros((3, 2)), np.zeros(3, int)))
      3
    """
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        raise TypeError(f"{what} must be (inputs, targets) or (inputs, targets, weights)")
    leaves = {
        "/".join([("inputs", "targets", "weights")[path[0].idx], *_rest(path)]): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(data)[0]
    }
    for name, leaf in leaves.items():
        if not hasattr(leaf, "shape") or leaf.ndim == 0:
            raise TypeError(f"{what}: {name} must be an array with an axis of examples")
    lengths = {name: leaf.shape[0] for name, leaf in leaves.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise ValueError(f"{what} must have as many inputs as targets, got {told}")
    n = next(iter(lengths.values()), 0)
    if n == 0:
        raise ValueError(f"{what} must have at least one example, got none")
    for name, leaf in leaves.items():
        if trees.is_float(leaf):
            bad = ~np.isfinite(np.asarray(leaf, np.float64))
            if bad.any():
                at = [int(i) for i in np.argwhere(bad)[0]]
                raise ValueError(f"{what} must be finite, got {leaf[tuple(at)]} in {name} at {at}")
    return n


def _rest(path: tuple[Any, ...]) -> list[str]:
    return [trees.path_string(path[1:])] if path[1:] else []


def epoch_rows(
    n: int, batch_size: int, seed: int, epoch: int, last: Last = "pad"
) -> Int[np.ndarray, "batches batch_size"]:
    """Which examples are in each batch of an epoch: every one once, in an order of its own.

    Args:
      n: how many examples there are.
      batch_size: how many a batch has.
      seed, epoch: what the order is drawn from, and nothing else.
      last: what becomes of a last, short batch: `"drop"` leaves it out, `"pad"` fills it up with
        the row number `-1`, for an example of weight zero.

    Example:
      >>> epoch_rows(5, 2, seed=0, epoch=0).tolist()
      [[2, 4], [3, 0], [1, -1]]
      >>> epoch_rows(5, 2, seed=0, epoch=0, last="drop").shape
      (2, 2)
    """
    order = np.random.default_rng([seed, epoch]).permutation(n).astype(np.int32)
    if last == "drop":
        order = order[: n - n % batch_size]
    else:
        order = np.pad(order, (0, -n % batch_size), constant_values=-1)
    return order.reshape(-1, batch_size)


def gather(data: PyTree, rows: Int[Array, "batch"], padded: bool) -> PyTree:
    """The batch of the given rows. Where rows may be padding, the batch has weights."""
    batch = trees.take(data, rows)
    if not padded:
        return batch
    real = rows >= 0
    if len(batch) == 3:
        inputs, targets, weights = batch
        return inputs, targets, jnp.where(trees.spread(real, weights) > 0, weights, 0)
    return *batch, real.astype(jnp.float32)


def split(
    data: PyTree[Shaped[np.ndarray, "n ..."]], fraction: float, seed: int
) -> tuple[PyTree, PyTree]:
    """`data` in two parts at random, the second a `fraction` of it.

    Raises:
      ValueError: `fraction` is not between 0 and 1.

    Example:
      >>> train, test = split((np.zeros(10), np.arange(10)), 0.2, seed=0)
      >>> train[0].shape, test[1].tolist()
      ((8,), [8, 1])
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    n = check_data(data)
    order = np.random.default_rng(seed).permutation(n)
    cut = n - round(n * fraction)
    return trees.take(data, order[:cut]), trees.take(data, order[cut:])
