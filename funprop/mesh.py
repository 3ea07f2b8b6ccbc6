"""Whether XLA may split what is traced here over devices."""

from __future__ import annotations

from jax.sharding import AxisType, get_abstract_mesh


def split_by_xla() -> bool:
    """Whether a mesh is set whose axes XLA places, as `shard` and `jax.set_mesh` do: then a loop
    over parts of an array may move it between devices at each turn.

    Example:
      >>> split_by_xla()
      False
    """
    return any(kind is not AxisType.Manual for kind in get_abstract_mesh().axis_types)
