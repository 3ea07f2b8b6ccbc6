"""Is what was given of the kind that was meant? What makers in every room ask of their arguments;
each a sentence where it is not, of one line whatever was given. What only steps and gradients ask
is in arguments.py."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funprop.trees import path_string, spec_string
from funprop.values import short

if TYPE_CHECKING:
    from funprop.typing import PyTree


def described(given: Any) -> str:
    """What something is, in a word or two, for an error message.

    Example:
      >>> described(jnp.ones(3)), described(dict), described("adam")
      ('float32[3]', 'the class dict', "'adam'")
    """
    if isinstance(given, type):
        return f"the class {given.__name__}"
    if isinstance(given, (str, bool, int, float, complex)) or given is None:
        return short(given)
    if hasattr(given, "dtype") and hasattr(given, "shape"):
        return spec_string(given)
    if inspect.isfunction(given):
        return f"the function {given.__name__}"
    return type(given).__name__


def check_function(name: str, given: Any, wanted: str) -> None:
    """Raise a `TypeError` where what was given cannot be called, as `wanted` says."""
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"{name} must be a function {wanted}, got {described(given)}")


def check_string(name: str, given: Any) -> None:
    """Raise a `TypeError` where no string was given."""
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a string, got {described(given)}")


def check_floating_dtype(name: str, given: Any) -> None:
    """Raise a `TypeError` where no floating dtype was given: JAX takes `None` and arrays for one.

    Example:
      >>> check_floating_dtype("compute_dtype", "bfloat16")
      >>> check_floating_dtype("compute_dtype", None)
      Traceback (most recent call last):
      TypeError: compute_dtype must be a floating dtype, got None
    """
    value = given is None or isinstance(given, jax.Array | np.ndarray | np.generic)
    try:
        with warnings.catch_warnings():  # of NumPy's old names for dtypes
            warnings.simplefilter("ignore")
            dtype = None if value else jnp.dtype(given)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = described(given) if dtype is None else dtype.name
        raise TypeError(f"{name} must be a floating dtype, got {got}")


def check_key(given: Any) -> None:
    """Raise a `TypeError` where what was given is neither one random key nor `None`."""
    if given is not None:
        require_key(given)


def require_key(given: Any) -> None:
    """Raise a `TypeError` where what was given is not one random key."""
    dtype, shape = getattr(given, "dtype", None), getattr(given, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if typed and shape == ():
        return
    if dtype == jnp.uint32 and len(shape or ()) == 1:  # as `jax.random.PRNGKey` makes it
        return
    raise TypeError(
        f"key must be one random key, as jax.random.key(0) makes it, got {described(given)}"
    )


def is_number(leaf: Any) -> bool:
    """Whether JAX takes it for an array: a number of Python's, or an array of numbers or keys."""
    if isinstance(leaf, int) and not isinstance(leaf, bool):  # within what JAX has
        return bool(abs(leaf) <= jnp.iinfo(jax.dtypes.canonicalize_dtype(int)).max)
    if isinstance(leaf, bool | float | complex):
        return True
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):  # tracers are `jax.Array`s
        return hasattr(leaf, "__jax_array__")
    return (
        isinstance(leaf, jax.Array) or leaf.dtype == bool or jnp.issubdtype(leaf.dtype, np.number)
    )


def is_scalar(leaf: Any) -> bool:
    """Of what `is_number`, whether it is one number, and no random key."""
    key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return jnp.shape(leaf) == () and not key


def check_numbers(name: str, tree: PyTree) -> None:
    """Raise a `TypeError` where a leaf is nothing that JAX computes with: a string, a function, an
    array of objects, the specification of an array.

    Example:
      >>> check_numbers("batch", {"x": np.array(["a"])})
      Traceback (most recent call last):
      TypeError: batch/x must hold numbers, got <U1[1]
    """
    if all(map(is_number, jax.tree.leaves(tree))):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_number(leaf):
            where = "/".join(filter(None, (name, path_string(path))))
            raise TypeError(f"{where} must hold numbers, got {described(leaf)}")


def check_arrays(name: str, tree: PyTree) -> None:
    """Raise a `TypeError` where a leaf is no array, nor the specification of one.

    Example:
      >>> check_arrays("params", {"w": 1.0})
      Traceback (most recent call last):
      TypeError: params/w must be an array, got 1.0
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        if not array or (isinstance(leaf, np.ndarray) and not is_number(leaf)):
            where = "/".join(filter(None, (name, path_string(path))))
            raise TypeError(f"{where} must be an array, got {described(leaf)}")


def check_known(name: str, tree: PyTree) -> None:
    """Raise a `TypeError` where the numbers of a leaf are not known yet, as inside `jax.jit`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
            where = "/".join(filter(None, (name, path_string(path))))
            why = "a specification" if isinstance(leaf, jax.ShapeDtypeStruct) else "a traced array"
            raise TypeError(f"{where} must hold known numbers, got {why}; call it outside jit")


def to_path(name: str, given: Any) -> Path:
    """The path that is given, or a `TypeError`."""
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {type(given).__name__}")
    return Path(given)
