"""Parts of a model that are not trained."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from funprop.decoding import through
from funprop.intended import meant_through
from funprop.layer import Layer, leaf_of
from funprop.maps import map_layers
from funprop.params.frozen import Frozen, as_frozen, thawed
from funprop.params.selection import Pattern, Place, map_places, places, within
from funprop.quantities.curvature import output_of, with_output
from funprop.rewrites.copies import apart

if TYPE_CHECKING:
    from funprop.typing import PyTree


def freeze(model: Layer, where: Pattern) -> Layer:
    """The same model with params of some of its parts fixed, for fine-tuning.

    What is fixed is its params, statistics among them: with a key dropout draws in a frozen part as
    in training, but `batch_norm` takes the statistics that it has, and mixes no examples any more.

    A frozen part computes no gradient of its params, and below the lowest part that is trained no
    backward pass is computed at all: its result is not asked for, and XLA leaves it out. `step`
    keeps no optimizer state for frozen params.

    Args:
      model: any layer, a whole objective too.
      where: a pattern for the parts to freeze (see `fp.where`), as `*/norm`, or `blocks[:-2]` for
        all copies but the last two: these are apart then, as `blocks/copies_0_to_3`.

    Returns:
      A layer whose params have a `Frozen` at each of these parts. `frozen(model, where, params)`
      makes them of params that are there already.

    Raises:
      ValueError: no path matches, or one below a part that is frozen already; or a part is below a
        node that shares params (`reparam`).

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> model = freeze(fp.serial(fp.dense(4), fp.tanh(), fp.dense(2)), "dense_0")
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> y, kept = model.forward(params, jnp.ones((3, 5)))
      >>> dparams, dx = model.backward(params, kept, y)
      >>> dparams.dense_0, dparams.dense_1.w.shape
      (None, (4, 2))
    """
    model, _, where = apart(model, where)
    return map_places(places(where, model, into_shared=False), model, frozen_part)


def frozen_part(layer: Layer) -> Layer:
    """`layer` as one part that is not trained. Statistics are fixed too: what would take them from
    the batch takes those that it has."""
    if layer.paramless:
        return layer
    layer = map_layers(_at_rest, layer) if layer.mixes else layer

    def init(key: Any, x: PyTree) -> PyTree:
        return as_frozen(layer.init(key, x))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return layer.forward(thawed(params), x, key)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        dparams, dx = layer.backward(thawed(params), residuals, dy)
        return (None if isinstance(params, Frozen) else dparams), dx

    if (output := output_of(layer)) is not None:
        backward = with_output(backward, output._replace(layer=frozen_part(output.layer)))
    passes = {"init": init, "forward": forward, "backward": backward}
    told = {"decoding": through(layer, thawed), "intended": meant_through(layer, thawed)}
    return leaf_of(layer, frozen=True, **passes, **told)


def _at_rest(leaf: Layer) -> Layer:
    """A leaf that mixes the examples of a batch in training, as it is in inference."""

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return leaf.forward(params, x, None)

    if not leaf.mixes:
        return leaf
    at_rest = {"mixes": False, "decoding": through(leaf), "rebuild": None}
    return dataclasses.replace(leaf, forward=forward, **at_rest)


def frozen(model: Layer, where: Pattern, params: PyTree) -> PyTree:
    """The params of `freeze(model, where)` from those of `model`.

    Example:
      >>> import funprop as fp
      >>> frozen(fp.serial(fp.dense(4), fp.tanh()), "dense", ("pretrained", ()))
      (Frozen(frozen='pretrained'), ())
    """
    model, params, where = apart(model, where, params=params)
    chosen = places(where, model, into_shared=False)

    def look(node: Layer, params: Any, at: Place) -> Any:
        if at in chosen:
            return as_frozen(params)
        if not within(at, chosen):
            return params
        pairs = enumerate(zip(node.children, node.split(params), strict=True))
        return node.join(params, [look(child, p, (*at, i)) for i, (child, p) in pairs])

    return look(model, params, ())
