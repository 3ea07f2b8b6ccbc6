"""What `funprop runs` and `funprop show` say of runs, read from their folders."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from funprop.inspect.table import aligned
from funprop.train.checkpoints import Checkpoint, Checkpoints
from funprop.train.checkpoints.folder import in_use
from funprop.train.progress import HIDDEN
from funprop.train.runs.files import (
    CHECKPOINTS,
    OUTCOME,
    SETTINGS,
    digests_of_files,
    read_history,
    read_settings,
)
from funprop.train.runs.folder import check_is_run
from funprop.train.stopping import Row

STEPS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # of a curve
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def runs(folder: Path) -> str:
    """A line for each run in a folder, the newest first.

    Raises:
      ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = [entry for entry in folder.iterdir() if _is_run(entry)]
    if not found:
        return f"There are no runs in {folder}"
    rows: list[tuple[str, ...]] = [
        ("run", "data", "model", "state", "epochs", "last", "", "written")
    ]
    for run in sorted(found, key=_written, reverse=True):
        settings, history = read_settings(run) or {}, read_history(run)
        done = f"{history[-1]['epoch']:g}" if history else "0"
        last = [_pair(name, value) for name, value in _best_known(history)]
        rows.append(
            (
                run.name,
                str(settings.get("data", "?")),
                str(settings.get("model", "?")),
                state_of(run, settings),
                f"{done}/{settings.get('epochs', '?')}",
                *(*last, "", "")[:2],
                f"{_ago(time.time() - _written(run))} ago",
            )
        )
    return "\n".join(aligned(rows, left=(0, 1, 2, 3, 5, 6)))


def show(run: Path) -> str:
    """Settings, state, curves, last metrics and checkpoints of a run, each read as a whole.

    Raises:
      ValueError: there is no run there.
    """
    if not run.exists():
        raise ValueError(f"there is no run {run}")
    check_is_run(run)
    if not _is_run(run):
        raise ValueError(f"{run} holds no run")
    settings, history = read_settings(run), read_history(run)
    parts = [f"{run}: {state_of(run, settings or {})}"]
    if settings is None:
        parts.append(f"{SETTINGS} is damaged or gone; the same command goes on all the same")
    else:
        told = {k: v for k, v in settings.items() if k not in OUTCOME and v is not None}
        versions = settings.get("versions", {})
        parts.append("  ".join(f"{name} {value}" for name, value in told.items()))
        parts.append("  ".join(f"{name} {value}" for name, value in versions.items()))
    if history:
        parts += ["", *_curves(history)]
    checkpoints = _checkpoints(run)
    parts += ["", *(_table(checkpoints) if checkpoints else ["no checkpoints"])]
    if settings and settings.get("finished"):
        parts += ["", *_files(run, settings.get("files", {}))]
    return "\n".join(parts)


def state_of(run: Path, settings: dict[str, Any]) -> str:
    """In a few words."""
    if in_use(run):
        return "running"
    if settings.get("finished"):
        return f"finished: {settings.get('stopped')}"
    return f"stopped: {settings.get('stopped') or 'killed'}, can go on"


def _is_run(folder: Path) -> bool:
    return (folder / SETTINGS).is_file() or (folder / CHECKPOINTS).is_dir()


def _written(run: Path) -> float:
    return max((file.stat().st_mtime for file in run.iterdir()), default=0.0)


def _ago(seconds: float) -> str:
    seconds = max(0.0, seconds)
    return next((f"{seconds / size:.0f} {unit}" for unit, size in UNITS if seconds >= size), "0 s")


def _best_known(history: Sequence[Row]) -> list[tuple[str, float]]:
    """Two numbers of the last row: on held-out data where there are some."""
    if not history:
        return []
    row = {name: value for name, value in history[-1].items() if name not in HIDDEN}
    held_out = {name: value for name, value in row.items() if name.startswith("held_out/")}
    return list((held_out or row).items())[:2]


def _pair(name: str, value: float) -> str:
    return f"{name.replace('held_out/', 'held-out ')} {value:.4g}"


def _curves(history: Sequence[Row]) -> list[str]:
    names = [name for name in history[-1] if name not in HIDDEN]
    rows: list[tuple[str, ...]] = [("over the epochs", "", "first", "last", "least", "most")]
    for name in names:
        values = [row.get(name, math.nan) for row in history]
        known = [v for v in values if math.isfinite(v)]
        if known and (name != "skipped" or any(known)):
            ends = values[0], values[-1], min(known), max(known)
            rows.append((_name(name), curve(values), *(f"{v:.4g}" for v in ends)))
    return list(aligned(rows, left=(0, 1)))


def _name(name: str) -> str:
    return name.replace("held_out/", "held-out ")


def curve(values: Sequence[float]) -> str:
    """A curve of one line, the largest value highest; a point where there is no number.

    Example:
      >>> curve([3.0, 2.0, 1.0, float("nan")])
      '█▅▁·'
    """
    n = len(values)
    some = (
        values if n <= WIDTH else [values[round(i * (n - 1) / (WIDTH - 1))] for i in range(WIDTH)]
    )
    known = [v for v in some if math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def step(v: float) -> str:
        if not math.isfinite(v):
            return "·"
        return STEPS[round((v - low) / (high - low) * 7) if high > low else 0]

    return "".join(map(step, some))


def _checkpoints(run: Path) -> list[Checkpoint]:
    folder = run / CHECKPOINTS
    return Checkpoints(folder).all(check=True) if folder.is_dir() else []


def _table(checkpoints: Iterable[Checkpoint]) -> list[str]:
    rows = [("checkpoint", "in epoch", "bytes", "")]
    for one in checkpoints:
        epoch = one.notes.get("epoch")
        rows.append(
            (
                f"update {one.update:,}",
                "?" if epoch is None else f"{epoch + (one.notes.get('done', 0) > 0)}",
                f"{one.nbytes:,}",
                f"damaged: {one.problem}" if one.problem else "whole",
            )
        )
    return list(aligned(rows, left=(0, 3)))


def _files(run: Path, written: dict[str, str]) -> list[str]:
    found = digests_of_files(run)
    rows = [("file", "")]
    for name, digest in written.items():
        problem = "gone" if name not in found else "damaged"
        rows.append((name, "whole" if found.get(name) == digest else problem))
    return list(aligned(rows, left=(0, 1)))
