"""The cotangents that a layer's backward gives, each beside what it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import trees

if TYPE_CHECKING:
    from funprop.layer import Layer
    from funprop.typing import PyTree


def one_each(layer: Layer, specs: PyTree, cotangents: PyTree) -> list[Any]:
    """A cotangent for each leaf of `(params, x)`, `None` where there is none: `backward` may give
    one `None` for all that a part holds."""
    found: list[Any] = []

    def put(d: Any, part: PyTree) -> None:
        n = len(jax.tree.leaves(part))
        found.extend([None] * n if d is None else [d] * n)

    try:
        jax.tree.map(put, tuple(cotangents), specs, is_leaf=lambda d: d is None)
    except (TypeError, ValueError):
        got, want = (jax.tree.structure(tree) for tree in (tuple(cotangents), specs))
        raise TypeError(
            f"backward of {layer.name} must give (dparams, dx) as (params, x), {want}, got {got}"
        ) from None
    return found


def fitting(layer: Layer, path: Any, spec: Any, d: Any) -> Any:
    """`d` in the dtype of what it is the cotangent of."""
    if d is None:
        return None
    d = jnp.asarray(d)
    if d.shape != spec.shape:
        part = "/".join(filter(None, (("params", "x")[path[0].idx], trees.path_string(path[1:]))))
        raise TypeError(
            f"backward of {layer.name} must give a cotangent of shape {spec.shape} for {part}, "
            f"got {d.shape}"
        )
    return d.astype(spec.dtype)
