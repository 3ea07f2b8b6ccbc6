"""What each param is for: a weight, a bias, a scale, a table or a statistic.

A layer says it itself, beside the class of its params, as `roles`: `{"w": "weight", "b": "bias"}`.
Two more say that something is not trained: what is `frozen`, and a statistic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import PyTree

UNTRAINED = ("frozen", "statistic")

# What others call theirs: Flax, Haiku, Equinox, PyTorch.
WELL_KNOWN = {
    **dict.fromkeys(("w", "weight", "weights", "kernel", "w_x", "w_h", "w_i"), "weight"),
    **dict.fromkeys(("b", "bias", "offset", "beta"), "bias"),
    **dict.fromkeys(("scale", "gamma"), "scale"),
    **dict.fromkeys(("table", "embedding", "embeddings"), "table"),
}


class Statistic(NamedTuple):
    """Numbers among params that are not trained but carried: of anybody's model.

    Put what Flax calls `batch_stats`, or Equinox and Haiku their state, into one; a loss function
    of `from_loss` is given it and returns the new ones.

    Attributes:
      statistic: any pytree.
    """

    statistic: Any

    roles = {"statistic": "statistic"}


def roles(params: PyTree) -> PyTree:
    """The role of every leaf, in a tree like `params`.

    What no layer has declared goes by the name that it has in other libraries (`kernel`, `bias`,
    `embedding`); what has none of these by its shape: a weight from two axes on, else a bias.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> params = fp.serial(fp.dense(4), fp.layer_norm()).init(jax.random.key(0), jnp.ones((3, 5)))
      >>> roles(params)
      Params(dense=DenseParams(w='weight', b='bias'), layer_norm=NormParams(scale='scale', \
bias='bias'))
    """

    def of_field(role: str | None, said: dict[str, str]) -> str | None:
        return None if role == "frozen" else role

    return by_field(params, of_field, _by_name)


def by_field(
    params: PyTree,
    of_field: Callable[[str | None, dict[str, str]], Any],
    of_leaf: Callable[[tuple[Any, ...], Any], Any],
) -> PyTree:
    """A tree like `params` of what is told of each leaf.

    Args:
      params: any pytree.
      of_field: `(role, roles of the node) -> told`, of all that is in a declared field; `None` to
        look inside it.
      of_leaf: `(path, leaf) -> told`, of what no class of params declares.
    """

    def of(path: tuple[Any, ...], node: Any) -> Any:
        said = declared(node)
        if said is None:
            return of_leaf(path, node)
        parts = []
        for field, part in zip(node._fields, node, strict=True):
            told = of_field(said.get(field), said)
            if told is None:
                parts.append(by_field(part, of_field, of_leaf))
            else:
                parts.append(jax.tree.map(lambda _, t=told: t, part))
        return node._make(parts)

    return jax.tree_util.tree_map_with_path(
        of, params, is_leaf=lambda node: declared(node) is not None
    )


def declared(node: Any) -> dict[str, str] | None:
    """The roles that the class of `node` says its fields have, if it does."""
    said = getattr(type(node), "roles", None)
    return said if isinstance(said, dict) and hasattr(node, "_fields") else None


def _by_name(path: tuple[Any, ...], leaf: Any) -> str:
    last = path[-1] if path else None
    role = WELL_KNOWN.get(str(getattr(last, "name", getattr(last, "key", ""))).lower())
    axes = len(getattr(leaf, "shape", ()))
    if role == "weight" and axes < 2:  # the scale of a normalisation, as Equinox calls it
        return "scale"
    return role or ("weight" if axes >= 2 else "bias")


def decayed(params: PyTree) -> PyTree:
    """Which params weight decay is for, as a mask of optax: weights and tables that are trained.

    Biases and scales are left out, of layers under `repeat` too, whose leaves are stacked.

    Example:
      >>> import jax.numpy as jnp, optax, funprop as fp
      >>> model = fp.repeat(fp.dense(5), 2)
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> decayed(params)
      DenseParams(w=True, b=False)
      >>> optimizer = optax.adamw(1e-3, mask=decayed)
    """
    trained = jax.tree.leaves(is_trained(params))
    found = jax.tree.leaves(roles(params))
    mask = [t and role in ("weight", "table") for t, role in zip(trained, found, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), mask)


def is_statistic(params: PyTree) -> PyTree:
    """Whether each leaf is a statistic, frozen or not; in a tree like `params`."""
    return jax.tree.map(lambda role: role == "statistic", roles(params))


def is_trained(params: PyTree) -> PyTree:
    """Whether each leaf is trained: neither frozen nor a statistic; in a tree like `params`."""

    def of_field(role: str | None, said: dict[str, str]) -> bool | None:
        return False if role in UNTRAINED else None

    return by_field(params, of_field, lambda path, leaf: True)
