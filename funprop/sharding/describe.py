"""What lies where: a table of arrays and their parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from funprop import trees
from funprop.checks import check_arrays
from funprop.inspect.table import aligned, as_html, with_total
from funprop.sharding.rules import Rules, shardings

if TYPE_CHECKING:
    from funprop.typing import PyTree


class ShardedLeaf(NamedTuple):
    """One array of a `ShardingTable`.

    Attributes:
      path: where in the tree.
      shape: of the whole.
      dtype: its name.
      spec: its `PartitionSpec`, or what other sharding it has.
      device_bytes: on each device that has a part of it.
      bytes: of the whole.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    device_bytes: int
    bytes: int


class ShardingTable(NamedTuple):
    """One row an array, and the totals. `print` shows it as a table."""

    rows: tuple[ShardedLeaf, ...]
    device_bytes: int
    bytes: int

    def __str__(self) -> str:
        return with_total(aligned(self._cells(), left=range(4)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self._cells(), left=range(4), total=True)

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("path", "shape", "dtype", "spec", "bytes a device", "bytes")
        total = ("total", "", "", "", f"{self.device_bytes:,}", f"{self.bytes:,}")
        return [head, *map(_cells, self.rows), total]


def describe_sharding(
    tree: PyTree, mesh: Mesh | None = None, rules: Rules | None = None
) -> ShardingTable:
    """Where each array of a tree lies, and the bytes of it that a device holds.

    Args:
      tree: a state or params as they lie; or, with `mesh` and `rules`, params or their
        `jax.ShapeDtypeStruct`s, for where they would lie.
      mesh: with `rules`, see `shardings`.
      rules: with `mesh`.

    Raises:
      ValueError: only one of `mesh` and `rules` is given; or as `shardings`.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> mesh = fp.make_mesh(data=1)
      >>> params = {"w": jnp.ones((64, 128)), "b": jnp.ones(128)}
      >>> print(describe_sharding(params, mesh, fp.fsdp_rules(mesh)))
      path   shape      dtype    spec             bytes a device   bytes
      ------------------------------------------------------------------
      b      (128,)     float32  P()                         512     512
      w      (64, 128)  float32  P(None, 'data')          32,768  32,768
      ------------------------------------------------------------------
      total                                               33,280  33,280
    """
    if (mesh is None) != (rules is None):
        raise ValueError("mesh and rules must be given together, got one of them")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    check_arrays("tree", tree)
    if mesh is None or rules is None:
        placed = [getattr(leaf, "sharding", None) for _, leaf in leaves]
    else:
        placed = jax.tree.leaves(shardings(tree, mesh, rules))
    rows = tuple(_row(path, leaf, at) for (path, leaf), at in zip(leaves, placed, strict=True))
    return ShardingTable(
        rows, sum(row.device_bytes for row in rows), sum(row.bytes for row in rows)
    )


def _row(path: Any, leaf: Any, placed: Any) -> ShardedLeaf:
    shape, itemsize = tuple(leaf.shape), leaf.dtype.itemsize
    part = shape if placed is None else placed.shard_shape(shape)
    if isinstance(placed, NamedSharding):
        spec = str(placed.spec)
    else:
        spec = "host" if placed is None else "one device"
    return ShardedLeaf(
        trees.path_string(path),
        shape,
        str(leaf.dtype),
        spec,
        math.prod(part) * itemsize,
        math.prod(shape) * itemsize,
    )


def _cells(row: ShardedLeaf) -> tuple[str, ...]:
    return (
        row.path,
        str(row.shape),
        row.dtype,
        row.spec,
        f"{row.device_bytes:,}",
        f"{row.bytes:,}",
    )
