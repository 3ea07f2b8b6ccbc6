"""A backward pass of many cotangents at once, with a quantity of theirs in the place of `dparams`.

Backward is linear in `dy`, so a batch of cotangents, *columns*, goes down the model as one: each
leaf maps its own backward over them, and combinators, which only hand cotangents on, know nothing
of it. The loss starts them: its own cotangent, or the columns of a square root of its Hessian. What
a leaf with params makes of those that reach it is the quantity: by a closed form where the leaf
says the two sides of its gradient (`Closed.outer`), else from every example's gradient.
"""

from __future__ import annotations

import functools
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
from funprop.quantities.curvature import Output, output_of
from funprop.quantities.each_example import is_trained, without_input
from funprop.quantities.shared_columns import How, of_shared, seeing
from funprop.quantities.shared_params import map_parts
from funprop.quantities.squared_norms import gradients_of, is_shared
from funprop.quantities.turns import each_column, in_turn
from funprop.trees import Sum

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

Start = Callable[[Layer, Any, Sum], Any]


class Quantity(NamedTuple):
    """What stands in the place of a part's `dparams`.

    Attributes:
      closed: `(params, rows, d) -> found` with the two sides of the gradient, `[b, t, i]` and
        `[c, b, t, o]` of `c` columns.
      by_moment: `(params, rows, d, moment) -> found`, in the place of `closed` where the layer has
        another way to the rows' second moment (`Closed.moment`).
      made: `(params, grads) -> found` with the gradient of every example for one column, the
        examples first; it is summed over columns.
    """

    closed: Callable[[Any, Float[Array, "b t i"], Float[Array, "c b t o"]], PyTree]
    made: Callable[[Any, PyTree], PyTree]
    by_moment: Callable[..., PyTree] | None = None


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


def _over_leaves(objective: Layer, quantity: Quantity, start: Start) -> Layer:
    def output(leaf: Layer) -> Output | None:
        """Of a loss with params, what the quantity is of, where that is of outputs."""
        return None if start is its_own else output_of(leaf)

    def meant(leaf: Layer) -> Layer:
        two = output(leaf)
        return leaf if two is None else two.layer

    def rewritten(leaf: Layer, take: Callable[[Layer], Layer]) -> Layer:
        two = output(leaf)
        if two is None:
            return _columned(leaf, take(leaf), start)
        return _in_two(leaf, two, rewritten(two.layer, take), rewritten(two.loss, take))

    def of(leaf: Layer) -> Layer:
        return rewritten(leaf, of_shared_or_not)

    def of_shared_or_not(leaf: Layer) -> Layer:
        return of_shared(leaf, how) if is_shared(leaf) else _of_leaf(leaf, quantity)

    how = How(of, lambda leaf: rewritten(leaf, seeing), meant, quantity.made)
    return map_parts(objective, lambda place, leaf: of(leaf))


def _in_two(whole: Layer, output: Output, layer: Layer, loss: Layer) -> Layer:
    """A loss with params, as a layer with them and a loss of what that gives."""

    def forward(params: PyTree, batch: Any, key: Any = None) -> tuple[Sum, PyTree]:
        x, targets, *weights = batch
        y, kept = layer.forward(params, output.cleaned(x, *weights), key)
        total, kept_of_loss = loss.forward((), (y, targets, *weights), key)
        return total, (kept, kept_of_loss)

    def backward(params: PyTree, residuals: PyTree, dy: Sum) -> tuple[PyTree, PyTree]:
        kept, kept_of_loss = residuals
        _, (d, *rest) = loss.backward((), kept_of_loss, dy)
        found, dx = layer.backward(params, kept, d)
        return found, (dx, *rest)

    return leaf_of(whole, forward=forward, backward=backward)


def _columned(leaf: Layer, taking: Layer, start: Start) -> Layer:
    """`leaf` whose backward takes columns as `taking` does, where it has params; a loss starts
    them."""

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        if is_trained(params):
            if not isinstance(dy, Sum) or is_shared(leaf):
                return taking.backward(params, residuals, dy)
            if start is not its_own:
                raise ValueError(
                    "the loss must have no params for this, or be linear_cross_entropy without "
                    f"z_loss, got {leaf.name}: use a layer of them and softmax_cross_entropy"
                )
            return taking.backward(params, residuals, jax.tree.map(lambda d: d[None], dy))
        kept = without_input(residuals)
        if isinstance(dy, Sum):
            return trained(params), start(leaf, kept, dy)
        return trained(params), each_column(lambda d: leaf.backward(params, kept, d)[1], dy)

    return leaf_of(taking, backward=backward)


def _of_leaf(leaf: Layer, quantity: Quantity) -> Layer:
    """`leaf` with the quantity in the place of its `dparams`, from columns."""
    made, known = gradients_of(leaf), closed_of(leaf)
    outer = known.outer if known is not None else None

    def by_outer(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        rows = outer(residuals, dy[0])[0]  # pyright: ignore  # the same for all columns
        d = each_column(lambda d: outer(residuals, d)[1], dy)  # pyright: ignore
        dx = each_column(lambda d: leaf.backward(params, residuals, d)[1], dy)
        if quantity.by_moment is None or known.moment is None:  # pyright: ignore
            return quantity.closed(params, rows, d), dx
        moment = functools.partial(known.moment, residuals)  # pyright: ignore
        return quantity.by_moment(params, rows, d, moment), dx

    def by_example(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        def one(d: PyTree) -> tuple[PyTree, PyTree]:
            grads, dx = made.backward(params, residuals, d)
            return quantity.made(params, grads), dx

        return in_turn(one, dy)

    return leaf_of(leaf, backward=by_outer) if outer else leaf_of(made, backward=by_example)
