"""What an update does to each leaf of params."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from funprop.checks import described
from funprop.explaining.stats import Stats, stats
from funprop.gradients import Gradient
from funprop.layer import Layer
from funprop.params.frozen import trained
from funprop.params.roles import roles
from funprop.params.selection import Place, by_name
from funprop.steps import TrainState, step

if TYPE_CHECKING:
    from funprop.typing import PyTree

RATE = 0.1  # of plain SGD, where no optimizer is given


class Update(NamedTuple):
    """What an update does to one leaf of params.

    Attributes:
      name: of the leaf, as patterns mean it.
      place: of the layer that it belongs to: which child of which.
      role: weight, bias, scale, table or statistic.
      trained: whether it is.
      weight: the numbers before.
      gradient: of the mean over the batch's terms; `None` where it is not trained.
      change: what is added.
      after: the numbers after.
      ratio: the norm of the change to that of the weight.
    """

    name: str
    place: Place
    role: str
    trained: bool
    weight: Stats
    gradient: Stats | None
    change: Stats
    after: Stats
    ratio: float


def applied(gradient: Gradient, params: PyTree, optimizer: Any, opt_state: Any = None) -> PyTree:
    """The params after a step of the optimizer, as `step` takes it."""
    optimizer = optax.sgd(RATE) if optimizer is None else optimizer

    def known(params: PyTree, batch: PyTree, key: Any = None) -> Gradient:
        return gradient

    one = step(known, optimizer)
    state: TrainState = one.init(params, None)
    if opt_state is not None:
        if jax.tree.structure(opt_state) != jax.tree.structure(state.opt_state):
            raise ValueError(
                "opt_state must be the optimizer's for these params, as optimizer.init(params) is, "
                f"got {described(opt_state)}"
            )
        state = state._replace(opt_state=opt_state)
    assert one.propose is not None
    return one.propose(state, ())[0].params


def updates_of(
    objective: Layer, gradient: Gradient, params: PyTree, after: PyTree
) -> tuple[Update, ...]:
    """A row for each leaf of params."""
    weight = float(gradient.weight) or 1.0
    grads, new = by_name(gradient.grads), by_name(after)
    said = dict(zip(by_name(params), jax.tree.leaves(roles(params)), strict=True))
    learn = set(by_name(trained(params)))
    owners = _owners(objective, params)
    rows = []
    for name, leaf in by_name(params).items():
        before, then = (np.asarray(a, np.float64) for a in (leaf, new[name]))
        change = stats(then - before)
        size = stats(leaf)
        grad = stats(np.asarray(grads[name], np.float64) / weight) if name in grads else None
        ratio = change.norm / size.norm if size.norm else float("inf") if change.norm else 0.0
        told = (said[name], name in learn, size, grad, change, stats(new[name]), ratio)
        rows.append(Update(name, owners[name], *told))
    return tuple(rows)


def _owners(objective: Layer, params: PyTree) -> dict[str, Place]:
    """To which layer each leaf belongs, by the mirror law; those that are shared, to the node that
    shares them."""
    found: dict[str, Place] = {}

    def walk(layer: Layer, names: Any, at: Place) -> None:
        if layer.children and (not layer.shares or layer.hands_on):
            for i, (child, part) in enumerate(zip(layer.children, layer.split(names), strict=True)):
                walk(child, part, (*at, i))
        found.update((name, at) for name in jax.tree.leaves(names) if name not in found)

    tree = jax.tree.structure(params)
    walk(objective, tree.unflatten(list(by_name(params))), ())
    return found


After = Callable[[Gradient], Any]
