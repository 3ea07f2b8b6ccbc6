"""In-memory data: batch `i` is a pure function of `(seed, epoch, i)`, so a resumed run sees the
same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.train.data.as_arrays import array, first_nonfinite, listed, parts_of

if TYPE_CHECKING:
    from funprop.typing import Array, Int, PyTree, Shaped

Last = Literal["short", "pad", "drop"]
PADDING = -1  # stands for no row, in the place of one


def check_data(data: PyTree, what: str = "data") -> int:
    """The number of examples in `data`, a tuple `(inputs, targets)` or with weights as a third.

    Raises:
      TypeError: `data` is no such tuple, or holds other than numbers.
      ValueError: it is empty, its leaves differ in length, hold NaN or infinity, or numbers that
        the device's dtypes do not have.

    Example:
      >>> check_data((np.zeros((3, 2)), np.zeros(3, int)))
      3
    """
    return len(jax.tree.leaves(arrays(data, what))[0])


def arrays(data: PyTree, what: str = "data") -> tuple[PyTree, ...]:
    """`data` with every leaf an array of NumPy's or JAX's, of a dtype that the device has; raises
    as `check_data` does.

    Example:
      >>> x, y = arrays((np.zeros((3, 2), ">f8"), np.arange(3)))
      >>> x.dtype, y.dtype
      (dtype('float32'), dtype('int32'))
    """
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        got = f"a tuple of {len(data)}" if isinstance(data, tuple) else type(data).__name__
        raise TypeError(
            f"{what} must be (inputs, targets) or (inputs, targets, weights), got {got}"
        )
    names = "inputs", "targets", "weights"
    data = listed(data, names)
    if len(data) == 3 and not jax.tree.leaves(data[2]):
        got = "None" if data[2] is None else type(data[2]).__name__
        raise TypeError(f"{what}: weights must be an array, or left out, got {got}")
    leaves = parts_of(data, names)
    found = [array(leaf, f"{what}: {name}") for name, leaf in leaves.items()]
    lengths = {name: len(leaf) for name, leaf in zip(leaves, found, strict=True)}
    if len(set(lengths.values())) > 1:
        some = list(lengths.items())
        if len(some) > 3:  # the first, and the first that differs
            some = [some[0], next(pair for pair in some if pair[1] != some[0][1])]
        told = ", ".join(f"{n} {name}" for name, n in some)
        raise ValueError(f"{what} must have as many inputs as targets, got {told}")
    if not any(lengths.values()):
        raise ValueError(f"{what} must have at least one example, got none")
    whole = jax.tree.unflatten(jax.tree.structure(data), found)
    weights = whole[2] if len(whole) == 3 else None
    for name, leaf in zip(leaves, found, strict=True):
        _check_finite(leaf, name, what, weights if name.split("/")[0] == "targets" else None)
    if len(whole) == 3:
        _check_weights(weights, what)
    return whole


def _check_finite(leaf: Any, name: str, what: str, weights: PyTree) -> None:
    at = first_nonfinite(leaf, weights)
    if at is not None:
        raise ValueError(f"{what} must be finite, got {leaf[tuple(at)]} in {name} at {at}")


def _check_weights(weights: PyTree, what: str) -> None:
    leaves = jax.tree.leaves(weights)
    for leaf in leaves:
        if (leaf < 0).any():
            raise ValueError(f"{what}: weights must be at least 0, got {leaf.min()}")
    if leaves and not any((leaf > 0).any() for leaf in leaves):
        raise ValueError(f"{what}: weights must not all be zero")


def epoch_rows(
    n: int, batch_size: int, seed: int, epoch: int, last: Last = "short"
) -> Int[np.ndarray, "batches batch_size"]:
    """Which examples are in each batch of an epoch: every one once, in an order of its own.

    Args:
      n: how many examples there are.
      batch_size: how many a batch has.
      seed, epoch: what the order is drawn from, and nothing else.
      last: what becomes of a last, short batch: `"drop"` leaves it out; otherwise the row number
        `-1` stands in the places that are empty.

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
        order = np.pad(order, (0, -n % batch_size), constant_values=PADDING)
    return order.reshape(-1, batch_size)


def blocks(
    rows: Int[np.ndarray, "batches batch_size"],
) -> list[Int[np.ndarray, "batches batch_size"]]:
    """The rows of an epoch as blocks of batches of one size: a last, short batch is by itself.

    Example:
      >>> [block.tolist() for block in blocks(np.array([[2, 4], [3, 0], [1, -1]]))]
      [[[2, 4], [3, 0]], [[1]]]
    """
    short = rows[-1][rows[-1] >= 0]
    if len(short) == rows.shape[1]:
        return [rows]
    return [block for block in (rows[:-1], short[None]) if len(block)]


def gather(data: PyTree, rows: Int[Array, "batch"], padded: bool) -> PyTree:
    """The batch of the given rows. Where rows may be padding, the batch has weights."""
    batch = trees.take(data, rows)
    if not padded:
        return batch
    real = rows >= 0
    if len(batch) == 3:
        inputs, targets, weights = batch

        def masked(leaf: Any) -> Any:
            return jnp.where(trees.spread(real, leaf) != 0, leaf, jnp.zeros_like(leaf))

        return inputs, targets, jax.tree.map(masked, weights)
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
