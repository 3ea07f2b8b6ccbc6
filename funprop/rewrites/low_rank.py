"""Low-rank adapters: fine-tuning a few numbers beside weights that stay as they are."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.checks import require_key
from funprop.combinators import reparam
from funprop.layer import Layer
from funprop.layers.dense import DenseParams
from funprop.params.frozen import Frozen, as_frozen
from funprop.params.selection import Pattern, Place, places, within
from funprop.rewrites.copies import apart
from funprop.rewrites.freeze import frozen_part
from funprop.values import real_number, whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree


class LowRank(NamedTuple):
    """The params of an adapted dense layer, whose weights are `frozen.w + scale * down @ up`.

    Attributes:
      frozen: the params of the layer as it was.
      down: `[i, rank]`, random at first.
      up: `[rank, o]`, zero at first, so that the adapted layer is the layer.
    """

    frozen: Any
    down: Any
    up: Any

    roles = {"frozen": "frozen", "down": "weight", "up": "weight"}


def low_rank(
    model: Layer, where: Pattern, rank: int, *, scale: float = 1.0, train: Pattern | None = None
) -> Layer:
    """The same model, low-rank additions to the weights of some dense layers trained alone.

    Each of these is a `reparam` of the dense layer with params `LowRank`; all else is `Frozen`, but
    for the parts that `train` says. `adapted` makes such params of those that are there already.
    Source: Hu et al., arXiv:2106.09685 (LoRA).

    Args:
      model: any layer, a whole objective too.
      where: a pattern for the dense layers (see `fp.where`), as `*/qkv`, or `blocks[-2:]/*/qkv` for
        those of the last two copies, which are apart then (see `freeze`).
      rank: of what is added.
      scale: of what is added.
      train: a pattern for parts that are trained whole, `head` or `blocks[-1]`; none if not given.

    Raises:
      ValueError: `rank` is not positive; no path matches, or one below a part that is frozen
        already; or a part is adapted already, or its params are made of others in another way.
      TypeError: at init, what matches is no dense layer.

    Example:
      >>> import funprop as fp
      >>> from funprop.params import by_name, trained
      >>> model = low_rank(fp.serial(fp.dense(4), fp.tanh(), fp.dense(2)), "dense_0", rank=1)
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> params.dense_0.down.shape, params.dense_0.up.shape
      ((5, 1), (1, 4))
      >>> sorted(by_name(trained(params)))
      ['dense_0/down', 'dense_0/up']
    """
    rank, scale = whole_number(rank, "rank", 1), real_number(scale, "scale")
    model, _, where, train = apart(model, where, train)
    chosen, whole = _chosen(model, where, train)

    def look(node: Layer, at: Place) -> Layer:
        if at in chosen:
            return _low_rank(node, rank, scale)
        if at in whole:
            return node
        if not within(at, chosen | whole):
            return frozen_part(node)
        if node.hands_on:  # the others' params are made from the first's
            first, *made = node.children[0].children
            return node.rebuild(node.children[0].rebuild(look(first, (*at, 0, 0)), *made))
        return node.rebuild(*(look(child, (*at, i)) for i, child in enumerate(node.children)))

    return look(model, ())


def _chosen(
    model: Layer, where: Pattern, train: Pattern | None
) -> tuple[frozenset[Place], frozenset[Place]]:
    """The places of what is adapted, and of what is trained whole."""
    whole = frozenset() if train is None else places(train, model, into_shared=False)
    chosen: set[Place] = set()
    for place in places(where, model, into_shared=False):
        node = model
        for i in place:
            node = node.children[i]
        if node.shares:
            raise ValueError(f"where must mean dense layers that are not adapted yet, got {node}")
        chosen.add(_of_one_copy(node, place))
    return frozenset(chosen), whole


def _of_one_copy(node: Layer, place: Place) -> Place:
    """The place below all repeats at this place or at parts of the same name: each copy's own."""
    below = place
    while len(node.children) == 1 and not node.shares:
        below = (*below, 0)
        if node.copies is not None:
            place = below
        node = node.children[0]
    return place


def _low_rank(layer: Layer, rank: int, scale: float) -> Layer:
    def expand(params: LowRank) -> DenseParams:
        return added(params, scale)

    def shrink(params: LowRank, dexpanded: DenseParams) -> LowRank:
        # w = base + s d u, so dd = s dw u^T and du = s d^T dw.
        dw = dexpanded.w.astype(params.up.dtype)  # adapters may be wider than what they adapt
        return LowRank(None, scale * dw @ params.up.T, scale * params.down.T @ dw)

    def init(key: Any, x: PyTree) -> LowRank:
        layer_key, down_key = jax.random.split(key)
        return _beside(layer.init(layer_key, x), rank, down_key)

    def rebuild(child: Layer) -> Layer:
        return _low_rank(child, rank, scale)

    whole = reparam(layer, expand, shrink=shrink)
    return dataclasses.replace(whole, name="low_rank", init=init, rebuild=rebuild)


def _beside(params: Any, rank: int, key: Any) -> LowRank:
    if not isinstance(params, DenseParams):
        got = type(params).__name__
        raise TypeError(f"params to be adapted must be those of a dense layer, got {got}")
    i, o = params.w.shape
    down = jax.random.normal(key, (i, rank), params.w.dtype) / i**0.5
    return LowRank(params, down, jnp.zeros((rank, o), params.w.dtype))


def adapted(
    model: Layer,
    where: Pattern,
    rank: int,
    params: PyTree,
    key: Any,
    *,
    train: Pattern | None = None,
) -> PyTree:
    """The params of `low_rank(model, where, rank, train=train)` from those of `model`.

    Example:
      >>> import funprop as fp
      >>> model = fp.serial(fp.dense(4), fp.tanh())
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> new = adapted(model, "dense", 1, params, jax.random.key(1))
      >>> new.dense.frozen.w.shape
      (5, 4)
    """
    rank = whole_number(rank, "rank", 1)
    require_key(key)
    model, params, where, train = apart(model, where, train, params=params)
    chosen, whole = _chosen(model, where, train)

    def look(node: Layer, params: Any, key: Any, at: Place) -> Any:
        if at in chosen:
            return _beside(params, rank, key)
        if at in whole:
            return params
        if not within(at, chosen | whole):
            return as_frozen(params)

        def each(params: Any, key: Any) -> Any:
            keys = jax.random.split(key, len(node.children))
            parts = enumerate(zip(node.children, node.split(params), keys, strict=True))
            return node.join(params, [look(c, p, k, (*at, i)) for i, (c, p, k) in parts])

        if node.copies is None:
            return each(params, key)
        return jax.vmap(each)(params, jax.random.split(key, node.copies))

    return look(model, params, key, ())


def merged(params: PyTree, *, scale: float = 1.0) -> PyTree:
    """The params of the model itself from those of `low_rank(model, ...)`: each addition added to
    its weights, and nothing frozen. The way back from `adapted`, after training.

    Args:
      params: of the adapted model; those that are not adapted are taken as they are.
      scale: as `low_rank` was given.

    Example:
      >>> import funprop as fp
      >>> model = fp.serial(fp.dense(4), fp.tanh())
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> new = adapted(model, "dense", 1, params, jax.random.key(1))
      >>> new = new._replace(dense=new.dense._replace(up=jnp.ones((1, 4))))
      >>> lone = merged(new).dense.w - params.dense.w
      >>> bool(jnp.allclose(lone, new.dense.down @ new.dense.up, atol=1e-6))
      True
    """
    scale = real_number(scale, "scale")

    def of(node: Any) -> Any:
        if isinstance(node, LowRank):
            return added(node, scale)
        return merged(node.frozen, scale=scale) if isinstance(node, Frozen) else node

    return jax.tree.map(of, params, is_leaf=lambda node: isinstance(node, LowRank | Frozen))


def added(params: LowRank, scale: float) -> DenseParams:
    """The params of the dense layer that an adapted one is; of all copies where there are some."""
    dense = params.frozen
    return dense._replace(w=dense.w + scale * (params.down @ params.up).astype(dense.w.dtype))
