"""The best state of a run, kept and given back at its end."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from funprop.checks import check_string, described
from funprop.train.callbacks.protocol import Start
from funprop.train.checkpoints import Checkpoints
from funprop.train.held_out import params_of
from funprop.train.named import as_leaf, bits
from funprop.train.stopping import Row


class best_params:
    """`fit` returns the state of the row with the best value, not the last one.

    It is the state as it was, with its optimizer's, so that it can be gone on with; a copy waits in
    the host's memory. A value that is NaN is never the best; of equals the first is. With
    `checkpoints` the best is the one that stays there (their `metric`), a run that goes on has it
    again, and what is gone on from is the last one nevertheless.

    Args:
      metric: an entry of the history.
      best: `min` for a loss, `max` for an accuracy.

    Attributes:
      row: the best so far, or `None`.
      params: those to predict with then: the average where the state has one.

    Raises:
      TypeError: `metric` is no name, or `best` neither of the two.
      ValueError: from `fit`: the history has no such entry, or the checkpoints keep the best by
        another one.

    Example:
      >>> import jax.numpy as jnp, optax, funprop as fp
      >>> away = fp.from_loss(lambda w, batch: (-w * batch[0].sum(), 4))  # ever farther
      >>> train = fp.step(away, optax.sgd(1.0))
      >>> best = best_params("held_out/distance")
      >>> options = {"epochs": 5, "batch_size": 4, "progress": None, "callbacks": [best]}
      >>> result = fp.fit(
      ...     train,
      ...     train.init(jnp.array(0.0), None),
      ...     (jnp.ones(4), jnp.ones(4)),
      ...     validate=lambda w: {"distance": abs(w - 2)},
      ...     **options,
      ... )
      >>> float(result.state.params), best.row["epoch"], len(result.history)
      (2.0, 2.0, 5)
    """

    copies = True  # what it keeps

    def __init__(self, metric: str, best: Callable[..., Any] = min) -> None:
        check_string("metric", metric)
        if best is not min and best is not max:
            raise TypeError(f"best must be min or max, got {described(best)}")
        self.metric, self.best = metric, best
        self.row: Row | None = None
        self._like: Any = None
        self._kept: list[Any] = []

    @property
    def params(self) -> Any:
        """Those of the best row, to predict with; `None` before there is one."""
        return None if self.row is None else params_of(self._restored())

    def prepare(self, checkpoints: Checkpoints) -> None:
        if checkpoints.metric is None:
            checkpoints.metric, checkpoints.best = self.metric, self.best
        elif (checkpoints.metric, checkpoints.best) != (self.metric, self.best):
            raise ValueError(
                f"checkpoints must keep the best by {self.best.__name__} of {self.metric!r}, as "
                f"best_params does, got {checkpoints.best.__name__} of {checkpoints.metric!r}"
            )

    def begin(self, start: Start) -> None:
        self.row, self._kept = None, []
        self._like = jax.tree.map(_spec, start.state)
        known = [row for row in start.history if not math.isnan(row.get(self.metric, math.nan))]
        if start.checkpoints is None or not known:
            return
        row = self.best(known, key=lambda row: row[self.metric])
        folder = start.checkpoints.folder
        # An object of its own: which one is the newest of the run is none of its business.
        reading = Checkpoints(folder, metric=self.metric, best=self.best)
        found = reading.restore_best(start.state)
        if found is not None and _same(found.notes["history"][-1:], [row]):
            self._keep(row, found.state)
            return
        warnings.warn(
            f"best_params: {folder} has no checkpoint of the best row so far, of update "
            f"{row['update']}; the best from here on is kept",
            stacklevel=2,
        )

    def on_epoch(self, row: Row, state: Any) -> None:
        if self.metric not in row:
            raise ValueError(f"best_params wants {self.metric!r}, got {', '.join(row)}")
        value, before = row[self.metric], None if self.row is None else self.row[self.metric]
        better = before is None or (value != before and self.best(before, value) == value)
        if better and not math.isnan(value):
            self._keep(row, state)

    def end(self, result: Any) -> Any:
        return None if self.row is None else result._replace(state=self._restored())

    def _keep(self, row: Row, state: Any) -> None:
        # NumPy's own memory: that of a device's array is used up by the next update.
        self.row = row
        self._kept = [np.array(jax.device_get(bits(leaf))) for leaf in jax.tree.leaves(state)]

    def _restored(self) -> Any:
        likes, structure = jax.tree.flatten(self._like)
        return structure.unflatten(as_leaf(*pair) for pair in zip(likes, self._kept, strict=True))


def _spec(leaf: Any) -> Any:
    """What `as_leaf` needs of a leaf, without its memory."""
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _same(rows: list[Row], others: list[Row]) -> bool:
    """Whether rows are the same, NaN as NaN."""
    return json.dumps(rows) == json.dumps(others)
