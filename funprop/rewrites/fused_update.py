"""The update inside the backward pass, so that the full gradient never exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import optax

from funprop.arguments import check_optimizer
from funprop.decoding import through
from funprop.layer import Layer, check_layer, leaf_of
from funprop.params.frozen import trained, with_trained
from funprop.params.leafwise import require_leafwise
from funprop.params.updating import Updating

if TYPE_CHECKING:
    from funprop.typing import PyTree


def fused_update(layer: Layer, optimizer: optax.GradientTransformation) -> Layer:
    """The same layer, every part of it updating its params in its backward pass.

    Params become, at every leaf of the model, `Updating(params, opt_state)`; what comes back in the
    place of `dparams` is the next one. A gradient lives from its layer's backward to its layer's
    update, through the reverse scan of `repeat` as well. So this backward is not linear in `dy`:
    whatever divides the gradient divides `dy` before it enters. A node that shares params
    (`reparam`) is updated as one leaf, after the sum over all uses. `fused_step` trains with it.

    Equal to gradient-then-update for optimizers that act leaf by leaf. Under `repeat` each copy is
    a leaf of its own: for those that look at a leaf as a whole (`adafactor`, block norms), the
    result is that of the same layers in a `serial`.
    Source: Lv et al., arXiv:2306.09782 (LOMO), for gradient descent.

    Args:
      layer: any layer, a whole objective too.
      optimizer: an optax transform that acts leaf by leaf. A mask must be a function, as
        `mask=fp.decayed`: it is asked of the params of each leaf of the model alone, so that it may
        go by their roles, names and shapes, but not by where in the model they are.

    Raises:
      ValueError: the optimizer mixes leaves, or draws random numbers, or has a mask that is no
        function.
      TypeError: the optimizer is none, or wants more than gradients and params; or, at forward or
        backward, params that are not `Updating`, `dparams` that are no gradient of them.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> scale = fp.layer(
      ...     init=lambda key, x: jnp.ones((), x.dtype),
      ...     forward=lambda s, x: (s * x, x),
      ...     backward=lambda s, x, dy: ((x * dy).sum(), s * dy),
      ... )
      >>> fused = fused_update(scale, optax.sgd(0.25))
      >>> before = fused.init(jax.random.key(0), jnp.ones(2))
      >>> y, residuals = fused.forward(before, jnp.ones(2))
      >>> after, _ = fused.backward(before, residuals, jnp.ones(2))
      >>> float(before.params), float(after.params)
      (1.0, 0.5)
    """
    check_layer("layer", layer)
    check_optimizer(optimizer)
    require_leafwise(optimizer)
    return _fused(layer, optimizer)


def _fused(layer: Layer, optimizer: optax.GradientTransformation) -> Layer:
    if not _is_leaf(layer):
        return layer.rebuild(*(_fused(child, optimizer) for child in layer.children))

    def init(key: Any, x: PyTree) -> Updating:
        return with_opt_state(layer, layer.init(key, x), optimizer)

    def forward(params: Updating, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return layer.forward(_inside(params), x, key)

    def backward(params: Updating, residuals: PyTree, dy: PyTree) -> tuple[Updating, PyTree]:
        if not isinstance(params, Updating):
            return layer.backward(params, residuals, dy)
        grads, dx = layer.backward(params.params, residuals, dy)
        own = trained(params.params)
        if not jax.tree.leaves(own):  # frozen: an optimizer that wants params would get none
            return params, dx
        if jax.tree.structure(grads) != jax.tree.structure(own):
            raise TypeError(
                f"{layer.name} must return dparams in the structure of params to be updated, got "
                f"{type(grads).__name__}"
            )
        updates, opt_state = optimizer.update(grads, params.opt_state, own)
        new = with_trained(params.params, optax.apply_updates(own, updates))
        return Updating(new, opt_state), dx

    return leaf_of(
        layer, init=init, forward=forward, backward=backward, decoding=through(layer, _inside)
    )


def _inside(params: Any) -> PyTree:
    if isinstance(params, Updating):
        return params.params
    if jax.tree.leaves(params):
        raise TypeError(f"params must be Updating(params, opt_state), got {type(params).__name__}")
    return params


def with_opt_state(layer: Layer, params: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
    """The params of `fused_update(layer, optimizer)` from those of `layer`."""
    if _is_leaf(layer):
        own = trained(params)
        if not jax.tree.leaves(own):
            return Updating(params, ()) if jax.tree.leaves(params) else params
        return Updating(params, optimizer.init(own))

    def each(params: Any) -> PyTree:
        pairs = zip(layer.children, layer.split(params), strict=True)
        return layer.join(params, [with_opt_state(child, p, optimizer) for child, p in pairs])

    return jax.vmap(each, axis_size=layer.copies)(params) if layer.copies else each(params)


def without_opt_state(params: PyTree) -> PyTree:
    """Undo `with_opt_state`."""
    return jax.tree.map(
        lambda node: node.params if isinstance(node, Updating) else node,
        params,
        is_leaf=lambda node: isinstance(node, Updating),
    )


def _is_leaf(layer: Layer) -> bool:
    """Whether `layer` is updated as a whole: nobody below it knows a whole gradient."""
    return layer.shares or not layer.children
