"""Layers that spoil one number on demand: what `tests/test_nonfinite_plants.py` plants."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import funprop as fp
from funprop.layer import leaf_of
from funprop.trees import path_string

KINDS = ("activation", "residual", "cotangent", "gradient")


class Planted(NamedTuple):
    """Beside a leaf's params, which of `KINDS` it spoils, counted from one; zero: none."""

    kind: Any
    own: Any


def plantable(leaf: fp.Layer) -> fp.Layer:
    """`leaf`, which makes a NaN where its params say so: the last number of one array."""

    def init(key, x):
        return Planted(jnp.zeros(()), leaf.init(key, x))

    def forward(params, x, key=None):
        y, kept = leaf.forward(params.own, x, key)
        return spoilt(y, params.kind == 1), spoilt(kept, params.kind == 2)

    def backward(params, kept, dy):
        dparams, dx = leaf.backward(params.own, kept, dy)
        dx = spoilt(dx, params.kind == 3)
        return Planted(jnp.zeros(()), spoilt(dparams, params.kind == 4)), dx

    return leaf_of(leaf, init=init, forward=forward, backward=backward, paramless=False)


def planted(params: Any, where: str, kind: str) -> Any:
    """`params` of a model `plantable_everywhere` with one plant; `deep[2]/gelu`: in one copy."""
    number = float(1 + KINDS.index(kind))
    copies = [int(copy) for copy in re.findall(r"\[(\d+)\]", where)]
    wanted = re.sub(r"\[\d+\]", "", where)
    found = []

    def one(path: Any, leaf: Any) -> Any:
        name = path_string(path)
        if f"/{name}".endswith(f"/{wanted}/kind"):
            found.append(name)
            return leaf.at[tuple(copies)].set(number)
        return leaf

    params = jax.tree_util.tree_map_with_path(one, params)
    assert len(found) == 1, (where, found)
    return params


def spoilt(tree: Any, now: Any) -> Any:
    """`tree` with a NaN at the end of its first array of floats, where `now`."""
    leaves, structure = jax.tree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            flat = leaf.reshape(-1)
            flat = flat.at[-1].set(jnp.where(now, jnp.nan, flat[-1]))
            leaves[i] = flat.reshape(leaf.shape)
            break
    return structure.unflatten(leaves)


def plantable_everywhere(model: fp.Layer) -> fp.Layer:
    """`model` with each of its leaves `plantable`; below what shares params, the node itself."""
    if not model.children or model.shares:
        return plantable(model)
    return model.rebuild(*map(plantable_everywhere, model.children))
