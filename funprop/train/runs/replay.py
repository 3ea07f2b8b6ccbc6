"""An update of a run once more: the state before it, and its batch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from funprop.steps import Step
from funprop.train.checkpoints import Checkpoints
from funprop.train.data.feeds import Feed
from funprop.train.data.prepared import Prepared, given, prepared
from funprop.train.reached import Reached

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Work(NamedTuple):
    """What a run of the command repeats.

    Attributes:
      step, state: the step and its first state.
      data: as `fit` takes it.
      options: of `fit`: what decides which batches there are.
    """

    step: Step
    state: Any
    data: Any
    options: dict[str, Any]

    def prepared(self) -> Prepared:
        """Its batches and its program."""
        known = {name: self.options.get(name) for name in ("batch_size", "updates", "mesh")}
        epochs, seed = self.options["epochs"], self.options["seed"]
        what = given(self.data, epochs=epochs, seed=seed, last="short", **known)
        return prepared(self.step, self.state, what, donate=False)


def batch_of(feed: Feed, update: int) -> PyTree:
    """The batch of an update, the first one being 1."""
    return feed.batch(*divmod(update - 1, feed.updates))


def state_before(made: Prepared, first: Any, checkpoints: Checkpoints, update: int) -> Any:
    """The state to which an update was applied, the first one being 1: that of the last checkpoint
    before it, and the updates since once more.

    Raises:
      ValueError: the checkpoints are of another state.
    """
    feed, runs, *example = made
    sums = runs.zeros(first, *example)
    reached = _last_before(first, checkpoints, update) or Reached(first, sums)
    state, behind = reached.state, reached.update(feed.updates)
    while behind < update - 1:
        epoch, done = divmod(behind, feed.updates)
        for block in feed.blocks(epoch, done):
            end = min(block.updates, update - 1 - behind)
            bounds = np.int32(0), np.int32(end)
            state, sums = runs.run(state, sums, block.data, block.rows, *bounds)
            behind += end
            if behind == update - 1:
                break
    return jax.block_until_ready(state)


def _last_before(like: Any, checkpoints: Checkpoints, update: int) -> Reached | None:
    for one in reversed(checkpoints.all()):
        if one.problem or one.update >= update:
            continue
        try:
            found = checkpoints.restore(like, one.update)
        except ValueError as error:
            if "whole" not in str(error):
                raise
            warnings.warn(str(error), stacklevel=2)
            continue
        if found is not None:
            return Reached(found.state, None, found.notes["epoch"], found.notes["done"])
    return None
