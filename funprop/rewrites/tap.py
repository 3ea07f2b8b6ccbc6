"""Watching activations and cotangents of chosen layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from funprop.checks import check_function
from funprop.decoding import through
from funprop.layer import Layer, Recorded, check_layer
from funprop.maps import around
from funprop.params.selection import map_places, places
from funprop.params.tapped import Tapped
from funprop.residuals import with_own, without_own

if TYPE_CHECKING:
    from funprop.typing import PyTree


def tap(
    model: Layer,
    where: str | None = None,
    *,
    forward: Callable[[PyTree], PyTree] | None = None,
    backward: Callable[[PyTree], PyTree] | None = None,
) -> Layer:
    """The same model telling of its layers' outputs and of the cotangents that reach them.

    No side effect: what is seen comes back with the rest, under `jit` and `vmap`, and from each
    copy under `repeat`. Outputs go among the residuals as `Recorded`, and so to
    `Gradient.recorded`; cotangents go beside `dparams`, from where `untap` takes them.

    Args:
      model: any layer.
      where: a pattern for the paths of the layers to watch, as `*/dense*`; without it, the model
        itself.
      forward: from an output `y` to what shall be told of it, a pytree of sums over the batch.
      backward: the same of the cotangent `dy`.

    Raises:
      ValueError: nothing to watch with; no path matches; or cotangents are wanted below a node that
        shares params (`reparam`), where no `dparams` come out.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> from funprop.layer import recorded
      >>> model = tap(fp.serial(fp.tanh(), fp.relu()), "tanh", forward=jnp.sum, backward=jnp.max)
      >>> y, residuals = model.forward(((), ()), jnp.zeros(3))
      >>> dparams, dx = model.backward(((), ()), residuals, jnp.ones(3))
      >>> plain, seen = fp.untap(dparams)
      >>> plain, float(seen[0].seen.value), float(recorded(residuals)[0][1].value)
      (((), ()), 0.0, 0.0)
    """
    check_layer("model", model)
    if forward is None and backward is None:
        raise ValueError("tap needs a function to watch with, forward or backward, got none")
    for name, watching in (("forward", forward), ("backward", backward)):
        if watching is not None:
            check_function(name, watching, "of one argument, what is seen")
    watch = functools.partial(_tap, forward=forward, backward=backward)
    if where is None:
        return watch(model)
    return map_places(places(where, model, into_shared=backward is None), model, watch)


def _tap(layer: Layer, forward: Any, backward: Any) -> Layer:
    def tapped_forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, residuals = layer.forward(params, x, key)
        return y, with_own(layer, residuals, Recorded(forward(y)) if forward else None)

    def tapped_backward(params: PyTree, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        dparams, dx = layer.backward(params, without_own(layer, residuals)[0], dy)
        return (Tapped(dparams, Recorded(backward(dy))) if backward else dparams), dx

    return around(
        layer,
        lambda layer: _tap(layer, forward, backward),
        forward=tapped_forward,
        backward=tapped_backward,
        decoding=through(layer),
    )
