"""The same of an update: the state before it and its batch tell all that its gradient was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.checks import described
from funprop.nonfinite.find import find_nonfinite
from funprop.nonfinite.numbers import numbers_by_leaf
from funprop.nonfinite.report import FirstBad, NonfiniteReport
from funprop.steps.loss_scale import Scaled
from funprop.steps.step import Step, check_step

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Given(NamedTuple):
    """What an update gives its grad_fn, beside the batch: as `find_nonfinite` takes it."""

    params: Any
    key: Any
    dloss: Any


def given_by(state: Any) -> Given:
    """What an update of `state`, that of any step of funprop's, gives its grad_fn.

    Raises:
      TypeError: it is the state of no such step.
    """
    dloss = None
    while hasattr(state, "inner"):
        dloss = state.scale if isinstance(state, Scaled) else dloss
        state = state.inner
    if not all(hasattr(state, name) for name in ("params", "key", "count")):
        raise TypeError(
            f"state must be what init and update of a step give, got {described(state)}"
        )
    key = None if state.key is None else jax.random.fold_in(state.key, state.count)
    return Given(state.params, key, dloss)


def find_nonfinite_update(step: Step, state: Any, batch: PyTree) -> NonfiniteReport:
    """`find_nonfinite` of the update that `step` would make of `state` with `batch`: the very key,
    params and scale. Where loss and gradient are finite, the update itself is looked at.

    Nothing is used up: `state` stays as it is.

    Args:
      step: whose grad_fn is known, as of all that funprop makes; of `scan(step)` give the step.
      state: before the update.
      batch: of one update.

    Raises:
      TypeError: `step` is none, or one whose gradient nobody knows, or `state` is not its state.

    Example:
      >>> import jax.numpy as jnp, optax, funprop as fp
      >>> line = fp.from_loss(lambda w, batch: (jnp.sqrt(w * batch).sum(), batch.size))
      >>> train = fp.step(line, optax.sgd(1.0))
      >>> state = train.init(jnp.array(2.0), None)
      >>> find_nonfinite_update(train, state, jnp.array([1.0, -1.0])).sentence(7)[:46]
      'update 7: the loss is NaN. First bad: sqrt(-2)'
    """
    check_step(step)
    if step.grad_fn is None:
        raise TypeError("step must have a grad_fn, as step(grad_fn, optimizer) has, got none")
    given = given_by(state)
    report = find_nonfinite(step.grad_fn, given.params, batch, given.key, given.dloss)
    if not report.finite or step.propose is None:
        return report
    new, *_ = jax.jit(step.propose)(state, batch)
    before = numbers_by_leaf(state)
    for path, found in numbers_by_leaf(new).items():
        if not found.finite and before[path].finite:
            first = FirstBad("update", "", path, "", found, before[path].largest, "")
            return report._replace(first=first)
    return report
