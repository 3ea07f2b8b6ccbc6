"""The gradient of each example alone, of one leaf of a model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.layer import Layer, leaf_of
from funprop.params.frozen import Frozen
from funprop.params.tapped import untap
from funprop.trees import Static, spec_string

if TYPE_CHECKING:
    from funprop.typing import PyTree

Leaf = Callable[[Any, Any, Any], tuple[Any, Any]]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["residuals", "x", "key"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Kept:
    """A layer's residuals with its input, to run it again on each row.

    Attributes:
      residuals: the layer's.
      x: its input; for what is among the residuals too, its place there.
      key: as the layer was given it, if it draws from it.
    """

    residuals: Any
    x: Any
    key: Any

    def rows(self) -> PyTree:
        """The input, each leaf with an axis of examples, and one more behind it."""
        kept = jax.tree.leaves(self.residuals)
        x = jax.tree.map(
            lambda leaf: kept[leaf.value] if isinstance(leaf, Static) else leaf,
            self.x,
            is_leaf=lambda leaf: isinstance(leaf, Static),
        )
        for leaf in jax.tree.leaves(x):
            if not leaf.ndim:
                raise ValueError(f"x must have a first axis of examples, got {spec_string(leaf)}")
        return jax.tree.map(lambda leaf: leaf[:, None], x)


def keeping(leaf: Layer, backward: Leaf) -> Layer:
    """`leaf` with its input among its residuals, as far as it has params, and another backward."""

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, residuals = leaf.forward(params, x, key)
        if not is_trained(params):
            return y, residuals
        place = {id(kept): i for i, kept in enumerate(jax.tree.leaves(residuals))}
        beside = jax.tree.map(lambda a: Static(place[id(a)]) if id(a) in place else a, x)
        return y, Kept(residuals, beside, key if _draws(leaf, params, x, key) else None)

    return leaf_of(leaf, forward=forward, backward=backward)


def without_input(residuals: PyTree) -> PyTree:
    """`residuals` as the layers themselves keep them."""

    def is_kept(node: Any) -> bool:
        return isinstance(node, Kept)

    return jax.tree.map(lambda r: r.residuals if is_kept(r) else r, residuals, is_leaf=is_kept)


def is_trained(params: PyTree) -> bool:
    """Whether there is anything that has a gradient."""
    return bool(jax.tree.leaves(params)) and not isinstance(params, Frozen)


def gradients(leaf: Layer, params: PyTree, kept: Kept, dy: PyTree) -> PyTree:
    """The `dparams` of each example, along a new first axis.

    Each row is run again alone, all of them under `vmap`. Where noise was drawn for the whole batch
    a row alone would draw another; then backward is run on what forward kept, once for each
    example, with the cotangents of all others zero.
    """
    rows = kept.rows()
    n = len(jax.tree.leaves(rows)[0])

    def of_row(x: PyTree, dy: PyTree) -> PyTree:
        _, residuals = leaf.forward(params, x, None)
        return untap(leaf.backward(params, residuals, dy)[0])[0]

    def of_whole(i: Any) -> PyTree:
        alone = jax.tree.map(lambda d: jnp.where(is_at(i, d), d, 0), dy)  # others may be infinite
        return untap(leaf.backward(params, kept.residuals, alone)[0])[0]

    def is_at(i: Any, d: Any) -> Any:
        return (jnp.arange(n) == i).reshape(n, *(1,) * (d.ndim - 1))

    if kept.key is not None:
        return jax.lax.map(of_whole, jnp.arange(n))
    axes = jax.tree.map(lambda d: 0 if d.ndim else None, dy)  # the cotangent of a loss has none
    dy = jax.tree.map(lambda d: d[:, None] if d.ndim else d, dy)
    return jax.vmap(of_row, (0, axes))(rows, dy)


def _draws(leaf: Layer, params: PyTree, x: PyTree, key: Any) -> bool:
    """Whether the output of `leaf` depends on the key."""
    if key is None:
        return False
    traced = jax.make_jaxpr(lambda key: leaf.forward(params, x, key)[0])(key).jaxpr
    used = [atom for eqn in traced.eqns for atom in eqn.invars] + list(traced.outvars)
    return any(atom is traced.invars[0] for atom in used)
