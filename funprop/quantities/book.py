"""What a backward pass keeps of every example's gradient, and their weighted sum made of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.layer import Layer
from funprop.params.selection import Place
from funprop.quantities.closed_form import closed_of
from funprop.quantities.each_example import without_input
from funprop.quantities.shared_params import expansion, over_copies
from funprop.quantities.weighted import each_times, weighted_sum_of
from funprop.residuals import of_children

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree


@functools.partial(jax.tree_util.register_dataclass, data_fields=["residuals"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Left:
    """A leaf's residuals, marked: to be found again where combinators put them."""

    residuals: Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["squares", "kept"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Booked:
    """What stands in the place of a leaf's `dparams`; within a `repeat`, for all copies at once.

    Attributes:
      squares: the squared norm of each example's, `[*copies, b]`.
      kept: what their weighted sum is made of.
    """

    squares: Any
    kept: Any


class Each(NamedTuple):
    """Every example's gradient itself, `[*copies, b, ...]`."""

    grads: Any


class Made(NamedTuple):
    """The same by a closed form, in float32 at least."""

    grads: Any


class Rows(NamedTuple):
    """All that a backward pass takes: it is linear in `dy`, whose rows are the examples'. The
    residuals are `None` where they stand at the leaf's place of the whole's."""

    residuals: Any
    dy: Any


class Shared(NamedTuple):
    """Of a node that shares params: what is in the place of those that they are expanded to."""

    found: Any


def without_marks(residuals: PyTree) -> PyTree:
    """`residuals` as the layers themselves keep them."""

    def is_left(node: Any) -> bool:
        return isinstance(node, Left)

    return without_input(
        jax.tree.map(lambda r: r.residuals if is_left(r) else r, residuals, is_leaf=is_left)
    )


def squares_of(found: PyTree) -> Float[Array, " b"]:
    """The squared norms of the whole, from what `booked` gives."""
    parts = jax.tree.leaves(found, is_leaf=_is_booked)
    return sum(of_all_copies(part.squares) for part in parts)  # pyright: ignore


def sum_of(
    layer: Layer, params: PyTree, residuals: PyTree, found: PyTree, factors: Float[Array, " b"]
) -> PyTree:
    """The sum of every example's gradient times its factor, from what `booked(layer)` keeps and
    gives."""

    def of_part(leaf: Layer, at: Place, lead: int, params: PyTree, got: Any, left: Any) -> PyTree:
        if not isinstance(got, Booked):
            return got  # of what is not trained
        if isinstance(got.kept, Each):
            return weighted_sum_of(got.kept.grads, factors, axis=lead)
        if isinstance(got.kept, Made):
            summed = weighted_sum_of(got.kept.grads, factors, axis=lead)
            return jax.tree.map(lambda d, p: d.astype(p.dtype), summed, params)
        one = over_copies(functools.partial(_of_kept, leaf, factors), lead)
        return one(params, got.kept, left.residuals if isinstance(left, Left) else None)

    return over_parts(layer, of_part, params, found, residuals=residuals)


def of_all_copies(squares: Float[Array, "*copies b"]) -> Float[Array, " b"]:
    return squares.sum(tuple(range(squares.ndim - 1)))


def _of_kept(
    leaf: Layer, factors: Float[Array, " b"], params: PyTree, kept: Any, residuals: PyTree
) -> PyTree:
    if isinstance(kept, Shared):
        expand, pull = expansion(leaf)
        inside = residuals and residuals[0]
        return pull(params, sum_of(leaf.children[0], expand(params), inside, kept.found, factors))
    if isinstance(kept, Rows):
        dy = jax.tree.map(lambda d: each_times(d, factors), kept.dy)
        own = without_input(residuals if kept.residuals is None else kept.residuals)
        return leaf.backward(params, own, dy)[0]  # XLA leaves out what is for `dx`
    return closed_of(leaf).booked.summed(params, kept, factors)  # pyright: ignore


def over_parts(
    layer: Layer,
    one: Callable[..., PyTree],
    params: PyTree,
    found: PyTree,
    residuals: PyTree,
    at: Place = (),
    lead: int = 0,
) -> PyTree:
    """`one(leaf, at, lead, *what stands in its place of the trees)`, assembled as params: the leaf
    is at the place `at`, and `lead` axes of copies are in front of what is its own."""
    if not layer.children or layer.shares:
        return one(layer, at, lead, params, found, residuals)
    lead += layer.copies is not None
    trees = layer.split(params), layer.split(found), of_children(layer, residuals)
    parts = [
        over_parts(child, one, *own, at=(*at, i), lead=lead)
        for i, (child, *own) in enumerate(zip(layer.children, *trees, strict=True))
    ]
    return layer.join(params, parts)


def _is_booked(node: Any) -> bool:
    return isinstance(node, Booked)
