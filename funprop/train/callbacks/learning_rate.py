"""The learning rate of a schedule, in the history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from funprop.checks import described
from funprop.train.stopping import Row


class learning_rate:
    """Puts `schedule(i)` into every row as `learning_rate`, `i` the number of the last update.

    Only for a schedule that the optimizer was given itself: of one that was made by
    `optax.inject_hyperparams` the learning rate is in the history without this.

    Args:
      schedule: from a number of updates to a learning rate, as optax makes them.
      name: of the entry.

    Raises:
      TypeError: `schedule` is no function.

    Example:
      >>> import optax
      >>> schedule = optax.linear_schedule(0.1, 0.0, 10)
      >>> told, row = learning_rate(schedule), {"update": 6}
      >>> told.on_epoch(row, None)
      >>> round(row["learning_rate"], 6)
      0.05
    """

    copies = True  # of what it keeps of a state: nothing

    def __init__(self, schedule: Callable[[Any], Any], name: str = "learning_rate") -> None:
        if not callable(schedule):
            raise TypeError(
                f"schedule must be a function of the number of updates, got {described(schedule)}"
            )
        self.schedule, self.name = schedule, name

    def on_epoch(self, row: Row, state: Any) -> None:
        # The optimizer counts from zero, and goes on where the state that fit was given ended.
        made = _updates(state) or int(row["update"])
        row[self.name] = float(jax.device_get(self.schedule(max(made - 1, 0))))


def _updates(state: Any) -> int:
    """How many updates a state, however wrapped, has seen; 0 where it does not say."""
    while hasattr(state, "inner"):
        state = state.inner
    found = getattr(state, "count", None)
    return 0 if found is None else int(np.max(jax.device_get(found)))
