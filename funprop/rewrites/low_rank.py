"""Low-rank adapters: fine-tuning a few numbers beside weights that stay as they are."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.combinators import reparam
from funprop.layer import Layer, named
from funprop.layers.dense import DenseParams
from funprop.params.frozen import Frozen
from funprop.params.selection import Place, map_places, places

if TYPE_CHECKING:
    from jaxtyping import PyTree


class LowRank(NamedTuple):
    """The params of an adapted dense layer, whose weights are `base.w + scale * down @ up`.

    Attributes:
      base: `Frozen`, the params of the layer as it was.
      down: `[i, rank]`, random at first.
      up: `[rank, o]`, zero at first, so that the adapted layer is the layer.
    """

    base: Any
    down: Any
    up: Any


def low_rank(model: Layer, where: str, rank: int, *, scale: float = 1.0) -> Layer:
    """The same model, some dense layers trained by low-rank additions to their weights alone.

    Each is a `reparam` of the dense layer with params `LowRank`; `adapted` makes them of params
    that are there already.
    Source: Hu et al., arXiv:2106.09685 (LoRA).

    Args:
      model: any layer, a whole objective too.
      where: a pattern for the paths of the dense layers, as `*/self_attention/dense[0]`.
      rank: of what is added.
      scale: of what is added.

    Raises:
      ValueError: `rank` is not positive; no path matches; or a layer shares its params.
      TypeError: at init, what matches is no dense layer.

    Example:
      >>> import funprop as fp
      >>> model = low_rank(fp.serial(fp.dense(4), fp.tanh(), fp.dense(2)), "dense[0]", rank=1)
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> params[0][0].down.shape, params[0][0].up.shape
      ((5, 1), (1, 4))
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    chosen = places(where, model, into_shared=False)
    return map_places(chosen, model, lambda layer: _low_rank(layer, rank, scale))


def _low_rank(layer: Layer, rank: int, scale: float) -> Layer:
    def expand(params: LowRank) -> DenseParams:
        dense = params.base.params
        return dense._replace(w=dense.w + scale * (params.down @ params.up).astype(dense.w.dtype))

    def shrink(params: LowRank, dexpanded: DenseParams) -> LowRank:
        # w = base + s d u, so dd = s dw u^T and du = s d^T dw.
        dw = dexpanded.w
        return LowRank(None, scale * dw @ params.up.T, scale * params.down.T @ dw)

    def init(key: Any, x: PyTree) -> tuple[LowRank]:
        layer_key, down_key = jax.random.split(key)
        return (_beside(layer.init(layer_key, x), rank, down_key),)

    return named(layer.name, dataclasses.replace(reparam(layer, expand, shrink=shrink), init=init))


def _beside(params: Any, rank: int, key: Any) -> LowRank:
    if not isinstance(params, DenseParams):
        got = type(params).__name__
        raise TypeError(f"params to be adapted must be those of a dense layer, got {got}")
    i, o = params.w.shape
    down = jax.random.normal(key, (i, rank), params.w.dtype) / i**0.5
    return LowRank(Frozen(params), down, jnp.zeros((rank, o), params.w.dtype))


def adapted(model: Layer, where: str, rank: int, params: PyTree, key: Any) -> PyTree:
    """The params of `low_rank(model, where, rank)` from those of `model`.

    Example:
      >>> import funprop as fp
      >>> model = fp.serial(fp.dense(4), fp.tanh())
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> new = adapted(model, "dense", 1, params, jax.random.key(1))
      >>> new[0][0].base.params.w.shape
      (5, 4)
    """
    chosen = places(where, model, into_shared=False)

    def look(node: Layer, params: Any, key: Any, at: Place) -> Any:
        if at in chosen:
            return (_beside(params, rank, key),)
        if not any(place[: len(at)] == at for place in chosen):
            return params

        def each(params: Any, key: Any) -> tuple[Any, ...]:
            keys = jax.random.split(key, len(node.children))
            parts = enumerate(zip(node.children, params, keys, strict=True))
            return tuple(look(child, p, k, (*at, i)) for i, (child, p, k) in parts)

        if node.copies is None:
            return each(params, key)
        return jax.vmap(each)(params, jax.random.split(key, node.copies))

    return look(model, params, key, ())
