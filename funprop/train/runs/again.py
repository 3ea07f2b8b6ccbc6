"""An update of a run found once more: what it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from funprop.train.runs.files import read_settings
from funprop.train.runs.folder import check_is_run, checkpoints_of
from funprop.train.runs.replay import Work, batch_of, state_before


class Again(NamedTuple):
    """An update: what it was made of.

    Attributes:
      work: what the run repeats.
      state: before the update.
      batch: of it.
      update: which, the first being 1.
    """

    work: Work
    state: Any
    batch: Any
    update: int


def settings_of(run: Path) -> dict[str, Any]:
    """The settings of a run of one network.

    Raises:
      ValueError: there is none, or it is damaged, or a sweep.
    """
    if not run.exists():
        raise ValueError(f"there is no run {run}")
    check_is_run(run)
    settings = read_settings(run)
    if settings is None:
        raise ValueError(f"run.json of {run} is damaged or gone: the same command writes it anew")
    if "sweep" in settings:
        raise ValueError(f"{run} is a sweep, whose runs are one program: train one by itself")
    return {"nonfinite": "stop"} | settings


def again(run: Path, settings: dict[str, Any], update: int | None) -> Again:
    """An update of a run, the last if it is not said which.

    Raises:
      ValueError: the run has no such update.
    """
    work = work_of(settings)
    made = work.prepared()
    last = made.feed.updates * settings["epochs"]
    which = last if update is None else update
    if not 1 <= which <= last:
        raise ValueError(f"update must be from 1 to {last}, got {which}")
    kept = checkpoints_of(run, settings, override=True)
    before = state_before(made, work.state, kept, which)
    return Again(work, before, batch_of(made.feed, which), which)


def work_of(settings: dict[str, Any]) -> Work:
    """What a run with these settings repeats."""
    if "optimizer" in settings:  # text has one alone
        from funprop.train.runs import job

        return job.work_of(settings)
    if "pretrained" in settings:
        from funprop.train.runs import finetune

        return finetune.work_of(settings)
    from funprop.train.runs import text

    return text.work_of(settings)
