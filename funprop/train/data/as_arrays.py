"""What people have their numbers in, as arrays that the device can hold; or why not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.values import dtype_in_jax


def listed(data: tuple[Any, ...], names: tuple[str, ...]) -> tuple[Any, ...]:
    """`data` with the array in the place of a list of numbers, of lists of them, or of arrays.

    A list of arrays may be several inputs as well as the rows of one: several where each is as long
    as what else there is, and they are fewer.

    Raises:
      ValueError: lists of unequal length.

    Example:
      >>> rows, labels = listed(([np.ones(3), np.ones(3)], [0, 1]), ("inputs", "targets"))
      >>> rows.shape, labels.tolist()
      ((2, 3), [0, 1])
      >>> len(listed(([np.ones(3), np.ones(3)], [0, 1, 2]), ("inputs", "targets"))[0])
      2
    """
    each = [
        _array(part, name) if isinstance(part, list) and _scalars(part) else part
        for part, name in zip(data, names, strict=False)
    ]
    first = [next(iter(jax.tree.leaves(part)), None) for part in each]
    sizes = [
        len(part) if isinstance(part, list) else _length(leaf)
        for part, leaf in zip(each, first, strict=True)
    ]
    lengths = {_length(leaf) for leaf in jax.tree.leaves(each)}

    def is_rows(i: int, part: Any) -> bool:
        if not isinstance(part, list) or not part or not all(map(_is_array, part)):
            return False
        several = len(lengths) == 1 and max(lengths) > len(part)
        alike = len({np.shape(row) for row in part}) == 1
        return alike and not several and sizes[i] in sizes[:i] + sizes[i + 1 :]

    return tuple(
        _array(part, names[i]) if is_rows(i, part) else part for i, part in enumerate(each)
    )


def _is_array(x: Any) -> bool:
    key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return hasattr(x, "__array__") and not key


def _scalars(part: list[Any]) -> bool:
    """Whether there are numbers alone in it, and in the lists that are in it."""
    return all(
        isinstance(x, complex | float | int | str) or (_is_array(x) and np.ndim(x) == 0)
        for x in jax.tree.leaves(part)
    )


def _length(leaf: Any) -> int:
    shape = np.shape(leaf) if _is_array(leaf) else ()
    return shape[0] if shape else -1


def _array(part: list[Any], name: str) -> Any:
    try:
        return np.asarray(part)
    except ValueError:
        raise ValueError(f"{name} must be an array, got lists of unequal length") from None


def parts_of(data: tuple[Any, ...], names: tuple[str, ...]) -> dict[str, Any]:
    """The leaves of a tuple's parts by the names of the parts, and their paths within."""
    return {
        "/".join([name, *([trees.path_string(path)] if path else [])]): leaf
        for name, part in zip(names, data, strict=False)
        for path, leaf in jax.tree_util.tree_flatten_with_path(part)[0]
    }


def array(leaf: Any, name: str) -> Any:
    """`leaf` as an array of NumPy's or JAX's, with an axis of examples.

    Anything that NumPy takes for an array of numbers is one: a DataFrame, a tensor of another
    library. Its dtype becomes the one that JAX would give it, quietly, where that has the numbers.

    Raises:
      TypeError: it is no array, or holds other than numbers.
      ValueError: values are masked, or too large.

    Example:
      >>> array(np.array([1, 2**40]), "targets")
      Traceback (most recent call last):
        ...
      ValueError: targets must fit in int32, got 1099511627776: set jax_enable_x64, or use less
    """
    if isinstance(leaf, jax.Array):
        if leaf.ndim == 0:
            raise TypeError(f"{name} must be an array with an axis of examples, got a scalar")
        return leaf
    if isinstance(leaf, np.ma.MaskedArray):
        if np.ma.is_masked(leaf):
            raise ValueError(f"{name} must not be masked: give weights of zero instead")
        leaf = leaf.data
    if not hasattr(leaf, "__array__") or np.ndim(leaf) == 0:
        raise TypeError(
            f"{name} must be an array with an axis of examples, got {type(leaf).__name__}"
        )
    found = np.asarray(leaf)
    if not (jnp.issubdtype(found.dtype, jnp.number) or found.dtype == bool):
        raise TypeError(f"{name} must hold numbers, got dtype {found.dtype}")
    return _narrowed(found, name)


def _narrowed(found: Any, name: str) -> Any:
    """In the machine's byte order, and in a dtype that JAX has."""
    dtype = dtype_in_jax(found, name)
    return np.asarray(found, dtype) if dtype != found.dtype else found


def first_nonfinite(leaf: Any, weights: Any = None) -> list[int] | None:
    """Where the first number is that is infinite or NaN, or `None`. A row may hold anything, as
    padding does, whose `weights`, a tree of arrays, are all zero.

    Example:
      >>> first_nonfinite(np.array([0.0, np.nan])), first_nonfinite(np.ones(2))
      ([1], None)
      >>> first_nonfinite(np.array([0.0, np.nan]), np.array([1, 0]))
    """
    if not trees.is_float(leaf):
        return None
    library: Any = jnp if isinstance(leaf, jax.Array) else np  # where it lies
    if library.isfinite(leaf).all():
        return None
    wrong = ~np.isfinite(np.asarray(leaf))
    if jax.tree.leaves(weights):
        each = [np.asarray(w).reshape(len(w), -1) for w in jax.tree.leaves(weights)]
        counts = np.any([(w != 0).any(1) for w in each], axis=0)
        wrong &= counts.reshape(-1, *(1,) * (wrong.ndim - 1))
    return [int(i) for i in np.argwhere(wrong)[0]] if wrong.any() else None
