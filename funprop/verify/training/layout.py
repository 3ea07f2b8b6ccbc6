"""What is where in a state that nobody knows: the params, the optimizer's moments, the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.params.frozen import trained
from funprop.params.roles import is_statistic
from funprop.params.selection import where
from funprop.trees import is_float, path_string

PARAMS = "params"  # as most libraries call them


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array; functions, strings and numbers of Python are no part of what a
    step computes."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and (
        not isinstance(leaf, np.ndarray) or leaf.dtype != object
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """A state taken apart: its arrays in a row, and what each is.

    Attributes:
      treedef: of the state.
      static: all leaves, `None` in the place of arrays.
      places: of the arrays among all leaves.
      paths: of the arrays.
      params: which of the arrays are params, of floating dtype.
      frozen: which of these must not move.
    """

    treedef: Any
    static: tuple[Any, ...]
    places: tuple[int, ...]
    paths: tuple[str, ...]
    params: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()

    def arrays(self, state: Any) -> list[Any]:
        """The arrays of a state of this structure."""
        leaves = self.treedef.flatten_up_to(state)
        return [leaves[place] for place in self.places]

    def state(self, arrays: Sequence[Any]) -> Any:
        """The state of these arrays."""
        leaves = list(self.static)
        for place, array in zip(self.places, arrays, strict=True):
            leaves[place] = array
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def trained(self) -> tuple[int, ...]:
        """The params that should move."""
        return tuple(i for i in self.params if i not in self.frozen)

    def moments(self, arrays: Sequence[Any]) -> tuple[int, ...]:
        """Arrays beside the params that are of some param's shape: moments, averages, sums of
        gradients."""
        shapes = {arrays[i].shape for i in self.params}
        rest = (i for i in range(len(arrays)) if i not in self.params)
        return tuple(
            i for i in rest if is_float(arrays[i]) and arrays[i].shape in shapes and arrays[i].ndim
        )


def of_tree(tree: Any) -> Layout:
    """Any tree taken apart; nothing in it is params."""
    found, treedef = jax.tree_util.tree_flatten_with_path(tree)
    places = tuple(n for n, (_, leaf) in enumerate(found) if is_array(leaf))
    static = tuple(None if is_array(leaf) else leaf for _, leaf in found)
    return Layout(treedef, static, places, tuple(path_string(found[n][0]) for n in places))


def of_state(state: Any, params: Callable[[Any], Any] | None, frozen: Any) -> Layout:
    """A state taken apart, the params found in it.

    Args:
      state: any pytree.
      params: `state -> params`; `None` for where they usually are.
      frozen: a pattern of names, several, a tree like params of booleans, or a function of params
        that gives one.

    Raises:
      TypeError: `params` gives something that is not in the state.
      ValueError: there are no params, or `frozen` means none.
    """
    layout = of_tree(state)
    arrays = layout.arrays(state)
    tree = params_of(state, params)
    by_id = {id(leaf): i for i, leaf in enumerate(arrays)}
    given = jax.tree.leaves(tree)
    carried = _statistics(tree)
    chosen = [x for x in given if is_array(x) and is_float(x) and id(x) not in carried]
    if any(id(leaf) not in by_id for leaf in chosen):
        raise TypeError("params must choose leaves of the state, got arrays that it does not hold")
    if not chosen:
        raise ValueError("params must hold floating arrays, got none: say params=, state -> params")
    meant = _meant(frozen, tree) | (_untrained(tree) - carried)
    return dataclasses.replace(
        layout,
        params=tuple(by_id[id(leaf)] for leaf in chosen),
        frozen=tuple(by_id[id(x)] for x in chosen if id(x) in meant),
    )


def params_of(state: Any, params: Callable[[Any], Any] | None) -> Any:
    """The params of a state: what `params` says, or its `params` by name, or the first of a tuple,
    or all of it."""
    if params is not None:
        return params(state)
    if isinstance(state, Mapping) and PARAMS in state:
        return state[PARAMS]
    if hasattr(state, PARAMS):
        return getattr(state, PARAMS)
    plain = isinstance(state, (tuple, list)) and not hasattr(state, "_fields")
    return state[0] if plain and len(state) else state


def _meant(frozen: Any, tree: Any) -> set[int]:
    """The ids of the leaves that are said to be frozen."""
    if frozen is None:
        return set()
    if isinstance(frozen, str) or (
        isinstance(frozen, tuple) and all(isinstance(part, str) for part in frozen)
    ):
        mask = where(frozen, tree)
    else:
        mask = frozen(tree) if callable(frozen) else frozen
    wide = jax.tree.map(lambda said, part: jax.tree.map(lambda _: said, part), mask, tree)
    pairs = zip(jax.tree.leaves(wide), jax.tree.leaves(tree), strict=True)
    return {id(leaf) for said, leaf in pairs if said is True or said is np.True_}


def _untrained(tree: Any) -> set[int]:
    """The ids of what stands in `Frozen`, or is declared a statistic."""
    kept = {id(leaf) for leaf in jax.tree.leaves(trained(tree))}
    return {id(leaf) for leaf in jax.tree.leaves(tree)} - kept


def _statistics(tree: Any) -> set[int]:
    """The ids of what is declared a statistic: carried, not trained."""
    untrained = _untrained(tree)
    if not untrained:
        return set()
    pairs = zip(jax.tree.leaves(is_statistic(tree)), jax.tree.leaves(tree), strict=True)
    return {id(leaf) for said, leaf in pairs if said and id(leaf) in untrained}


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def bits(leaf: Any) -> np.ndarray:
    """A leaf as NumPy's array, the same bits; of a random key, its data."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def wide(leaf: Any) -> np.ndarray:
    """A leaf in float64."""
    return bits(leaf).astype(np.float64)


def same_bits(a: Any, b: Any) -> bool:
    """Whether two leaves are the same, NaN for NaN."""
    a, b = bits(a), bits(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
