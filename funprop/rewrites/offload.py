"""Residuals in the host's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from funprop.decoding import through
from funprop.layer import Layer, Recorded, check_layer
from funprop.maps import around
from funprop.residuals import Saved

if TYPE_CHECKING:
    from funprop.typing import PyTree


def offload(layer: Layer) -> Layer:
    """The same layer, its residuals in the host's memory between forward and backward.

    Costs a transfer there and one back, and saves the device what the layer keeps; under `repeat`
    the transfers of one copy and the computation of the next may overlap. What is `Recorded`, and
    random keys, stay. On CPU, where device memory is the host's, a script runs unchanged: compiled,
    it moves nothing.

    Raises:
      ValueError: at forward, outside of `jit`, the residuals lie on a device without pinned host
        memory.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> block = offload(fp.serial(fp.tanh(), fp.gelu()))
      >>> y, residuals = block.forward(((), ()), jnp.zeros(2))
      >>> residuals[0].sharding.memory_kind
      'pinned_host'
      >>> block.backward(((), ()), residuals, jnp.ones(2))[1].tolist()
      [0.5, 0.5]
    """
    check_layer("layer", layer)

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, residuals = layer.forward(params, x, key)
        _check_memory(residuals)
        return y, _moved(residuals, jax.memory.Space.Host)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return layer.backward(params, _moved(residuals, jax.memory.Space.Device), dy)

    return around(layer, offload, forward=forward, backward=backward, decoding=through(layer))


def _moved(residuals: PyTree, space: Any) -> PyTree:
    def stays(node: Any) -> bool:
        return isinstance(node, Recorded | Saved)

    def moved(leaf: Any) -> Any:
        if stays(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.device_put(leaf, space)

    return jax.tree.map(moved, residuals, is_leaf=stays)


def _check_memory(residuals: PyTree) -> None:
    """Raise where residuals that are there already lie on a device without pinned host memory. What
    is traced may be compiled for any platform, whose compiler then says it."""
    for leaf in jax.tree.leaves(residuals):
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
            continue
        device = next(iter(leaf.devices()))
        kinds = [memory.kind for memory in device.addressable_memories()]
        if "pinned_host" not in kinds:
            got = f"{device.platform} with {kinds}"
            raise ValueError(f"offload needs a device with pinned_host memory, got {got}")
        return
