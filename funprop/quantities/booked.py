"""Norms and the weighted sum of every example's gradient by one backward pass: book-keeping.

The pass that finds the norms has in hand, at each layer, all that the layer's part of the sum is
made of. It is kept in the place of `dparams`, beside the squares; once the norms are known, and
from them the factors, each layer's sum is one product, with no second pass down the model.
Source: Bu et al., arXiv:2210.00038.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layer import Layer, leaf_of
from funprop.params.frozen import trained
from funprop.params.tapped import Tapped, untap
from funprop.quantities.closed_form import closed_of, sum_squares
from funprop.quantities.each_example import gradients, is_trained, keeping, without_input
from funprop.quantities.shared_params import Both, Place, expansion, plan
from funprop.quantities.squared_norms import gradients_of, is_shared, norm_of_sum
from funprop.quantities.weighted import each_times, weighted_sum_of
from funprop.trees import nbytes

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

    from funprop.quantities.each_example import Kept


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


def booked(layer: Layer, budget: int) -> Layer:
    """The same layer, whose backward gives a `Booked` in the place of each part's `dparams`.

    Of each part, what is smaller: every example's gradient, from which both the norms and the sum
    are then made, or residuals and `dy`. The gradients of a weight are smaller where there are many
    places an example; and there they are less arithmetic than the norms by `outer_squares` too.

    Args:
      layer: as for `squared_norms`.
      budget: bytes that a loss may keep beside; the other parts keep what they must.
    """

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return over(_standing(layer, residuals)).backward(params, residuals, dy)

    def over(standing: set[Place]) -> Layer:
        def of(place: Place) -> Callable[[Layer], Layer]:
            return functools.partial(_booked, budget=budget, stands=place in standing)

        return _over_leaves(layer, of)

    return leaf_of(layer, forward=over(set()).forward, backward=backward)


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
    return sum(_of_all_copies(part.squares) for part in parts)  # pyright: ignore


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
        one = functools.partial(_of_kept, leaf, factors)
        for _ in range(lead):
            one = functools.partial(_for_each_copy, one)
        return one(params, got.kept, left.residuals if isinstance(left, Left) else None)

    return _over_parts(layer, of_part, params, found, residuals=residuals)


def _of_all_copies(squares: Float[Array, "*copies b"]) -> Float[Array, " b"]:
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


def _for_each_copy(one: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    return jax.lax.map(lambda copy: one(*copy), trees)


# ------------------------------------------------------------------------- the parts of a model


def _over_leaves(
    node: Layer, how: Callable[[Place], Callable[[Layer], Layer]], at: Place = ()
) -> Layer:
    if not node.children or node.shares:
        return how(at)(node)
    inside = (_over_leaves(child, how, (*at, i)) for i, child in enumerate(node.children))
    return node.rebuild(*inside)


def _over_parts(
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
    trees = layer.split(params), layer.split(found), _split(layer, residuals)
    parts = [
        _over_parts(child, one, *own, at=(*at, i), lead=lead)
        for i, (child, *own) in enumerate(zip(layer.children, *trees, strict=True))
    ]
    return layer.join(params, parts)


def _split(layer: Layer, residuals: PyTree) -> Any:
    """The residuals of each child, by the mirror law; `None` where they are not kept (`remat`)."""
    n = len(layer.children)
    kept = isinstance(residuals, tuple) and len(residuals) >= n
    return residuals[:n] if kept else (None,) * n


def _standing(layer: Layer, residuals: PyTree, at: Place = ()) -> set[Place]:
    """The places of the leaves that find in the whole's residuals what they left there; not where
    a rewrite has it in another memory (`offload`)."""
    if not layer.children or layer.shares:
        here = jax.tree.leaves(residuals) if isinstance(residuals, Left) else [None]
        return set() if any(map(_is_away, here)) else {at}
    each = enumerate(zip(layer.children, _split(layer, residuals), strict=True))
    return {place for i, (child, own) in each for place in _standing(child, own, (*at, i))}


def _is_away(leaf: Any) -> bool:
    return leaf is None or jax.typeof(leaf).memory_space != jax.memory.Space.Device


def _is_booked(node: Any) -> bool:
    return isinstance(node, Booked)


# -------------------------------------------------------------------------- what becomes of a leaf


def _booked(leaf: Layer, *, budget: int, stands: bool) -> Layer:
    known = closed_of(leaf)
    if is_shared(leaf):
        return _marking(_shared(leaf, budget, stands))
    if known is None:
        return _marking(_unknown(leaf, stands))
    if known.booked is not None:
        forward, backward = known.booked.passes(budget)

        def noted(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[Booked, PyTree]:
            squares, kept, dx = backward(params, residuals, dy)
            return Booked(squares, kept), dx

        return _marking(leaf_of(leaf, forward=forward, backward=noted))

    def closed(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[Booked, PyTree]:
        if known.each is not None:
            made = jax.eval_shape(known.each, params, residuals, dy)
            if nbytes(made[0]) <= nbytes((residuals, dy)):
                grads, dx = known.each(params, residuals, dy)
                return Booked(sum_squares(grads), Made(grads)), dx
        squares, dx = known.squares(params, residuals, dy)
        return Booked(squares, Rows(None if stands else residuals, dy)), dx

    return _marking(leaf_of(leaf, backward=closed))


def _marking(leaf: Layer) -> Layer:
    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, Left]:
        y, residuals = leaf.forward(params, x, key)
        return y, Left(residuals)

    def backward(params: PyTree, residuals: Left, dy: PyTree) -> tuple[PyTree, PyTree]:
        return leaf.backward(params, residuals.residuals, dy)

    return leaf_of(leaf, forward=forward, backward=backward)


def _unknown(leaf: Layer, stands: bool) -> Layer:
    """`leaf`, of which no closed form is known: each example's gradient is made."""

    def backward(params: PyTree, kept: Kept, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not is_trained(params):
            return leaf.backward(params, kept, dy)
        dparams, dx = leaf.backward(params, kept.residuals, dy)
        _, seen = untap(dparams)
        grads = gradients(leaf, params, kept, dy)
        rows = Rows(None if stands else kept.residuals, dy)
        many = all(d.ndim for d in jax.tree.leaves(dy)) and nbytes(grads) > nbytes((kept, dy))
        found = Booked(sum_squares(grads), rows if many else Each(grads))
        return (found if seen is None else Tapped(found, seen)), dx

    return keeping(leaf, backward)


def _made(leaf: Layer) -> Layer:
    """`leaf` with each example's gradient, of which others make the norms."""
    inner = gradients_of(leaf)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        grads, dx = inner.backward(params, residuals, dy)
        return (Booked(None, Each(grads)) if is_trained(params) else grads), dx

    return leaf_of(inner, backward=backward)


def _shared(node: Layer, budget: int, stands: bool) -> Layer:
    """`node`, which shares params: what its child gives is caught on its way, as by
    `squared_norms`."""

    def over(params: PyTree, standing: set[Place], caught: list[Any]) -> Layer:
        how = plan(node, params).how

        def of(place: Place) -> Callable[[Layer], Layer]:
            if how[place] == "gradients":
                return lambda leaf: _marking(_made(leaf))
            own = stands and place in standing and how[place] != "both"
            return functools.partial(_booked, budget=budget, stands=own)

        child = _over_leaves(node.children[0], of)

        def backward(expanded: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
            found, dx = child.backward(expanded, residuals, dy)
            caught.append((expanded, found))
            return jax.tree.map(jnp.zeros_like, trained(expanded)), dx

        return node.rebuild(leaf_of(child, backward=backward))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return over(params, set(), []).forward(params, x, key)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        caught: list[Any] = []
        standing = _standing(node.children[0], residuals[0])
        _, dx = over(params, standing, caught).backward(params, residuals, dy)
        ((expanded, found),) = caught
        what = plan(node, params)
        tied = {place for pair in what.tied for place in pair}
        of = functools.partial(_plain, tied)
        plain = _over_parts(node.children[0], of, expanded, found, residuals=None)
        return Booked(norm_of_sum(node, params, expanded, plain, what), Shared(found)), dx

    return leaf_of(node, forward=forward, backward=backward)


def _plain(
    tied: set[Place], leaf: Layer, at: Place, lead: int, params: PyTree, got: Any, _: None
) -> PyTree:
    """What `squared_norms` would have given, or what it asks of parts of which more is wanted."""
    if not isinstance(got, Booked):
        return got
    if at in tied:
        return Both(got.squares, (params, got.kept.residuals, got.kept.dy))
    if got.squares is None:  # the gradients, with the examples in front of the copies
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, lead, 0), got.kept.grads)
    return _of_all_copies(got.squares)
