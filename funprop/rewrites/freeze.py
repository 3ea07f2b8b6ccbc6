"""Parts of a model that are not trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from funprop.layer import Layer
from funprop.params.frozen import Frozen
from funprop.params.selection import Place, map_places, places

if TYPE_CHECKING:
    from jaxtyping import PyTree


def freeze(model: Layer, where: str) -> Layer:
    """The same model with params of some of its parts fixed, for fine-tuning.

    A frozen part computes no gradient of its params, and below the lowest part that is trained no
    backward pass is computed at all: its result is not asked for, and XLA leaves it out. `step`
    keeps no optimizer state for frozen params.

    Args:
      model: any layer, a whole objective too.
      where: a pattern for the paths of the parts to freeze, as `*/dense*`.

    Returns:
      A layer whose params have a `Frozen` at each of these parts. `frozen(model, where, params)`
      makes them of params that are there already.

    Raises:
      ValueError: no path matches; or a part is below a node that shares params (`reparam`).

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = freeze(fp.serial(fp.dense(4), fp.tanh(), fp.dense(2)), "dense[0]")
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> y, kept = model.forward(params, jnp.ones((3, 5)))
      >>> dparams, dx = model.backward(params, kept, y)
      >>> dparams[0], dparams[2].w.shape
      (None, (4, 2))
    """
    return map_places(places(where, model, into_shared=False), model, _frozen)


def _frozen(layer: Layer) -> Layer:
    def init(key: Any, x: PyTree) -> Frozen:
        return Frozen(layer.init(key, x))

    def forward(params: Frozen, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        if not isinstance(params, Frozen):
            raise TypeError(f"params must be Frozen(params), got {type(params).__name__}")
        return layer.forward(params.params, x, key)

    def backward(params: Frozen, residuals: PyTree, dy: PyTree) -> tuple[None, PyTree]:
        return None, layer.backward(params.params, residuals, dy)[1]

    return Layer(init, forward, backward, layer.name)


def frozen(model: Layer, where: str, params: PyTree) -> PyTree:
    """The params of `freeze(model, where)` from those of `model`.

    Example:
      >>> import funprop as fp
      >>> frozen(fp.serial(fp.dense(4), fp.tanh()), "dense", ("pretrained", ()))
      (Frozen(params='pretrained'), ())
    """
    chosen = places(where, model, into_shared=False)

    def look(node: Layer, params: Any, at: Place) -> Any:
        if at in chosen:
            return Frozen(params)
        if not any(place[: len(at)] == at for place in chosen):
            return params
        pairs = enumerate(zip(node.children, params, strict=True))
        return tuple(look(child, p, (*at, i)) for i, (child, p) in pairs)

    return look(model, params, ())
