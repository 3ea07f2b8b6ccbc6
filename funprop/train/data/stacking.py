"""Records and batches as people give them, stacked into one array a leaf; told where they are
unlike the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.train.data.as_arrays import first_nonfinite
from funprop.values import dtype_in_jax

if TYPE_CHECKING:
    from funprop.typing import PyTree

PARTS = "inputs", "targets", "weights"


class Like(NamedTuple):
    """What all records, or all batches, of a run have in common.

    Attributes:
      structure: of their tree, a list of numbers being one array.
      names: of the leaves, as messages say them.
      shapes: of the leaves.
      dtypes: of the leaves, on the device.
    """

    structure: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]


def like(example: PyTree, where: str) -> Like:
    """What others must be like that come after `example`.

    Raises:
      TypeError: it holds other than numbers.

    Example:
      >>> like({"tokens": [1, 2], "label": 0}, "record 0").shapes
      ((), (2,))
    """
    leaves, structure = _flat(example)
    places = jax.tree_util.tree_flatten_with_path(structure.unflatten(range(len(leaves))))[0]
    parts = isinstance(example, tuple) and len(example) in (2, 3)
    names = tuple(_name(path, parts) for path, _ in places)
    if not names:
        raise TypeError(f"{where} must hold arrays, holds none")
    found = [_numbers(leaf, where, name) for leaf, name in zip(leaves, names, strict=True)]
    dtypes = tuple(_dtype(leaf) for leaf in found)
    return Like(structure, names, tuple(leaf.shape for leaf in found), dtypes)


def stacked(trees_: Iterable[PyTree], n: int, first: Like, where: Callable[[int], str]) -> PyTree:
    """Trees that are all like the first, as one with an axis more in front, on the host.

    Each is copied before the next one is asked for, which may lie in the same memory.

    Args:
      trees_: of arrays, lists of numbers, or what NumPy takes for arrays.
      n: how many.
      first: what they must be like.
      where: the i-th of them, in a message.

    Raises:
      TypeError: one holds other than numbers.
      ValueError: one is unlike the first, or holds numbers that are not finite, or do not fit the
        dtype on the device.

    Example:
      >>> first = like((np.zeros(2), 0), "record 0")
      >>> stacked([(np.ones(2), 1), ([2.0, 2.0], 2)], 2, first, "record {}".format)[1]
      array([1, 2], dtype=int32)
      >>> stacked([(np.ones(3), 1)], 1, first, "record {}".format)
      Traceback (most recent call last):
        ...
      ValueError: record 0: inputs must be float32[2] as in the first, got float32[3]
    """
    specs = list(zip(first.names, first.shapes, first.dtypes, strict=True))
    columns = [np.empty((n, *shape), dtype) for _, shape, dtype in specs]
    for i, tree in enumerate(trees_):
        leaves, structure = _flat(tree)
        if structure != first.structure:
            raise ValueError(f"{where(i)} must be like the first, {_unlike(first, tree)}")
        for k, (leaf, (name, shape, dtype)) in enumerate(zip(leaves, specs, strict=True)):
            got = leaf if type(leaf) is np.ndarray else _numbers(leaf, where(i), name)
            if got.shape != shape or (got.dtype != dtype and _dtype(got) != dtype):
                told = _spec(got.shape, _dtype(got))
                raise ValueError(
                    f"{where(i)}: {name} must be {_spec(shape, dtype)} as in the first, got {told}"
                )
            if got.dtype != columns[k].dtype:
                columns[k] = _widened(columns[k], i, got.dtype)
            columns[k][i] = got
    found = [
        _fitting(column, dtype, where, name)
        for column, (name, _, dtype) in zip(columns, specs, strict=True)
    ]
    whole = jax.tree.unflatten(first.structure, found)
    weighted = isinstance(whole, tuple) and len(whole) == 3
    for name, leaf in zip(first.names, found, strict=True):
        of_targets = weighted and name.split("/")[0] == "targets"
        at = first_nonfinite(leaf, whole[2] if of_targets else None)
        if at is not None:
            row, *rest = at
            place = f" at {rest}" if rest else ""
            raise ValueError(f"{where(row)}: {name} must be finite, got {leaf[tuple(at)]}{place}")
        if weighted and name.split("/")[0] == "weights" and (leaf < 0).any():
            raise ValueError(
                f"{where(int(np.argwhere(leaf < 0)[0][0]))}: {name} must be at least 0, got "
                f"{leaf.min()}"
            )
    return whole


def _widened(column: np.ndarray, filled: int, dtype: np.dtype) -> np.ndarray:
    """A column that takes wider numbers too; whether they fit the device is seen of all at once."""
    wide = np.result_type(column.dtype, dtype)
    if wide == column.dtype:
        return column
    found = np.empty(column.shape, wide)
    found[:filled] = column[:filled]
    return found


def _flat(tree: PyTree) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=lambda node: isinstance(node, list))


def _name(path: Any, parts: bool) -> str:
    if not path:
        return "the array"
    if not parts:
        return trees.path_string(path)
    rest = [trees.path_string(path[1:])] if len(path) > 1 else []
    return "/".join([PARTS[path[0].idx], *rest])


def _numbers(leaf: Any, where: str, name: str) -> np.ndarray:
    """As an array of NumPy's, in whatever dtype it has there."""
    if np.ma.is_masked(leaf):
        raise ValueError(f"{where}: {name} must not be masked: give weights of zero instead")
    known = hasattr(leaf, "__array__") or isinstance(leaf, bool | int | float | complex | list)
    try:
        found = np.asarray(leaf) if known else None
    except ValueError:
        raise ValueError(f"{where}: {name} must be an array, got a list of many lengths") from None
    except TypeError:  # a random key
        found = None
    if found is None:
        raise TypeError(f"{where}: {name} must be numbers, got {type(leaf).__name__}")
    if not (jnp.issubdtype(found.dtype, jnp.number) or found.dtype == bool):
        raise TypeError(f"{where}: {name} must be numbers, got dtype {found.dtype}")
    return found


def _dtype(array: Any) -> np.dtype:
    return np.dtype(jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("=")))


def _fitting(
    column: np.ndarray, dtype: np.dtype, where: Callable[[int], str], name: str
) -> np.ndarray:
    if column.dtype == dtype:
        return column
    try:
        dtype_in_jax(column, name)
    except ValueError:
        for i, part in enumerate(column):  # which one it is
            dtype_in_jax(part, f"{where(i)}: {name}")
        raise
    return column.astype(dtype)


def _spec(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{dtype.name}[{','.join(map(str, shape))}]"


def _unlike(first: Like, tree: PyTree) -> str:
    """In what a structure differs: in its leaves' names, where they do."""
    if not isinstance(tree, tuple | dict):
        return f"{first.structure.num_leaves} arrays in a tree, got {type(tree).__name__}"
    leaves, structure = _flat(tree)
    places = jax.tree_util.tree_flatten_with_path(structure.unflatten(range(len(leaves))))[0]
    parts = first.names[0].split("/")[0] in PARTS and isinstance(tree, tuple) and len(tree) <= 3
    names = [_name(path, parts) for path, _ in places]
    for lacking in (name for name in first.names if name not in names):
        return f"but has no {lacking[:60]}"
    for more in (name for name in names if name not in first.names):
        return f"but has {more[:60]} more"
    return f"but is another kind of {type(tree).__name__}"
