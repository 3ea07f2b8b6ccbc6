"""`funprop explain`: an update of a run, or the first on a data set, told in its four stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from funprop.explaining.explain import Explanation, explained
from funprop.gradients import Gradient
from funprop.nonfinite.update import given_by
from funprop.train.runs.again import Again, again, settings_of, work_of
from funprop.train.runs.replay import batch_of
from funprop.train.runs.tasks import TASKS
from funprop.transforms.transformed import objective_of


def explain(what: str, update: int | None = None) -> Explanation:
    """What an update does.

    Args:
      what: the folder of a run, or the name of a data set, of whose first model the first update
        is told.
      update: of a run, which, the first being 1; without it, the last.

    Raises:
      ValueError: there is no run and no data set of that name, or no such update.
    """
    if what in TASKS and not Path(what).exists():
        if update not in (None, 1):
            raise ValueError(f"update must be 1, as {what} is a data set and no run, got {update}")
        return _told(_first(what))
    if not Path(what).exists():
        raise ValueError(f"there is no run {what}, nor a data set: there are {', '.join(TASKS)}")
    return _told(again(Path(what), settings_of(Path(what)), update))


def _first(name: str) -> Again:
    task = TASKS[name]()
    settings: dict[str, Any] = {
        "data": name,
        "model": next(iter(task.models)),
        "optimizer": "adam",
        "learning_rate": task.learning_rate,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "seed": 0,
        "backward": "manual",
        "ordered": None,
        "nonfinite": "stop",
    }
    work = work_of(settings)
    return Again(work, work.state, batch_of(work.prepared().feed, 1), 1)


def _told(found: Again) -> Explanation:
    step = found.work.step
    objective = None if step.grad_fn is None else objective_of(step.grad_fn)
    if objective is None or step.propose is None:
        raise ValueError("a run must have an objective of layers to be explained")
    given = given_by(found.state)

    def after(gradient: Gradient) -> Any:
        assert step.propose is not None
        return given_by(jax.jit(step.propose)(found.state, found.batch)[0]).params

    words = f"the run's optimizer, at update {found.update:,}"
    return explained(
        objective, given.params, found.batch, given.key, after, words, sizes_matter=True
    )
