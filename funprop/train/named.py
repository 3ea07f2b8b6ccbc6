"""The leaves of a tree under the names that people write, and what can be stored of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.trees import path_string

if TYPE_CHECKING:
    from funprop.typing import PyTree


def named(tree: PyTree, alone: str = "state") -> dict[str, Any]:
    """Every leaf under its name; where two have one, the later ones are numbered.

    Args:
      tree: of anything.
      alone: the name of a leaf that is all there is.

    Example:
      >>> list(named({"a": {"b": 1}, "a/b": 2})), list(named(3))
      (['a/b', 'a/b~2'], ['state'])
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = first = path_string(path) or alone
        again = 1
        while name in leaves:
            again += 1
            name = f"{first}~{again}"
        leaves[name] = leaf
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether it holds random keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key)


def implementation(key: Any) -> Any:
    """What the bits of a random key are for; they alone do not tell it."""
    return jax.random.key_impl(jnp.empty((), key.dtype))


def bits(leaf: Any) -> Any:
    """What is stored of a leaf: of random keys their bits, of Python's numbers an array."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else _native(np.asarray(leaf))


def _native(array: np.ndarray) -> np.ndarray:
    """In the machine's order of bytes, as it will be read."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def bits_spec(leaf: Any) -> jax.ShapeDtypeStruct:
    """The spec of what is stored of a leaf, or of the spec of one."""
    if is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    array = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    array = _native(array) if isinstance(array, np.ndarray) else array
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def as_leaf(like: Any, stored: Any) -> Any:
    """What was stored, of the kind that `like` is: JAX's array or NumPy's, a key, a number; split
    over the same devices."""
    if is_key(like):
        stored = jax.random.wrap_key_data(jnp.asarray(stored), impl=implementation(like))
    elif isinstance(like, np.ndarray):
        return np.asarray(stored, like.dtype)
    elif isinstance(like, np.generic):
        return np.asarray(stored)[()]
    elif not hasattr(like, "dtype"):
        return type(like)(np.asarray(stored).item())
    value = jnp.asarray(stored)
    sharding = getattr(like, "sharding", None)
    split = isinstance(sharding, jax.sharding.Sharding) and len(sharding.device_set) > 1
    return jax.device_put(value, sharding) if split else value
