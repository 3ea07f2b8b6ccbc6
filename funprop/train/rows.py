"""The rows of the history: the numbers of an epoch, or of a part of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop import trees
from funprop.checks import described
from funprop.train.data.feeds import Feed
from funprop.train.held_out import params_of
from funprop.train.reached import Reached
from funprop.train.stopping import Row
from funprop.train.sums import means, summed

if TYPE_CHECKING:
    from funprop.typing import PyTree

RATE = "learning_rate"


class Rows:
    """Makes them.

    Args:
      feed: of the run.
      begin: where it begins.
      first_epoch: the number of the first epoch.
      measured: `state -> sums over held-out data`, or `None`.
    """

    def __init__(
        self,
        feed: Feed,
        begin: Reached,
        first_epoch: int,
        measured: Callable[[Any], list[Any]] | None,
    ) -> None:
        self.feed, self.first_epoch, self.measured = feed, first_epoch, measured
        self.rates = _rates(begin.state)
        self.seconds = begin.seconds
        self.examples = self._examples(begin.epoch, begin.done)
        self.start = self.before = time.perf_counter()

    def made(
        self, epoch: int, done: int, state: Any, sums: dict[str, trees.Sum], parts: Any
    ) -> Row:
        """The row after `done` updates of an epoch.

        Args:
          epoch, done: which.
          state: the step's, then.
          sums: of the metrics, over the epoch so far.
          parts: the sums over held-out data, where they are under way.
        """
        training, held_out = means(sums), {}
        if self.measured is not None:
            held_out = means(summed(self.measured(state) if parts is None else parts))
        numbers = {**training, **{f"held_out/{name}": v for name, v in held_out.items()}}
        now, examples = time.perf_counter(), self._examples(epoch, done)
        row = {
            "epoch": self.first_epoch + epoch + done / self.feed.updates,
            "update": (self.first_epoch + epoch) * self.feed.updates + done,
            **of_the_best(numbers),
            **{name: v for name, v in self._rates_of(state).items() if name not in numbers},
            "seconds": now - self.start + self.seconds,
            "examples_per_second": (examples - self.examples) / (now - self.before),
        }
        self.before, self.examples = now, examples
        return row

    def _examples(self, epoch: int, done: int) -> int:
        return epoch * self.feed.examples + min(done * self.feed.size, self.feed.examples)

    def _rates_of(self, state: Any) -> dict[str, float]:
        if not self.rates:
            return {}
        leaves = jax.tree.leaves(state)
        found = jax.device_get({name: leaves[i] for name, i in self.rates.items()})
        return {name: float(value) for name, value in found.items()}


def of_the_best(numbers: dict[str, Any]) -> Row:
    """Numbers as they are; of a population those of the member whose loss is the least, held out if
    that is known, and beside them those of all `members`.

    Example:
      >>> of_the_best({"loss": np.array([0.3, 0.1])})
      {'loss': 0.1, 'member': 1, 'members': {'loss': [0.3, 0.1]}}
    """
    if np.ndim(numbers["loss"]) == 0:
        return {name: float(value) for name, value in numbers.items()}
    losses = numbers.get("held_out/loss", numbers["loss"])
    best = 0 if np.isnan(losses).all() else int(np.nanargmin(losses))
    row: Row = {name: float(np.ravel(value)[best]) for name, value in numbers.items()}
    members = {name: np.asarray(value).tolist() for name, value in numbers.items()}
    return row | {"member": best, "members": members}


def validated(validate: Callable[[PyTree], dict[str, Any]], state: Any, row: Row) -> Row:
    """What a function of the params finds, as entries of a row.

    Raises:
      TypeError: it is no dict of numbers.
      ValueError: a number has no name, or one that the row has.
    """
    found = validate(params_of(state))
    if not isinstance(found, dict):
        raise TypeError(f"validate must give a dict of numbers, got {described(found)}")
    told = {}
    for name, value in found.items():
        entry = f"held_out/{name}"
        if not isinstance(name, str) or not name or entry in row:
            raise ValueError(f"validate must give names that are new, got {name!r}")
        if np.ndim(value) or isinstance(value, str) or not hasattr(value, "__float__"):
            raise TypeError(f"validate must give a number for {name!r}, got {described(value)}")
        told[entry] = float(value)
    return told


def _rates(state: Any) -> dict[str, int]:
    """Which leaves of a state are learning rates, as `optax.inject_hyperparams` keeps them: one is
    `learning_rate`; of many each has the label of its part of the params behind it."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = {
        i: path
        for i, (path, leaf) in enumerate(leaves)
        if trees.path_string(path[-2:]) == f"hyperparams/{RATE}" and np.ndim(leaf) == 0
    }
    if len(found) == 1:
        return {RATE: next(iter(found))}
    named = {}
    for i, path in found.items():
        labels = [str(key.key) for key in path[:-1] if isinstance(key, jax.tree_util.DictKey)]
        named.setdefault("/".join([RATE, *labels]), i)
    return named
