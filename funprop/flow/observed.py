"""A gradient in one compiled program, of which every layer tells how its numbers are spread."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.flow.spread import SIZE, sums
from funprop.gradients import backprop
from funprop.inspect.saturated import passes_little
from funprop.layer import Layer
from funprop.names import below, title
from funprop.params.frozen import trained
from funprop.trees import is_float

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Part(NamedTuple):
    """A leaf of the model.

    Attributes:
      path: where, with `[*]` in the place of the number of a copy.
      copies: of which there are so many, nested loops outermost first.
      layer: which.
    """

    path: str
    copies: tuple[int, ...]
    layer: Layer

    def paths(self) -> list[str]:
        """Of each copy, in the order in which they run forward."""
        paths = [self.path]
        for n in self.copies:
            paths = [path.replace("[*]", f"[{i}]", 1) for path in paths for i in range(n)]
        return paths


class Told(NamedTuple):
    """Of each copy of a part, one after the other; sums as of `sums`.

    Attributes:
      y, dy: of its output and the cotangent of that.
      units: how many numbers pass on less than 2% of their cotangent, of how many that have one;
        how many units are zero for all examples, of how many. Zeros where it is not elementwise.
      update: of what an update adds to its params; filled in later.
      weights: the sum of the squares of these.
    """

    y: Any
    dy: Any
    units: Any
    update: Any = None
    weights: Any = None


def parts_of(model: Layer) -> list[Part]:
    """Every leaf in order."""
    found: list[Part] = []

    def look(node: Layer, path: str, copies: tuple[int, ...]) -> None:
        if not node.children:
            found.append(Part(title(path, node), copies, node))
            return
        if node.copies is not None:
            path, copies = f"{path or node.name}[*]", (*copies, node.copies)
        for child, name in zip(node.children, below(path, node), strict=True):
            look(child, name, copies)

    look(model, "", ())
    return found


def observed(objective: Layer, params: PyTree, batch: PyTree, key: Any) -> list[Told]:
    """What each of `parts_of(objective)` tells of one gradient.

    Each leaf writes into arrays of its own, a row a call: nothing in the place of `dparams`, so
    that what shares params is looked into as well. Forward the first calls count: `remat` runs them
    again. Backward the calls come from the last copy to the first.
    """
    cells: list[tuple[Any, ...]] = []

    def look(node: Layer, n: int) -> Layer:
        if node.children:
            n *= node.copies or 1
            return node.rebuild(*(look(child, n) for child in node.children))
        # A row more, for what is run again.
        rows = tuple(jax.new_ref(jnp.zeros((n + 1, size), jnp.float32)) for size in (SIZE, SIZE, 4))
        counts = jax.new_ref(jnp.int32(0)), jax.new_ref(jnp.int32(n))
        cells.append((*rows, n))
        return _observed(node, rows, counts, n)

    backprop(look(objective, 1))(params, batch, key)
    return [Told(y[...][:n], dy[...][:n], units[...][:n]) for y, dy, units, n in cells]


def _observed(leaf: Layer, rows: tuple[Any, ...], counts: tuple[Any, ...], n: int) -> Layer:
    (y_rows, dy_rows, units), (forth, back) = rows, counts
    alike = leaf.formula is not None and leaf.formula.elementwise

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, kept = leaf.forward(params, x, key)
        at = jnp.minimum(forth[...], n)
        forth[...] = at + 1
        y_rows[at] = sums(y)
        return y, (kept, y if alike else None)

    def backward(params: PyTree, both: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        kept, y = both
        dparams, dx = leaf.backward(params, kept, dy)
        at = back[...] - 1
        back[...] = at
        dy_rows[at] = sums(dy)
        if alike:
            units[at] = _units(y, dy, dx)
        return dparams, dx

    return dataclasses.replace(leaf, forward=forward, backward=backward, rebuild=None)


def _units(y: Any, dy: Any, dx: Any) -> Any:
    """Flat, of so many; dead, of so many."""
    arrays = [a for a in (y, dy, dx) if hasattr(a, "dtype") and is_float(a) and a.ndim]
    if len(arrays) < 3 or not y.shape == dy.shape == dx.shape:
        return jnp.zeros(4, jnp.float32)
    flat, counts = passes_little(y, dy, dx)
    dead = (y == 0).all(tuple(range(y.ndim - 1))) & (y.size > 0)  # of no examples none is
    told = (flat.sum(), counts.sum(), dead.sum(), dead.size)
    return jnp.stack([jnp.asarray(each, jnp.float32) for each in told])


def updates_of(objective: Layer, before: PyTree, after: PyTree) -> list[tuple[Any, Any]]:
    """Of each part, by copies: of what an update added to its params, and the squares of these."""
    found: list[tuple[Any, Any]] = []

    def look(node: Layer, old: PyTree, new: PyTree, copies: int, depth: int) -> None:
        if not node.children:
            found.append(_by_copy(old, new, copies, depth))
            return
        if old is None or (node.shares and not node.hands_on):
            # Which is whose, nobody can tell; but all are those of a leaf alone, as an adapter's.
            alone = len(node.children) == 1 and not node.children[0].children
            olds, news = ((old,), (new,)) if alone else ((None,) * len(node.children),) * 2
        else:
            olds, news = node.split(old), node.split(new)
        n, deeper = copies * (node.copies or 1), depth + (node.copies is not None)
        for child, o, w in zip(node.children, olds, news, strict=True):
            look(child, o, w, n, deeper)

    look(objective, before, after, 1, 0)
    return found


def _by_copy(old: PyTree, new: PyTree, copies: int, depth: int) -> tuple[Any, Any]:
    total = jnp.zeros((copies, SIZE), jnp.float32)
    squares = jnp.zeros(copies, jnp.float32)
    leaves = zip(jax.tree.leaves(trained(old)), jax.tree.leaves(trained(new)), strict=True)
    for before, after in leaves:
        if is_float(before):
            flat = copies, math.prod(before.shape[depth:])
            total += jax.vmap(sums)((after - before).reshape(flat))
            squares += jnp.sum(jnp.square(before.astype(jnp.float32).reshape(flat)), axis=1)
    return total, squares
