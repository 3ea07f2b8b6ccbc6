"""Recomputing instead of keeping."""

from __future__ import annotations

import functools
from operator import getitem
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.decoding import through
from funprop.layer import Layer, Recorded, check_layer, leaf_of, recorded
from funprop.maps import around
from funprop.params.selection import Pattern, Place, map_places, places, within
from funprop.residuals import Saved, of_children, only

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    first = map_places(chosen, layer, _saving)
    again = map_places(chosen, layer, _replaying)

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, residuals = first.forward(params, x, key)
        # What was recorded stands behind, and there alone.
        saved = _without_records(only(part, Saved) for part in of_children(layer, residuals))
        kept, outputs = _opened(saved, chosen)
        return y, (*kept, outputs, x, key, recorded(residuals))

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        *kept, outputs, x, key, _ = residuals
        # Without the barrier XLA sees the same computation twice, merges it, and keeps everything.
        params, x, dy = jax.lax.optimization_barrier((params, x, dy))
        saved = {at: Saved(y, functools.reduce(getitem, at, kept)) for at, y in outputs.items()}
        params = _paired(layer, params, saved)
        _, residuals = again.forward(params, x, key)
        return again.backward(params, residuals, dy)

    return around(
        layer,
        lambda layer: _remat(layer, chosen),
        forward=forward,
        backward=backward,
        decoding=through(layer),
    )


class _Paired(NamedTuple):
    """The params of a chosen part, and what its forward pass gave already."""

    params: Any
    saved: Saved


def _saving(part: Layer) -> Layer:
    """`part` with all that its forward gives as its residuals."""

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, Saved]:
        y, residuals = part.forward(params, x, key)
        return y, Saved(y, residuals)

    return leaf_of(part, forward=forward)


def _replaying(part: Layer) -> Layer:
    """`part`, whose forward gives what was saved; where nothing was, it runs again."""

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        saved = isinstance(params, _Paired)
        return params.saved if saved else part.forward(params, x, key)

    def backward(params: Any, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        own = params.params if isinstance(params, _Paired) else params
        return part.backward(own, residuals, dy)

    return leaf_of(part, forward=forward, backward=backward)


def _without_records(parts: Iterable[PyTree]) -> tuple[PyTree, ...]:
    def bare(node: Any) -> Any:
        return None if is_record(node) else node

    def is_record(node: Any) -> bool:
        return isinstance(node, Recorded)

    return jax.tree.map(bare, tuple(parts), is_leaf=is_record)


def _opened(
    kept: Any, chosen: frozenset[Place], at: Place = ()
) -> tuple[PyTree, dict[Place, PyTree]]:
    """Residuals in which those of the chosen parts are as the parts keep them, and the outputs of
    these, by their places. What another `remat`, around this one, keeps is left for it."""
    if isinstance(kept, Saved):
        return (kept.residuals, {at: kept.y}) if at in chosen else (kept, {})
    if not within(at, chosen) or not isinstance(kept, tuple):
        return kept, {}
    parts = [_opened(part, chosen, (*at, i)) for i, part in enumerate(kept)]
    outputs = {place: y for _, inside in parts for place, y in inside.items()}
    return tuple(part for part, _ in parts), outputs


def _paired(layer: Layer, params: PyTree, saved: dict[Place, Saved], at: Place = ()) -> PyTree:
    """`params` with what was saved beside those that it belongs to."""
    if at in saved:
        return _Paired(params, saved[at])
    if not within(at, frozenset(saved)) or not layer.children:
        return params
    if layer.shares and not layer.hands_on:  # who knows where in those of its child they are?
        return params
    first, *others = zip(layer.children, layer.split(params), strict=True)
    parts = [_paired(*first, saved, (*at, 0))]
    for i, other in enumerate(others, start=1):  # of a flat node they have no place for it
        parts.append(other[1] if layer.flat else _paired(*other, saved, (*at, i)))
    return layer.join(params, parts)
