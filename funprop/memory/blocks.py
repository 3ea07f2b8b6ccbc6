"""The blocks of a model: what a policy is chosen for, and what each policy would give."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop import trees
from funprop.layer import Layer, Recorded
from funprop.memory.account import work_of
from funprop.memory.turns import by_turns
from funprop.names import below, title
from funprop.params.selection import Place
from funprop.rewrites.offload import offload
from funprop.rewrites.remat import remat

if TYPE_CHECKING:
    from funprop.typing import PyTree

GRID = 8  # of the copies of a repeat, policies are tried for so many shares
MOST = 0.5  # of all that is kept: a block that keeps more is looked into
REWRITES: dict[str, Callable[[Layer], Layer]] = {
    "keep": lambda layer: layer,
    "recompute": remat,
    "offload": offload,
}


class Policy(NamedTuple):
    """How often each word is said, of the copies of a block in their order, or of the one.

    Attributes:
      recompute, offload, keep: of how many copies.
    """

    recompute: int
    offload: int
    keep: int

    def __str__(self) -> str:
        told = [(name, n) for name, n in zip(self._fields, self, strict=True) if n]
        return told[0][0] if len(told) == 1 else ", ".join(f"{name} {n}" for name, n in told)


class Block(NamedTuple):
    """A part of the model.

    Attributes:
      place, path: where.
      layer: which.
      copies: how many turns it makes, one if it is no `repeat`.
      kept, given: bytes that one copy keeps, and those of its input.
      work: of one copy's forward.
      splits: whether copies may be told apart.
    """

    place: Place
    path: str
    layer: Layer
    copies: int
    kept: int
    given: int
    work: float
    splits: bool

    def policies(self, offloads: bool) -> list[Policy]:
        """All that make sense, the first to keep everything."""
        n = self.copies
        shares = range(n + 1) if n <= GRID else [round(n * i / GRID) for i in range(GRID + 1)]
        if not self.splits:
            shares = [0, n]
        again = shares if self.kept > self.given else [0]
        moved = shares if offloads else [0]
        return [Policy(r, o, n - r - o) for r in again for o in moved if r + o <= n]

    def saves(self, policy: Policy) -> int:
        """Bytes, as it seems from what is kept alone."""
        return policy.recompute * (self.kept - self.given) + policy.offload * self.kept

    def costs(self, policy: Policy, transfer: float) -> float:
        """Work more than if all were kept."""
        return policy.recompute * self.work + policy.offload * self.kept * transfer

    def rewritten(self, policy: Policy) -> Layer:
        """The block under a policy."""
        each = zip(("recompute", "offload", "keep"), policy, strict=True)
        runs = [(REWRITES[name], count) for name, count in each if count]
        if len(runs) == 1:
            rewrite = runs[0][0]
            whole = self.layer.copies is None
            return (
                rewrite(self.layer) if whole else self.layer.rebuild(rewrite(*self.layer.children))
            )
        return by_turns(self.layer, runs)


class _Call(NamedTuple):
    params: Any
    x: Any
    key: Any
    kept: int
    records: bool


def blocks_of(objective: Layer, batch: PyTree) -> list[Block]:
    """The parts of the model, none of which keeps most, but a `repeat`; from shapes alone."""
    calls = _calls(objective, batch)
    total = max(1, _kept(objective, (), calls))
    return list(_blocks(objective, (), "", calls, total))


def _blocks(
    node: Layer, place: Place, path: str, calls: dict[Place, _Call], total: int
) -> Iterator[Block]:
    if node.copies is None and node.children and (_kept(node, place, calls) > MOST * total):
        for i, (child, name) in enumerate(zip(node.children, below(path, node), strict=True)):
            yield from _blocks(child, (*place, i), name, calls, total)
        return
    one = (*place, 0) if node.copies is not None else place
    if one not in calls or not calls[one].kept:
        return
    call = calls[one]
    layer = node if node.copies is None else node.children[0]
    traced: Any = jax.make_jaxpr(lambda p, x, k: layer.forward(p, x, k)[0])(
        call.params, call.x, call.key
    )
    yield Block(
        *(place, title(path, node), node, node.copies or 1, call.kept, trees.nbytes(call.x)),
        *(work_of(traced.jaxpr), node.copies is not None and not call.records),
    )


def _kept(node: Layer, place: Place, calls: dict[Place, _Call]) -> int:
    return calls[place].kept if place in calls else 0


def _calls(objective: Layer, batch: PyTree) -> dict[Place, _Call]:
    calls: dict[Place, _Call] = {}

    def noted(node: Layer, at: Place) -> Layer:
        children = [noted(child, (*at, i)) for i, child in enumerate(node.children)]
        inner = node.rebuild(*children) if children else node

        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
            y, kept = inner.forward(params, x, key)
            leaves = {id(leaf): leaf for leaf in jax.tree.leaves(kept)}
            found = jax.tree.leaves(kept, is_leaf=lambda r: isinstance(r, Recorded))
            records = any(isinstance(leaf, Recorded) for leaf in found)
            p, given, k = jax.tree.map(_spec, (params, x, key))
            calls[at] = _Call(p, given, k, trees.nbytes(list(leaves.values())), records)
            return y, kept

        return dataclasses.replace(inner, forward=forward)

    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(objective.init, key, batch)
    jax.eval_shape(noted(objective, ()).forward, params, batch, key)  # as in training
    return calls


def _spec(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(jax.numpy.shape(leaf), jax.numpy.asarray(leaf).dtype)


def under(objective: Layer, blocks: list[Block], policies: tuple[Policy, ...]) -> Layer:
    """The objective with each block under its policy."""
    new = {
        block.place: functools.partial(block.rewritten, policy)
        for block, policy in zip(blocks, policies, strict=True)
        if policy.keep < block.copies
    }

    def look(node: Layer, at: Place) -> Layer:
        if at in new:
            return new[at]()
        if not any(place[: len(at)] == at for place in new):
            return node
        return node.rebuild(*(look(child, (*at, i)) for i, child in enumerate(node.children)))

    return look(objective, ())
