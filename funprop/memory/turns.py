"""A `repeat` whose copies are rewritten in runs: some run again, some moved, some kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.keys import stacked_keys
from funprop.layer import Layer, leaf_of

if TYPE_CHECKING:
    from funprop.typing import PyTree

Rewrite = Callable[[Layer], Layer]


def by_turns(node: Layer, runs: Sequence[tuple[Rewrite, int]]) -> Layer:
    """The same `repeat`, its first copies under the first rewrite, and so on; the params are the
    same, stacked.

    Each run is a `lax.scan` that reads params where they lie and writes gradients where they shall
    be: params cut in runs would be copied.
    """
    (child,) = node.children
    n = node.copies or 1
    parts = [rewrite(child) for rewrite, _ in runs]
    ends = [0, *itertools.accumulate(count for _, count in runs)]
    bounds = list(itertools.pairwise(ends))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree, ...]]:
        keys = stacked_keys(key, n)
        residuals = []
        for part, (first, end) in zip(parts, bounds, strict=True):

            def one(x: PyTree, i: Any, part: Layer = part) -> tuple[PyTree, PyTree]:
                return part.forward(_at(params, i), x, None if keys is None else keys[i])

            x, kept = jax.lax.scan(one, x, jnp.arange(first, end))
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(params: PyTree, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        first = jax.tree.map(lambda leaf: leaf[0], residuals[0])
        specs = jax.eval_shape(parts[0].backward, _at(params, 0), first, dy)[0]
        dparams = jax.tree.map(lambda s: jnp.zeros((n, *s.shape), s.dtype), specs)
        each = zip(parts, bounds, residuals, strict=True)
        for part, (begin, end), kept in reversed(list(each)):

            def one(carry: Any, turn: Any, part: Layer = part) -> tuple[Any, None]:
                (i, kept), (dy, dparams) = turn, carry
                new, dx = part.backward(_at(params, i), kept, dy)
                dparams = jax.tree.map(lambda all_, leaf: all_.at[i].set(leaf), dparams, new)
                return (dx, dparams), None

            turns = jnp.arange(begin, end), kept
            (dy, dparams), _ = jax.lax.scan(one, (dy, dparams), turns, reverse=True)
        return dparams, dy

    return leaf_of(node, forward=forward, backward=backward)


def _at(params: PyTree, i: Any) -> PyTree:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), params)
