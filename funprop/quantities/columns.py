"""A backward pass of many cotangents at once, with a quantity of theirs in the place of `dparams`.

Backward is linear in `dy`, so a batch of cotangents, *columns*, goes down the model as one: each
leaf maps its own backward over them, and combinators, which only hand cotangents on, know nothing
of it. The loss starts them: its own cotangent, or the columns of a square root of its Hessian. What
a leaf with params makes of those that reach it is the quantity: by a closed form where the leaf
says the two sides of its gradient (`Closed.outer`), else from every example's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.arguments import check_given, check_trainable, objective_meant, run
from funprop.layer import Layer, check_layer, leaf_of
from funprop.located import check_params
from funprop.params.frozen import trained
from funprop.params.tapped import untap
from funprop.properties import mixing, refuse_mixing
from funprop.quantities.closed_form import closed_of
from funprop.quantities.each_example import is_trained, without_input
from funprop.quantities.squared_norms import gradients_of
from funprop.trees import Sum, add

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

Start = Callable[[Layer, Any, Sum], Any]


class Quantity(NamedTuple):
    """What stands in the place of a part's `dparams`.

    Attributes:
      closed: `(params, rows, d) -> found` with the two sides of the gradient, `[b, t, i]` and
        `[c, b, t, o]` of `c` columns.
      made: `(params, grads) -> found` with the gradient of every example for one column, the
        examples first; it is summed over columns.
    """

    closed: Callable[[Any, Float[Array, "b t i"], Float[Array, "c b t o"]], PyTree]
    made: Callable[[Any, PyTree], PyTree]


def its_own(loss: Layer, residuals: PyTree, dy: Sum) -> PyTree:
    """The loss's own cotangents of its inputs, as one column: the gradient's."""
    return jax.tree.map(lambda d: d[None], loss.backward((), residuals, dy)[1])


def with_columns(
    who: str,
    objective: Layer,
    quantity: Quantity,
    params: PyTree,
    batch: PyTree,
    key: Any,
    start: Start = its_own,
) -> tuple[PyTree, Sum]:
    """What the quantity gives in the place of params, and the loss.

    Args:
      who: asks, in messages.
      objective: a layer from a batch to a `Sum`.
      quantity: of every part that has params.
      params, batch, key: as of any grad_fn.
      start: `(loss, residuals, dy) -> dx`: the columns that a loss without params starts.

    Raises:
      TypeError: `objective` gives no `Sum`.
      ValueError: with this key a layer mixes examples.
    """
    refuse_mixing(who, mixing(objective, key), sharded=False)
    return one_pass(_over_leaves(objective, quantity, start), objective, params, batch, key)


def one_pass(
    rewritten: Layer, objective: Layer, params: PyTree, batch: PyTree, key: Any
) -> tuple[PyTree, Sum]:
    """What the backward pass of a rewritten objective gives in the place of params, and the loss.

    Raises: as `with_columns`.
    """
    check_given(batch, key, None)
    with objective_meant(objective, params, batch):
        check_params(objective, params, batch)
        check_trainable(params)
        loss, residuals = run(rewritten, params, batch, key)
    dy = Sum(jnp.ones_like(loss.total), jnp.zeros_like(loss.weight))
    return untap(rewritten.backward(params, residuals, dy)[0])[0], loss


def check_objective(objective: Any) -> None:
    """Raise a `TypeError` where it is no layer."""
    check_layer("objective", objective, "objective(model, loss)")


def over_leaves(node: Layer, how: Callable[[Layer], Layer]) -> Layer:
    """`how` of every leaf, and of every node that shares params."""
    if not node.children or node.shares:
        return how(node)
    return node.rebuild(*(over_leaves(child, how) for child in node.children))


def _over_leaves(objective: Layer, quantity: Quantity, start: Start) -> Layer:
    return over_leaves(objective, lambda leaf: _columned(leaf, quantity, start))


def _columned(leaf: Layer, quantity: Quantity, start: Start) -> Layer:
    made = gradients_of(leaf)
    known = closed_of(leaf)
    outer = known.outer if known is not None else None

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return (leaf if outer else made).forward(params, x, key)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        if isinstance(dy, Sum):
            return _of_loss(params, residuals, dy)
        if not is_trained(params):
            kept = without_input(residuals)
            return trained(params), _each(lambda d: leaf.backward(params, kept, d)[1], dy)
        if outer is None:
            return _in_turn(lambda d: _made(params, residuals, d), dy)
        rows, d = _sides(outer, residuals, dy)
        dx = _each(lambda d: leaf.backward(params, residuals, d)[1], dy)
        return quantity.closed(params, rows, d), dx

    def _of_loss(params: PyTree, residuals: PyTree, dy: Sum) -> tuple[PyTree, PyTree]:
        if not is_trained(params):
            kept = without_input(residuals)
            return trained(params), start(leaf, kept, dy)
        found, dx = _made(params, residuals, dy)
        if start is not its_own:
            raise ValueError(
                f"the loss must have no params for this, got {leaf.name}: use a layer of them and "
                "softmax_cross_entropy"
            )
        return found, jax.tree.map(lambda d: d[None], dx)

    def _made(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        grads, dx = made.backward(params, residuals, dy)
        return quantity.made(params, grads), dx

    return leaf_of(leaf, forward=forward, backward=backward)


def _sides(outer: Any, residuals: PyTree, dy: Any) -> tuple[Any, Any]:
    """The rows, which are the same for all columns, and the other side of each."""
    return outer(residuals, dy[0])[0], _each(lambda d: outer(residuals, d)[1], dy)


def _each(one: Callable[[PyTree], PyTree], dy: PyTree) -> PyTree:
    """`one` of every column; a single one needs no map."""
    if len(jax.tree.leaves(dy)[0]) > 1:
        return jax.vmap(one)(dy)
    return jax.tree.map(lambda d: d[None], one(jax.tree.map(lambda d: d[0], dy)))


def _in_turn(one: Callable[[PyTree], tuple[PyTree, PyTree]], dy: PyTree) -> tuple[PyTree, PyTree]:
    """What `one` finds of every column, summed one after the other, and each column's `dx`."""
    found, dx = one(jax.tree.map(lambda d: d[0], dy))
    first = jax.tree.map(lambda d: d[None], dx)
    if len(jax.tree.leaves(dy)[0]) == 1:
        return found, first
    rest = jax.tree.map(lambda d: d[1:], dy)
    found, others = jax.lax.scan(lambda total, d: _added(total, one(d)), found, rest)
    return found, jax.tree.map(lambda *d: jnp.concatenate(d), first, others)


def _added(total: PyTree, one: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    return add(total, one[0]), one[1]
