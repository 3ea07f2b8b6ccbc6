"""What the transforms that split a batch over devices share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax

from funprop import trees
from funprop.arguments import check_mesh
from funprop.checks import check_string
from funprop.transforms.microbatch import batch_size
from funprop.transforms.transformed import call, made_of
from funprop.values import short

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.gradients import GradFn, Gradient


def axis_size(mesh: jax.sharding.Mesh, axis: str) -> int:
    """How many devices are along an axis of a mesh.

    Raises:
      TypeError: `mesh` is none.
      ValueError: it has no such axis, or axes that are not `AxisType.Auto`.
    """
    check_mesh(mesh)
    check_string("axis", axis)
    if axis not in mesh.shape:
        raise ValueError(f"axis must be one of the mesh's, {mesh.axis_names}, got {short(axis)}")
    return mesh.shape[axis]


def check_split_once(outer: str, grad_fn: GradFn) -> None:
    """Raise a `ValueError` where `grad_fn` is over devices, or sums in an order."""
    if {"data_parallel", "ordered", "pipeline"} & set(made_of(grad_fn)):
        raise ValueError(f"{outer} must not be made of {grad_fn}, which is over devices already")


def share_by_share(
    grad_fn: GradFn, n: int, keys_of: Callable[[Any, int], Any]
) -> Callable[..., Gradient]:
    """`grad_fn` of each of `n` shares of a batch, one after the other on one device, and their sum.

    Args:
      grad_fn: of a share.
      n: how many there are.
      keys_of: `(key, n) -> keys`, one a share.
    """

    def function(params: Any, batch: Any, key: Any = None, dloss: Any = None) -> Gradient:
        size = batch_size(batch) // n
        keys = [None] * n if key is None else keys_of(key, n)
        rows = [slice(i * size, (i + 1) * size) for i in range(n)]
        found = [
            call(grad_fn, params, jax.tree.map(lambda leaf, r=r: leaf[r], batch), k, dloss)
            for r, k in zip(rows, keys, strict=True)
        ]
        return functools.reduce(trees.add, found)

    return function


def on_each(
    mesh: jax.sharding.Mesh, axis: str, function: Callable[..., Gradient]
) -> Callable[..., Gradient]:
    """`(params, batch, key, dloss)` to what `function` makes of a share of the batch, on each
    device; it must give the same on all of them.

    With JAX's `check_vma`, params would be marked as the same everywhere, what `jax.grad` gives for
    them be summed over the devices already, and a hand-written backward's not; and loops that start
    from plain zeros, as those inside layers do, be refused. Without, all is a device's own.
    """
    whole, split = jax.P(), jax.P(axis)
    specs = (whole, split, whole, whole)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
