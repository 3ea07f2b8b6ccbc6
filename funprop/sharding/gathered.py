"""Params gathered layer by layer, just before they are used."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding

from funprop.arguments import require_mesh
from funprop.decoding import through
from funprop.layer import Layer, check_layer
from funprop.maps import map_nodes
from funprop.sharding.ready import data_parallel_rules
from funprop.sharding.rules import Rules, check_rules, chosen_by
from funprop.trees import path_string

if TYPE_CHECKING:
    from funprop.typing import PyTree


def gathered(model: Layer, mesh: Mesh, rules: Rules | None = None) -> Layer:
    """The same layer, telling XLA to gather each leaf's params where they are used.

    Wanted with `fsdp_rules`. Left alone, XLA may move activations to where the parts of a weight
    lie, and sum over devices behind each product. Gathered, a weight is whole for as long as its
    layer runs: in a loop over layers, one layer's at a time. As residuals hold no params, backward
    gathers them again, and nothing of them is kept in between.

    Args:
      model: any layer, a whole objective too.
      mesh: that of `shard`.
      rules: how params lie while they are used, as rules see those of *one* layer under `repeat`:
        whole if not given, by `tensor_parallel_rules()` where these shard along another axis.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = gathered(fp.serial(fp.dense(4), fp.tanh()), fp.make_mesh(data=1))
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> model.forward(params, jnp.ones((3, 5)))[0].shape
      (3, 4)
    """
    check_layer("model", model)
    require_mesh(mesh)
    if rules is not None:
        check_rules(rules)
    choose = chosen_by(data_parallel_rules() if rules is None else rules)

    def gather_leaf(path: str, node: Layer) -> Layer:
        if node.children:
            return node

        def gather(inner: Any, leaf: Any) -> Any:
            name = "/".join(part for part in (path, path_string(inner)) if part)
            placed = NamedSharding(mesh, choose(name, leaf))
            return jax.lax.with_sharding_constraint(leaf, placed)

        return _leaf(node, lambda params: jax.tree_util.tree_map_with_path(gather, params))

    return map_nodes(gather_leaf, model)


def _leaf(leaf: Layer, gather: Any) -> Layer:
    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return leaf.forward(gather(params), x, key)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return leaf.backward(gather(params), residuals, dy)

    return dataclasses.replace(
        leaf, forward=forward, backward=backward, rebuild=None, decoding=through(leaf, gather)
    )
