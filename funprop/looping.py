"""Passes that hold a loop: called outside of `jax.jit`, and under `jax.shard_map`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, get_abstract_mesh

from funprop.checks import is_number

Pass = TypeVar("Pass", bound=Callable[..., Any])


def looping(*static: str) -> Callable[[Pass], Pass]:
    """Of a pass that holds a loop: compiled as a whole at its first call outside of `jax.jit`.

    There JAX compiles a loop by itself, and knows it again by the function that is its body alone:
    one that is made in each call is compiled in each call. Inside of a trace nothing is changed.

    Args:
      static: the names of arguments that are no arrays, and can be hashed.

    Example:
      >>> @looping("n")
      ... def power(x, n):
      ...     return jax.lax.fori_loop(0, n, lambda i, y: x * y, 1.0)
      >>> power(2.0, 3).item()
      8.0
    """

    def decorated(run: Pass) -> Pass:
        # Inlined, where a trace sees constants alone.
        compiled = jax.jit(run, static_argnames=static, inline=True)

        @functools.wraps(run)
        def call(*args: Any, **named: Any) -> Any:
            known = all(map(_is_known, jax.tree.leaves((args, named))))
            return (compiled if known else run)(*args, **named)

        return cast("Pass", call)

    return decorated


def varying(start: Any, *made_of: Any) -> Any:
    """What a loop starts from, for one whose turns use `made_of`: under `jax.shard_map` it has to
    vary along the axes of the mesh along which they do.

    Example:
      >>> varying(jnp.zeros(2), jnp.ones(3)).tolist()
      [0.0, 0.0]
    """
    if AxisType.Manual not in get_abstract_mesh().axis_types:
        return start
    arrays = jax.tree.leaves(made_of)

    def marked(leaf: Any) -> Any:
        # Zeros like another array vary as it does.
        return sum((jnp.zeros_like(other, leaf.dtype, ()) for other in arrays), leaf)

    return jax.tree.map(marked, start)


def _is_known(leaf: Any) -> bool:
    """Whether it is a number or an array, and no tracer; what is none of them, `run` refuses."""
    return is_number(leaf) and not isinstance(leaf, Tracer)
