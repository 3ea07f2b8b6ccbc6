"""How a run ended, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from funprop.nonfinite.update import find_nonfinite_update
from funprop.steps import Step, skip_nonfinite
from funprop.train import processes
from funprop.train.fit import Fit
from funprop.train.interrupts import CODES, Stopped
from funprop.train.runs.replay import Work, batch_of
from funprop.train.stopping import Row

NonFinite = Literal["stop", "skip"]
SKIPPED = 10  # in a row that end a run which leaves out what is not finite


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      stopped: why.
      final: the last row of the history.
      update: the one whose loss or gradient was not finite, which ended it.
      diverged: whether what was reached is nothing to go on with.
    """

    stopped: str
    final: Row | None
    update: int | None
    diverged: bool

    @property
    def finished(self) -> bool:
        """Whether there is nothing to go on with."""
        return self.stopped not in CODES and self.update is None and not self.diverged

    def told(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return {"stopped": self.stopped, "final": self.final, "nonfinite_update": self.update}


def guarded(step: Step, nonfinite: str) -> Step:
    """The step with no update applied that is not finite; the first ends the run, or ten in a row.

    Raises:
      ValueError: `nonfinite` is neither `"stop"` nor `"skip"`.
    """
    if nonfinite not in ("stop", "skip"):
        raise ValueError(f"nonfinite must be stop or skip, got {nonfinite!r}")
    return skip_nonfinite(step, 1 if nonfinite == "stop" else SKIPPED)


def outcome_of(work: Work, result: Fit) -> Outcome:
    """How the run ended; where an update was not finite, what in it was the first to be so."""
    final = result.history[-1] if result.history else None
    try:
        work.step.check(result.state)
    except FloatingPointError:
        update = int(result.state.count)
        return Outcome(explained(work, result.state, update), final, update, False)
    diverged = final is not None and math.isinf(final["loss"])
    return Outcome(result.stopped, final, None, diverged)


def explained(work: Work, before: Any, update: int) -> str:
    """What was the first to be infinite or NaN in an update of the state `before` it."""
    batch = batch_of(work.prepared().feed, update)
    return find_nonfinite_update(work.step, before, batch).sentence(update)


def check_outcome(outcome: Outcome, folder: Path) -> None:
    """Raise in all processes, once the first has written, where a run did not end well.

    Raises:
      FloatingPointError: an update was not finite, or training diverged.
      Stopped: a signal ended it.
    """
    processes.anywhere(True)  # waits for the first, whom an end of the others would end too
    if outcome.update is not None:
        raise FloatingPointError(
            f"{outcome.stopped}; nothing of it was applied. funprop debug {folder} shows the whole "
            "update, --nonfinite skip goes on without it"
        )
    if outcome.diverged and outcome.final is not None:
        raise FloatingPointError(
            f"training diverged, the loss is {outcome.final['loss']}; {folder} has what was reached"
        )
    if outcome.stopped in CODES:
        print(f"{outcome.stopped.capitalize()}; the same command with --out {folder} goes on")
        raise Stopped(outcome.stopped)
