"""Which params of a node that shares them are used once and unchanged, and which are not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layer import Layer, leaf_of
from funprop.params.frozen import trained
from funprop.params.selection import Place
from funprop.params.tapped import untap
from funprop.quantities.closed_form import closed_of

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Part(NamedTuple):
    """A leaf of a model, or a node that shares params.

    Attributes:
      place: which child of which child it is.
      layer: itself.
      tree: what stands in its place of a tree like the model's params.
      lead: how many axes of copies its params have in front.
    """

    place: Place
    layer: Layer
    tree: Any
    lead: int


def parts(layer: Layer, tree: PyTree, place: Place = (), lead: int = 0) -> Iterator[Part]:
    """The parts of a model, from the first to the last, by the mirror law."""
    if not layer.children or layer.shares:
        yield Part(place, layer, tree, lead)
        return
    for i, (child, sub) in enumerate(zip(layer.children, layer.split(tree), strict=True)):
        yield from parts(child, sub, (*place, i), lead + (layer.copies is not None))


def map_parts(node: Layer, how: Callable[[Place, Layer], Layer], at: Place = ()) -> Layer:
    """The same model with `how(place, part)` of every part."""
    if not node.children or node.shares:
        return how(at, node)
    return node.rebuild(*(map_parts(c, how, (*at, i)) for i, c in enumerate(node.children)))


def over_copies(one: Callable[..., PyTree], lead: int) -> Callable[..., PyTree]:
    """`one` of every copy, where what it is given has `lead` axes of copies in front."""
    for _ in range(lead):
        one = functools.partial(_for_each_copy, one)
    return one


def _for_each_copy(one: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    return jax.lax.map(lambda copy: one(*copy), trees)


def expansion(node: Layer) -> tuple[Callable[..., PyTree], Callable[..., PyTree]]:
    """`params -> expanded` and its pullback `(params, dexpanded) -> dparams`, of a node that makes
    its child's params from its own: what a child that echoes its params and `dy` tells."""

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return params, ()

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return dy, None

    echo = node.rebuild(Layer(node.children[0].init, forward, backward, "echo"))

    def expand(params: PyTree) -> PyTree:
        return echo.forward(params, ())[0]

    def pull(params: PyTree, dexpanded: PyTree) -> PyTree:
        return echo.backward(params, echo.forward(params, ())[1], dexpanded)[0]

    return expand, pull


def catching(
    node: Layer,
    child_of: Callable[[PyTree], Layer],
    then: Callable[[PyTree, PyTree, PyTree], PyTree],
) -> Layer:
    """`node` with `then(params, expanded, found)` in the place of `dparams`: `found` is what its
    child, `child_of(params)`, gives in the place of those of the expanded params.

    The pullback of `node` takes cotangents alone: it is given zeros, and what the child gave is
    caught on its way.
    """

    def over(params: PyTree, caught: list[Any]) -> Layer:
        child = child_of(params)

        def backward(expanded: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
            found, dx = child.backward(expanded, residuals, dy)
            caught.append((expanded, untap(found)[0]))
            return jax.tree.map(jnp.zeros_like, trained(expanded)), dx

        return node.rebuild(leaf_of(child, backward=backward))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return over(params, []).forward(params, x, key)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        caught: list[Any] = []
        _, dx = over(params, caught).backward(params, residuals, dy)
        ((expanded, found),) = caught
        return then(params, expanded, found), dx

    return leaf_of(node, forward=forward, backward=backward)


def pulled(
    node: Layer, params: PyTree, expanded: PyTree, made: Callable[[Part], PyTree | None]
) -> PyTree:
    """The gradients of `params`, of each example, as far as they come through the parts of which
    `made` gives the gradients of each example, the examples first; `None` of one that has no say.
    """
    pull, values, axes = expansion(node)[1], [], []
    for part in parts(node.children[0], expanded):
        own = trained(part.tree)  # what is not has no gradient, nor a zero in its place
        grads = made(part)
        of_none = jax.tree.map(jnp.zeros_like, own)
        values += jax.tree.leaves(of_none if grads is None else trained(grads))
        axes += [None if grads is None else 0] * len(jax.tree.leaves(own))
    tree = jax.tree.structure(trained(expanded))
    return jax.vmap(lambda values: pull(params, tree.unflatten(values)), (axes,))(values)


class Plan(NamedTuple):
    """What to ask of each part of a node that shares params, for each example alone.

    Attributes:
      how: by the part's place: "squares", its squared norms; "gradients", its gradient; "both",
        squared norms and all that their closed form is made of.
      tied: pairs of places with one table between them, which the first looks rows up in.
      own: of each part whose trained params are params of the node, used there alone, those: a tree
        of their numbers among the node's.
    """

    how: dict[Place, str]
    tied: list[tuple[Place, Place]]
    own: dict[Place, Any]


class Both(NamedTuple):
    """What a part gives of which "both" is asked: `known` is `(params, residuals, dy)`."""

    squares: Any
    known: Any


def plan(node: Layer, params: PyTree, *, all_made: bool = False) -> Plan:
    """The plan for a node of one child, for params like `params`; or, with `all_made`, the one by
    which each example's gradient of `params` is made."""
    traced, expanded = jax.make_jaxpr(expansion(node)[0], return_shape=True)(params)
    out = traced.jaxpr.outvars
    numbers = jax.tree.unflatten(jax.tree.structure(params), range(len(traced.jaxpr.invars)))
    given = [traced.jaxpr.invars[i] for i in jax.tree.leaves(trained(numbers))]
    changed = [atom for eqn in traced.jaxpr.eqns for atom in eqn.invars]

    def uses(i: int) -> list[int] | None:
        """Where what is at place `i` goes unchanged; `None` if it is made, or is not trained."""
        if not any(out[i] is v for v in given) or any(out[i] is v for v in changed):
            return None
        return [j for j, v in enumerate(out) if v is out[i]]

    def alone(places: list[int]) -> bool:
        return all(uses(i) == [i] for i in places)

    numbered = jax.tree.unflatten(jax.tree.structure(expanded), range(len(out)))
    found = [(p, jax.tree.leaves(trained(p.tree))) for p in parts(node.children[0], numbered)]
    how = {
        p.place: "squares" if alone(places) and not all_made else "gradients" for p, places in found
    }
    tied = []
    for (a, of_a), (b, of_b) in itertools.permutations(found, 2):
        if all_made or a.lead or b.lead or not of_a or not of_b:
            continue
        one, two = closed_of(a.layer), closed_of(b.layer)
        same = uses(of_a[0]) == sorted([of_a[0], of_b[0]])
        if same and one and two and one.looked_up and two.rows and alone(of_a[1:] + of_b[1:]):
            how[a.place] = how[b.place] = "both"
            tied.append((a.place, b.place))
    number = {v: i for i, v in enumerate(traced.jaxpr.invars)}
    own = {
        p.place: jax.tree.map(lambda i: number[out[i]], trained(p.tree))
        for p, places in found
        if places and alone(places)
    }
    return Plan(how, tied, own)


class Division(NamedTuple):
    """The trained params of a node that shares some, part by part, each a tree of their numbers.

    Attributes:
      whole: of all.
      own: of each part of the node's child whose params stand there as they are, used there alone.
      others: what is left, in the largest pieces.
    """

    whole: Any
    own: dict[Place, Any]
    others: list[Any]


def divided(node: Layer, params: PyTree) -> Division:
    """Which trained params of `node` are those of one part, and which are not."""
    leaves, tree = jax.tree.flatten(params)
    whole = trained(tree.unflatten(range(len(leaves))))
    own, there, others = plan(node, params).own, [], []
    placed(whole, {key_of(ids): ids for ids in own.values()}, lambda ids: None, there.append)
    own = {place: ids for place, ids in own.items() if key_of(ids) in map(key_of, there)}
    placed(whole, {key_of(ids): ids for ids in own.values()}, others.append)
    return Division(whole, own, others)


def placed(
    whole: PyTree,
    values: Mapping[Any, Any],
    other: Callable[[PyTree], Any],
    found: Callable[[Any], Any] = lambda value: value,
) -> PyTree:
    """`whole`, a tree of numbers, with `found(value)` in the place of every part that `values` has
    one of (see `key_of`), and `other(part)` in that of the largest of which it has nothing."""
    key = key_of(whole)
    if key in values:
        return found(values[key])
    inside = any(set(key[0]) & set(numbers) for numbers, _ in values)
    if not inside or isinstance(whole, int):
        return other(whole) if key[0] else whole
    parts, tree = jax.tree.flatten(whole, is_leaf=lambda part: part is not whole)
    return tree.unflatten([placed(part, values, other, found) for part in parts])


def key_of(numbers: PyTree) -> tuple[tuple[int, ...], Any]:
    """By what `placed` finds a part."""
    return tuple(jax.tree.leaves(numbers)), jax.tree.structure(numbers)
