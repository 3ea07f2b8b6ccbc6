"""Statistics: numbers among params that no gradient trains. Layers record what they are made of,
and a step folds it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.layer import Recorded
from funprop.params.frozen import Frozen
from funprop.params.roles import Statistic, declared
from funprop.params.updating import Updating
from funprop.trees import spec_string, wide_dtype

if TYPE_CHECKING:
    from jaxtyping import PyTree


class NewStatistics(NamedTuple):
    """What somebody's loss function gives as the next statistics: their sum over parts of a batch.

    Attributes:
      total: the next statistics, times the weight of the part of the batch that they are of.
      weight: of that part.
    """

    total: Any
    weight: Any

    def folded(self, node: Statistic) -> Statistic:
        """The next statistics: the mean over the parts."""
        leaves, tree = jax.tree.flatten(node)
        new = [
            jax.numpy.where(self.weight == 0, old, total / self.weight).astype(old.dtype)
            for old, total in zip(leaves, jax.tree.leaves(self.total), strict=True)
        ]
        return tree.unflatten(new)


def new_statistics(params: PyTree, new: PyTree, weight: Any) -> tuple[Recorded, ...]:
    """What is recorded of the next statistics that a loss function gave, `None` if it gave none.

    Raises:
      TypeError: they are not what the `Statistic`s in `params` hold: of one of these, what is in
        it; of several, a tuple with an entry each.
    """
    if new is None:
        return ()
    nodes = [n for n in holders(params) if isinstance(n, Statistic)]
    each = (new,) if len(nodes) == 1 else tuple(new)
    want, got = (
        [jax.tree.map(spec_string, t) for t in ts] for ts in ([n.statistic for n in nodes], each)
    )
    if want != got:
        raise TypeError(f"loss_fn must return statistics like those in params, {want}, got {got}")
    sums = (jax.tree.map(lambda s: s * weight.astype(wide_dtype(s.dtype)), s) for s in each)
    return tuple(Recorded(NewStatistics(s, weight)) for s in sums)


def fold(params: PyTree, records: PyTree) -> PyTree:
    """`params` with their statistics made new from what was recorded.

    By the mirror law params and records stand in the same order, whatever combinators and rewrites
    are between. What is frozen stays as it is. A pass without a key records nothing, and changes
    nothing.

    Raises:
      ValueError: there are statistics for which nothing was recorded, while there is for others.
    """
    return replaced(params, records, lambda node, record: record.folded(node))


def replaced(params: PyTree, records: PyTree, new: Callable[[Any, Any], Any]) -> PyTree:
    """`params` with `new(node, record)` in the place of each node that holds statistics."""
    found = [r.value for r in _records(records) if hasattr(r.value, "folded")]
    if not found:
        return params
    nodes = list(holders(params))
    if len(nodes) != len(found):
        raise ValueError(
            f"params must have one place for each of the {len(found)} statistics that were "
            f"recorded, got {len(nodes)}"
        )
    rest = iter(found)

    def of(node: Any, *, frozen: bool = False) -> Any:
        if isinstance(node, Frozen):
            return Frozen(inside(node.frozen, frozen=True))
        if isinstance(node, Updating):
            return node._replace(params=inside(node.params, frozen=frozen))
        if not _is_holder(node):
            return node
        record = next(rest)
        return node if frozen else new(node, record)

    def inside(tree: PyTree, *, frozen: bool = False) -> PyTree:
        return jax.tree.map(lambda node: of(node, frozen=frozen), tree, is_leaf=_is_looked_at)

    return inside(params)


def holders(params: PyTree) -> Iterator[Any]:
    """The nodes of params that hold statistics, in the order of the model."""
    for node in jax.tree.leaves(params, is_leaf=_is_looked_at):
        if isinstance(node, Frozen):
            yield from holders(node.frozen)
        elif isinstance(node, Updating):
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
