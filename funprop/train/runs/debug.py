"""`funprop debug`: an update of a run once more, layer by layer."""

from __future__ import annotations

from pathlib import Path

from funprop.nonfinite.update import find_nonfinite_update
from funprop.train.runs.again import again, settings_of


def debug(run: Path, update: int | None = None) -> str:
    """What was the first to be infinite or NaN in an update, and a row for every layer's pass.

    Args:
      run: its folder, of `funprop train`.
      update: which, the first being 1; without it, the one that ended the run.

    Raises:
      ValueError: there is no run, no such update, or nothing says which.
    """
    settings = settings_of(run)
    update = settings.get("nonfinite_update") if update is None else update
    if update is None:
        raise ValueError(f"--update must say which, as no update ended the run in {run}")
    found = again(run, settings, update)
    report = find_nonfinite_update(found.work.step, found.state, found.batch)
    return f"update {update:,} of {run}\n\n{report}"
