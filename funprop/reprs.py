"""What a state or a gradient is, in a line: a terminal is no place for ten thousand numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def of_fields(value: Any) -> str:
    """A NamedTuple by its fields, arrays summed up.

    Example:
      >>> from typing import NamedTuple
      >>> import jax.numpy as jnp
      >>> class State(NamedTuple):
      ...     params: dict
      ...     count: jax.Array
      >>> of_fields(State({"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, jnp.array(7)))
      'State(params=<2 arrays, 16 numbers, float32>, count=7)'
    """
    fields = ", ".join(f"{name}={short(getattr(value, name))}" for name in value._fields)
    return f"{type(value).__name__}({fields})"


def short(value: Any) -> str:
    """A value in a few words: a number as it is, an array by its shape, a tree by its size.

    Example:
      >>> import jax.numpy as jnp
      >>> short(jnp.ones(())), short(jnp.ones((2, 3))), short(None)
      ('1', 'float32[2,3]', 'None')
    """
    if hasattr(value, "_fields") and type(value).__repr__.__module__ != "collections":
        return repr(value)  # one of ours
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0] is value:
        return _leaf(value)
    if not leaves:
        return "None" if value is None else "()"
    if isinstance(value, dict) and all(np.shape(leaf) == () for leaf in leaves):  # metrics
        return "{" + ", ".join(f"{key}: {short(part)}" for key, part in value.items()) + "}"
    sizes = [int(np.prod(np.shape(leaf))) for leaf in leaves]
    dtypes = sorted({str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves})
    arrays = "1 array" if len(leaves) == 1 else f"{len(leaves)} arrays"
    return f"<{arrays}, {sum(sizes):,} numbers, {', '.join(dtypes)}>"


def _leaf(leaf: Any) -> str:
    """An array by dtype and shape; one number, whose value is known and there, as it is."""
    if not hasattr(leaf, "dtype"):
        return repr(leaf)
    spec = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key" if not leaf.shape else spec
    gone = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    if gone and leaf.is_deleted():
        return f"{spec}, given away"
    if leaf.shape or isinstance(leaf, (Tracer, jax.ShapeDtypeStruct)):
        return spec
    return f"{np.asarray(leaf).item():.6g}" if leaf.dtype.kind == "f" else str(np.asarray(leaf))
