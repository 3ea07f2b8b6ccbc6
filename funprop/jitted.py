"""A compiled function of something and a batch, that looks at the batch before JAX converts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from funprop.checks import check_numbers
from funprop.trees import path_string
from funprop.values import dtype_in_jax


class Jitted:
    """`jax.jit(function, ...)` with all that it can (`lower`, `trace`, ...), whose second argument
    is a batch.

    Raises:
      ValueError: an integer in the batch would be another one in the dtype that JAX gives it.
      TypeError: a leaf holds no numbers.
    """

    first = "params"  # what the first argument is called

    def __init__(self, function: Callable[..., Any], **how: Any) -> None:
        self.jitted = jax.jit(function, **how)

    def __call__(self, *args: Any, **named: Any) -> Any:
        batch = args[1] if len(args) > 1 else named.get("batch")
        check_integers(batch)
        try:
            return self.jitted(*args, **named)
        except (TypeError, OverflowError):  # of a page, where a leaf is nothing that JAX takes
            check_numbers(self.first, args[0] if args else named.get(self.first))
            check_numbers("batch", batch)
            raise

    def __getattr__(self, name: str) -> Any:
        if name == "jitted":  # not there yet, as while it is copied
            raise AttributeError(name)
        return getattr(self.jitted, name)


def check_integers(batch: Any, name: str = "batch") -> None:
    """Raise where NumPy's integers do not fit in the 32 bits that JAX gives them.

    On its way into a compiled function JAX cuts an `int64` to its lower 32 bits without a word: a
    label of 2^32 + 1 is class 1 then. Only arrays of 64-bit integers are looked into.

    Raises:
      ValueError: one does not fit; names its leaf.

    Example:
      >>> check_integers((np.ones(2), np.array([1, 2**32 + 1])))
      Traceback (most recent call last):
        ...
      ValueError: batch/1 must fit in int32, got 4294967297: set jax_enable_x64, or use less
    """
    if not any(map(_is_wide, jax.tree.leaves(batch))):
        return
    if jax.dtypes.canonicalize_dtype(np.int64) == np.int64:  # 64 bits are on
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if _is_wide(leaf):
            dtype_in_jax(leaf, "/".join(filter(None, (name, path_string(path)))))


def _is_wide(leaf: Any) -> bool:
    return (
        isinstance(leaf, np.ndarray | np.generic)
        and leaf.dtype.kind in "iu"
        and leaf.dtype.itemsize == 8
    )
