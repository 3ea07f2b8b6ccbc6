"""Statistics: numbers among params that no gradient trains. Layers record what they are made of,
and a step folds it in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layer import Recorded
from funprop.params.frozen import Frozen
from funprop.params.roles import Statistic, declared
from funprop.params.updating import Updating
from funprop.trees import is_float, spec_string, wide_dtype

if TYPE_CHECKING:
    from funprop.typing import PyTree


class NewStatistics(NamedTuple):
    """What somebody's loss function gives as the next statistics: a sum over parts of a batch.

    Attributes:
      total: how much they change, a list of leaves, times the weight of the part of the batch that
        they are of.
      weight: of that part.
    """

    total: Any
    weight: Any

    of = Statistic

    def folded(self, node: Statistic) -> Statistic:
        """The next statistics: changed by the mean over the parts; integers by whole numbers."""
        leaves, tree = jax.tree.flatten(node)

        def new(old: Any, total: Any) -> Any:
            change = total / jnp.where(self.weight == 0, 1, self.weight).astype(total.dtype)
            if is_float(old):
                return (old.astype(total.dtype) + change).astype(old.dtype)
            return old + jnp.round(change).astype(old.dtype)

        return tree.unflatten(map(new, leaves, self.total))


def new_statistics(params: PyTree, new: PyTree, weight: Any) -> tuple[Recorded, ...]:
    """What is recorded of the next statistics that a loss function gave, `None` if it gave none.

    Args:
      params: with a `Statistic` in them, or several.
      new: of one of these, what is in it; of several, a tuple with an entry each. Or what funprop's
        own layers recorded (`fp.recorded(residuals)`), which is left as it is.
      weight: of the batch.

    Raises:
      TypeError: `new` has other leaves than the `Statistic`s in `params`, or random keys.
    """
    if new is None:
        return ()
    if any(True for _ in _records(new)):
        return new
    nodes = [n for n in holders(params) if isinstance(n, Statistic)]
    old, found = ([jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (nodes, new))
    want, got = (", ".join(map(spec_string, leaves)) for leaves in (old, found))
    if want != got:
        raise TypeError(
            f"loss_fn must return statistics like those in params, {want or 'none'}, got {got}"
        )
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in old):
        raise TypeError("statistics must be numbers, got a random key: steps draw keys themselves")

    def change(old: Any, new: Any) -> Any:
        wide = wide_dtype(old.dtype)
        moved = new.astype(wide) - old.astype(wide) if is_float(old) else (new - old).astype(wide)
        return jnp.where(weight == 0, 0, moved * weight.astype(wide))

    changes = iter(map(change, old, found))
    each = [[next(changes) for _ in jax.tree.leaves(node)] for node in nodes]
    return tuple(Recorded(NewStatistics(total, weight)) for total in each)


def fold(params: PyTree, records: PyTree) -> PyTree:
    """`params` with their statistics made new from what was recorded.

    By the mirror law params and records of one kind stand in the same order, whatever combinators
    and rewrites are between. What is frozen records nothing. Nor does a pass without a key.

    Raises:
      ValueError: there are statistics for which nothing was recorded, while there is for others.
    """
    return replaced(params, records, lambda node, record: record.folded(node))


def replaced(params: PyTree, records: PyTree, new: Callable[[Any, Any], Any]) -> PyTree:
    """`params` with `new(node, record)` in the place of each node that holds statistics."""
    found: dict[type, list[Any]] = {}
    for record in _records(records):
        if hasattr(record.value, "folded"):
            found.setdefault(record.value.of, []).append(record.value)
    for kind, values in found.items():
        places = [node for node in holders(params) if isinstance(node, kind)]
        if len(places) != len(values):
            raise ValueError(
                f"params must have one {kind.__name__} for each of the {len(values)} that were "
                f"recorded, got {len(places)}"
            )
    rest = {kind: iter(values) for kind, values in found.items()}

    def of(node: Any) -> Any:
        if isinstance(node, Updating):
            return node._replace(params=inside(node.params))
        return new(node, next(rest[type(node)])) if type(node) in rest else node

    def inside(tree: PyTree) -> PyTree:
        return jax.tree.map(of, tree, is_leaf=_is_looked_at)

    return inside(params)


def without_place(residuals: PyTree) -> PyTree:
    """`residuals` of a part whose params are made from others: what it recorded has no place in
    them, which a step says if there is something."""

    def of(record: Any) -> Any:
        if isinstance(record, Recorded) and hasattr(record.value, "folded"):
            return dataclasses.replace(record, value=NoPlace(record.value))
        return record

    return jax.tree.map(of, residuals, is_leaf=lambda node: isinstance(node, Recorded))


class NoPlace(NamedTuple):
    """Statistics of a part whose params are made from others."""

    recorded: Any

    @property
    def of(self) -> type:
        """Never: it raises."""
        raise ValueError(
            f"statistics must have a place in params, got {self.recorded.of.__name__} made from "
            "others by reparam: keep that layer outside"
        )

    folded = None


def holders(params: PyTree) -> Iterator[Any]:
    """The nodes of params that hold statistics and are not frozen, in the order of the model."""
    for node in jax.tree.leaves(params, is_leaf=_is_looked_at):
        if isinstance(node, Updating):
            yield from holders(node.params)
        elif _is_holder(node):
            yield node


def _is_holder(node: Any) -> bool:
    said = declared(node)
    return said is not None and "statistic" in said.values()


def _is_looked_at(node: Any) -> bool:
    return isinstance(node, Frozen | Updating) or _is_holder(node)


def _records(records: PyTree) -> Iterator[Recorded]:
    def is_record(node: Any) -> bool:
        return isinstance(node, Recorded)

    return (r for r in jax.tree.leaves(records, is_leaf=is_record) if is_record(r))
