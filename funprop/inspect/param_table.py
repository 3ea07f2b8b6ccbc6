"""What params are: each by its name, with its role, whether it is trained, and where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from funprop import trees
from funprop.checks import check_arrays
from funprop.inspect.table import aligned, as_html, with_total
from funprop.params.roles import UNTRAINED, by_field, roles
from funprop.params.selection import by_name

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Param(NamedTuple):
    """One row of a `ParamTable`.

    Attributes:
      name: as patterns mean it.
      shape: with the copies of `repeat` in front.
      dtype: its name.
      role: weight, bias, scale, table or statistic.
      state: trained, frozen, adapted (fixed, with something trained beside it) or statistic.
      where: its `PartitionSpec`, one device, or the host.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    state: str
    where: str


class ParamTable(NamedTuple):
    """One row a param, and how many numbers are trained. `print` shows it as a table."""

    rows: tuple[Param, ...]
    size: int
    trained: int

    def __str__(self) -> str:
        return with_total(aligned(self._cells(), left=range(6)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self._cells(), left=range(6), total=True)

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("param", "shape", "dtype", "role", "state", "lies")
        cells = [(r.name, str(r.shape), *r[2:]) for r in self.rows]
        total = (f"{self.size:,} numbers", "", "", "", f"{self.trained:,} trained", "")
        return [head, *cells, total]


def param_table(params: PyTree) -> ParamTable:
    """A table of params, or of the `jax.ShapeDtypeStruct`s of some.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.freeze(fp.serial(fp.dense(4), fp.layer_norm()), "dense")
      >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((3, 5)))
      >>> print(param_table(params))
      param             shape   dtype    role    state      lies
      ----------------------------------------------------------
      dense/w           (5, 4)  float32  weight  frozen     host
      dense/b           (4,)    float32  bias    frozen     host
      layer_norm/scale  (4,)    float32  scale   trained    host
      layer_norm/bias   (4,)    float32  bias    trained    host
      ----------------------------------------------------------
      32 numbers                                 8 trained
    """
    check_arrays("params", params)
    columns = zip(
        by_name(params).items(),
        jax.tree.leaves(roles(params)),
        jax.tree.leaves(_states(params)),
        strict=True,
    )
    rows = tuple(
        Param(name, tuple(leaf.shape), str(leaf.dtype), role, state, _where(leaf))
        for (name, leaf), role, state in columns
    )
    each = zip(jax.tree.leaves(params), rows, strict=True)
    trained = sum(leaf.size for leaf, row in each if row.state == "trained")
    return ParamTable(rows, trees.size(params), trained)


def _states(params: PyTree) -> PyTree:
    def of_field(role: str | None, said: dict[str, str]) -> str | None:
        beside = any(other not in UNTRAINED for other in said.values())
        return "adapted" if role == "frozen" and beside else role if role in UNTRAINED else None

    return by_field(params, of_field, lambda path, leaf: "trained")


def _where(leaf: Any) -> str:
    placed = getattr(leaf, "sharding", None)
    if isinstance(placed, NamedSharding):
        return str(placed.spec)
    return "host" if placed is None else "one device"
