"""Recomputing instead of keeping."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax

from funprop.decoding import through
from funprop.layer import Layer, Recorded, check_layer, leaf_of, recorded
from funprop.params.selection import Pattern, Place, map_places, places

if TYPE_CHECKING:
    from funprop.typing import PyTree


def remat(layer: Layer, keep: Pattern | None = None) -> Layer:
    """The same layer keeping only its input; its forward is run again in the backward pass.

    Costs one more forward and saves what the layer would have kept; wrap a block, not a leaf. Parts
    that are dear to run and cheap to keep (attention, say) are kept by their path: their output and
    residuals stay, and they are not run again. (What an `autodiff` layer keeps is chosen by its own
    `policy`.)
    Source: Chen et al., arXiv:1604.06174 (gradient checkpointing).

    Args:
      layer: what is recomputed.
      keep: a pattern for paths inside `layer`, as `dense_1` or `*/attention`, or several; `*`
        stands for anything.

    Raises:
      ValueError: `keep` matches no part, or one whose params are shared.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> block = fp.serial(fp.gelu(), fp.tanh(), fp.gelu())
      >>> kept = remat(block).forward(((), (), ()), jnp.zeros(2))[1]
      >>> len(jax.tree.leaves(kept))  # the input
      1
      >>> kept = remat(block, keep="tanh").forward(((), (), ()), jnp.zeros(2))[1]
      >>> len(jax.tree.leaves(kept))  # and the output of tanh, which is its residual too
      3
    """
    check_layer("layer", layer)
    return _remat(layer, frozenset() if keep is None else places(keep, layer, into_shared=False))


def _remat(layer: Layer, chosen: frozenset[Place]) -> Layer:
    first = map_places(chosen, layer, functools.partial(_saving, chosen=chosen))
    again = map_places(chosen, layer, _replaying)

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, residuals = first.forward(params, x, key)
        saved = _saved(residuals[: len(layer.children)], chosen) if layer.children else ()
        return y, (*saved, x, key, recorded(residuals))

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        *saved, x, key, _ = residuals
        # Without the barrier XLA sees the same computation twice, merges it, and keeps everything.
        params, x, dy = jax.lax.optimization_barrier((params, x, dy))
        params = _with_saved(layer, params, saved)
        _, residuals = again.forward(params, x, key)
        return again.backward(params, residuals, dy)

    def rebuild(*children: Layer) -> Layer:
        return _remat(layer.rebuild(*children), chosen)

    return dataclasses.replace(
        layer,
        forward=forward,
        backward=backward,
        rebuild=rebuild if layer.children else None,
        decoding=through(layer),
    )


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["y", "residuals"], meta_fields=["chosen"]
)
@dataclasses.dataclass(frozen=True)
class _Saved:
    """What the forward pass of a chosen part gave, and with which others: one may be in another."""

    y: Any
    residuals: Any
    chosen: frozenset[Place]


def _saving(part: Layer, chosen: frozenset[Place]) -> Layer:
    """`part` with all that its forward gives as its residuals."""

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, _Saved]:
        y, residuals = part.forward(params, x, key)
        return y, _Saved(y, residuals, chosen)

    return leaf_of(part, forward=forward)


def _replaying(part: Layer) -> Layer:
    """`part` with `(params, _Saved)` for params: its forward gives what was saved."""

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return params[1].y, params[1].residuals

    def backward(params: Any, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return part.backward(params[0], residuals, dy)

    return leaf_of(part, forward=forward, backward=backward)


def _saved(residuals: Any, chosen: frozenset[Place]) -> PyTree:
    """What was saved, in its place; `None` in place of a child that has nothing saved inside.

    Without what was recorded, which stands among the node's own residuals once already.
    """

    def whole(node: Any) -> bool:
        return isinstance(node, Recorded) or (isinstance(node, _Saved) and node.chosen == chosen)

    def bare(node: Any) -> Any:
        if not isinstance(node, _Saved):
            return None
        inside = jax.tree.map(kept, node.residuals, is_leaf=lambda r: isinstance(r, Recorded))
        return dataclasses.replace(node, residuals=inside)

    def kept(node: Any) -> Any:
        return None if isinstance(node, Recorded) else node

    saved = jax.tree.map(bare, residuals, is_leaf=whole)
    return tuple(part if jax.tree.leaves(part) else None for part in saved)


def _with_saved(layer: Layer, params: PyTree, saved: Any) -> PyTree:
    """`params` with what was saved beside the params that it belongs to, by the mirror law."""
    if isinstance(saved, _Saved):
        return params, saved
    if not jax.tree.leaves(saved) or not layer.children or (layer.shares and not layer.hands_on):
        return params
    # A node's own stand behind.
    children = zip(layer.children, layer.split(params), saved, strict=False)
    return layer.join(params, [_with_saved(child, p, s) for child, p, s in children])
