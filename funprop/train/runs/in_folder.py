"""What every command that trains does, whatever it trains: its folder, `fit`, what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop import trees
from funprop.flow.watch import Watch
from funprop.train import processes
from funprop.train.fit import Fit, fit
from funprop.train.progress import Progress
from funprop.train.runs.files import (
    contents,
    save_reached,
    write_history,
    write_run,
    write_settings,
)
from funprop.train.runs.flow import draw_flow, watching
from funprop.train.runs.folder import checkpoints_of, run_folder, say_finished
from funprop.train.runs.outcome import Outcome, check_outcome, outcome_of
from funprop.train.runs.replay import Work
from funprop.train.stopping import Row

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Shown(NamedTuple):
    """What a run shows while it goes, and leaves behind.

    Attributes:
      measure, progress: as `fit` takes them.
      write: `(folder, params, history, outcome)`: writes what no other kind of run has.
    """

    measure: Callable[[Any, Any], dict[str, trees.Sum]]
    progress: Callable[[], Progress]
    write: Callable[[Path, PyTree, Sequence[Row], Outcome], None]


class Job(NamedTuple):
    """What is a command's own.

    Attributes:
      name: of a folder that is made for it.
      title: of its pictures.
      settings: what was asked for: the same, or the run is not gone on with.
      work: what is repeated.
      held_out: what is measured on.
      nbytes: what will be written, about.
      begin: says what will be trained, and checks it.
      saved: of the params, those that are written.
      keep: how often it is kept, as `Checkpoints` takes it.
    """

    name: str
    title: str
    settings: dict[str, Any]
    work: Work
    held_out: Any
    nbytes: int
    begin: Callable[[Path], Shown]
    saved: Callable[[PyTree], PyTree] = lambda params: params
    keep: dict[str, Any] = {}  # nobody changes it


def train(
    job: Job, out: Path | None, *, restart: bool, override: bool, watch: bool = False
) -> Path:
    """Train, and write the run's folder. A run that is there is gone on with, or left if finished.

    Raises:
      ValueError: the folder cannot be taken (see `run_folder`).
      FloatingPointError: training diverged; the folder is written all the same.
      Stopped: a signal ended it; the folder is written, to be gone on with.
    """
    name, settings, work = job.name, job.settings, job.work
    with run_folder(name, out, settings, job.nbytes, restart=restart, override=override) as (
        folder,
        finished,
    ):
        if finished:
            say_finished(folder, finished)
            return folder
        shown, seen = job.begin(folder), watching(watch)
        result = fit(
            work.step,
            work.state,
            work.data,
            held_out=job.held_out,
            measure=shown.measure,
            progress=shown.progress,
            checkpoints=checkpoints_of(folder, settings, override, **job.keep),
            watch=seen,
            **work.options,
        )
        outcome = outcome_of(work, result)
        if processes.first():
            write_run(folder, lambda place: _write(place, job, shown, result, outcome, seen))
        check_outcome(outcome, folder)
    return folder


def _write(
    folder: Path, job: Job, shown: Shown, result: Fit, outcome: Outcome, seen: Watch | None
) -> None:
    """What training came to, what took longest first."""
    params = jax.device_get(result.state.params)
    save_reached(folder, job.saved(params))
    write_history(folder, result.history)
    shown.write(folder, params, result.history, outcome)
    draw_flow(folder, seen, job.title)
    write_settings(folder, job.settings | outcome.told(), outcome.finished)
    print(contents(folder))
