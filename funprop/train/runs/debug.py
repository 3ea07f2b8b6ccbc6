"""`funprop debug`: an update of a run once more, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funprop.nonfinite.update import find_nonfinite_update
from funprop.train.runs.files import read_settings
from funprop.train.runs.folder import check_is_run, checkpoints_of
from funprop.train.runs.replay import Work, batch_of, state_before


def debug(run: Path, update: int | None = None) -> str:
    """What was the first to be infinite or NaN in an update, and a row for every layer's pass.

    Args:
      run: its folder, of `funprop train`.
      update: which, the first being 1; without it, the one that ended the run.

    Raises:
      ValueError: there is no run, no such update, or nothing says which.
    """
    if not run.exists():
        raise ValueError(f"there is no run {run}")
    check_is_run(run)
    settings = read_settings(run)
    if settings is None:
        raise ValueError(f"run.json of {run} is damaged or gone: the same command writes it anew")
    if "sweep" in settings:
        raise ValueError(f"{run} is a sweep, whose runs are one program: train one by itself")
    update = settings.get("nonfinite_update") if update is None else update
    if update is None:
        raise ValueError(f"--update must say which, as no update ended the run in {run}")
    work = _work_of({"nonfinite": "stop"} | settings)
    made = work.prepared()
    last = made.feed.updates * settings["epochs"]
    if not 1 <= update <= last:
        raise ValueError(f"update must be from 1 to {last}, got {update}")
    kept = checkpoints_of(run, settings, override=True)
    before = state_before(made, work.state, kept, update)
    batch = batch_of(made.feed, update)
    report = find_nonfinite_update(work.step, before, batch)
    return f"update {update:,} of {run}\n\n{report}"


def _work_of(settings: dict[str, Any]) -> Work:
    if "optimizer" in settings:  # text has one alone
        from funprop.train.runs import job

        return job.work_of(settings)
    if "pretrained" in settings:
        from funprop.train.runs import finetune

        return finetune.work_of(settings)
    from funprop.train.runs import text

    return text.work_of(settings)
