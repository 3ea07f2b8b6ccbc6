"""Where the arrays of a run are: on one device, or over a mesh that may span processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.transforms import data_parallel, ordered

if TYPE_CHECKING:
    import numpy as np

    from funprop.gradients import GradFn
    from funprop.typing import Int, PyTree

AXIS = "data"


def spread(
    grad_fn: GradFn, batch_size: int, all_devices: bool, parts: int | None
) -> tuple[GradFn, jax.sharding.Mesh | None]:
    """`grad_fn` with its batch split over all devices of all processes, and their mesh; as it is,
    and `None`, where neither is asked for.

    Args:
      grad_fn: of a batch.
      batch_size: what the devices, and the parts, must divide.
      all_devices: whether it is split.
      parts: of `ordered`, which splits it too; without it, the sum is in no order
        (`data_parallel`).

    Raises:
      ValueError: sizes that do not divide.
    """
    if not all_devices and parts is None:
        return grad_fn, None
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    made = data_parallel(grad_fn, mesh, AXIS) if parts is None else ordered(grad_fn, parts, mesh)
    for what, number in (("devices", devices), ("parts", parts or 1)):
        if batch_size % number:
            raise ValueError(f"batch_size must be a multiple of {number} {what}, got {batch_size}")
    return made, mesh


def copies(tree: PyTree, mesh: jax.sharding.Mesh | None) -> PyTree:
    """A copy of `tree`, whole on every device of the mesh; every process has the same values."""
    return trees.copied(tree) if mesh is None else _copying(mesh)(tree)


@functools.lru_cache(maxsize=32)
def _copying(mesh: jax.sharding.Mesh) -> Callable[[PyTree], PyTree]:
    """Kept, so that each kind of tree is compiled for once."""
    whole = jax.NamedSharding(mesh, jax.P())
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=whole)


def split(rows: Int[np.ndarray, "batches batch_size"], mesh: jax.sharding.Mesh | None) -> Any:
    """Numbers of rows, each batch's split over the devices: so are the rows gathered by them."""
    if mesh is None:
        return jnp.asarray(rows)
    sharding = jax.NamedSharding(mesh, jax.P(None, AXIS))
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
