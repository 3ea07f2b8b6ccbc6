"""The folder of a run, a new one or one that is gone on with, tried before all is computed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from funprop.train import processes
from funprop.train.checkpoints import Checkpoints
from funprop.train.checkpoints.folder import LOCK, locked, updates_in
from funprop.train.checkpoints.saving import said
from funprop.train.runs.files import (
    CHECKPOINTS,
    OUTCOME,
    SETTINGS,
    digests_of_files,
    read_settings,
    write_settings,
    write_text,
)
from funprop.train.whole_file import clear_drafts, is_draft

SMALL_FILES = 1 << 20  # bytes: curves, history, settings
RAISED = "epochs"  # the setting that may be raised
FREE = ("epochs", "nonfinite")  # what may differ when a run is gone on with


@contextmanager
def run_folder(
    name: str,
    out: Path | None,
    settings: dict[str, Any],
    nbytes: int = 0,
    *,
    restart: bool = False,
    override: bool = False,
) -> Iterator[tuple[Path, str]]:
    """The folder of a run, made before anything is computed: one that cannot be written to is known
    before it is trained for. While it is used, no other process may use it. Where nothing but
    `run.json` has been written, an exception takes a folder that was made away again.

    Args:
      name: of the data.
      out: where it is, or shall be; else a new one under `runs/`, with the time in its name.
      settings: what the run was asked for; `run.json` has it from here on, as not `finished`.
      nbytes: what will be written, about.
      restart: where there is one, it is given another name, and a new one made.
      override: whether other settings than those that the run had are taken.

    Yields:
      The folder; and why the run in it ended, where it is finished and whole: then nothing is to be
      done. Else `""`.

    Raises:
      ValueError: it is another run's, something else, or in use; it cannot be made or written to;
        or it has too little room.
    """
    used: _Used | None = None
    problem = finished = before = ""
    if processes.first():
        try:
            used = _used(name, out, restart)
            try:
                if not override:
                    _check_settings(used.folder, settings)
                finished = _finished(used.folder, settings)
                if not finished:
                    _check_epochs(used.folder, settings)
                    _check_room(used.folder, nbytes)
                    before = _text(used.folder / SETTINGS)
                    write_settings(used.folder, settings)
            except BaseException:
                used.leave()
                raise
        except OSError as error:
            problem = f"the run folder {out or 'runs'} cannot be written: {said(error)}"
        except ValueError as error:
            problem = str(error)
    problem = processes.words_of_first(problem)
    if problem:
        raise ValueError(problem)
    folder = Path(processes.words_of_first(str(used.folder) if used else ""))
    try:
        yield folder, processes.words_of_first(finished)
    except (ValueError, TypeError):  # it was asked for what cannot be
        if used is not None and before:
            write_text(used.folder / SETTINGS, before)
        raise
    finally:
        if used is not None:
            used.leave()


class _Used:
    """A folder that this process uses, and those above it that it made."""

    def __init__(self, folder: Path, made: list[Path]) -> None:
        self.folder, self.made = folder, made
        try:
            self._lock = locked(folder)
            clear_drafts(folder)
        except BaseException:
            _take_away(made)
            raise

    def leave(self) -> None:
        self._lock.release()
        _take_away(self.made)


def _used(name: str, out: Path | None, restart: bool) -> _Used:
    """Making a folder is what finds out whether there is one already, so that of two runs that
    start at once each gets its own."""
    if out is None:
        now = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for folder in itertools.chain([now], (_numbered(now, i) for i in itertools.count(2))):
            try:
                return _Used(folder, _make(folder))
            except FileExistsError:
                if not folder.is_dir():
                    raise
    assert out is not None
    try:
        return _Used(out, _make(out))
    except FileExistsError:
        check_is_run(out)
    used = _Used(out, [])
    if restart and any(entry.name != LOCK for entry in out.iterdir()):
        try:
            aside = _move_aside(out)
        finally:
            used.leave()
        print(f"The run that was there is in {aside}")
        return _Used(out, _make(out))
    return used


def _numbered(folder: Path, i: int) -> Path:
    return folder.with_name(f"{folder.name}-{i}")


def check_is_run(folder: Path) -> None:
    """Raise a `ValueError` where something is there that is no run's folder, nor an empty one."""
    if not folder.is_dir():
        raise ValueError(f"the run folder {folder} exists already, and is no folder")
    names = {entry.name for entry in folder.iterdir() if not is_draft(entry.name)} - {LOCK}
    if names and not names & {SETTINGS, CHECKPOINTS}:
        raise ValueError(f"the run folder {folder} exists already, and holds no run")


def _move_aside(folder: Path) -> Path:
    for i in itertools.count(1):
        aside = _numbered(folder, i)
        if not os.path.lexists(aside):
            folder.rename(aside)
            return aside
    raise AssertionError("unreachable")


def _make(folder: Path) -> list[Path]:
    made: list[Path] = []
    try:
        for above in reversed(folder.parents):
            if above.exists() and not above.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), above)
            if not above.exists():
                above.mkdir(exist_ok=True)
                made.insert(0, above)
        folder.mkdir()
    except BaseException:
        _take_away(made)
        raise
    return [folder, *made]


def _take_away(made: list[Path]) -> None:
    """Remove folders that have been made, where `run.json` is all that there is in them."""
    with contextlib.suppress(OSError):
        if made and {file.name for file in made[0].iterdir()} <= {SETTINGS, LOCK}:
            (made[0] / SETTINGS).unlink(missing_ok=True)
            (made[0] / LOCK).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    before = read_settings(folder)
    if before is None:
        return
    before = {name: value for name, value in before.items() if name not in OUTCOME}
    names = [name for name in {**settings, **before} if name not in FREE]
    other = [name for name in names if settings.get(name) != before.get(name)]
    if other:
        told = ", ".join(f"{n} {before.get(n)} (now {settings.get(n)})" for n in other)
        raise ValueError(
            f"the run in {folder} has {told}: --override takes the new, --restart begins anew"
        )


def _check_epochs(folder: Path, settings: dict[str, Any]) -> None:
    """A finished run is not replaced, though its checkpoints be gone."""
    before = read_settings(folder) or {}
    if not before.get("finished"):
        return
    if before[RAISED] < settings[RAISED] and not updates_in(folder / CHECKPOINTS):
        raise ValueError(
            f"{folder} has no checkpoints to go on from to more epochs: --restart begins anew"
        )
    if before[RAISED] > settings[RAISED]:
        raise ValueError(
            f"{RAISED} must be at least {before[RAISED]}, as many as the run in {folder} has, got "
            f"{settings[RAISED]}: --restart begins anew"
        )


def _text(file: Path) -> str:
    """What a file says; nothing where it is not there, or is damaged."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _check_room(folder: Path, nbytes: int) -> None:
    needed, free = nbytes + SMALL_FILES, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"the run folder {folder} must have room for {needed:,} bytes, {free:,} are free"
        )


def _finished(folder: Path, settings: dict[str, Any]) -> str:
    """Why the run ended, where it has these epochs and all its files are what they were."""
    found = read_settings(folder)
    if found is None or not found["finished"] or found.get(RAISED) != settings.get(RAISED):
        return ""
    return found["stopped"] if found["files"] == digests_of_files(folder) else ""


def checkpoints_of(
    folder: Path, settings: dict[str, Any], override: bool, **how: Any
) -> Checkpoints:
    """Where a run of the command is kept; and how, as `Checkpoints` takes it."""
    kept = {name: value for name, value in settings.items() if name not in (*FREE, "batch_size")}
    return Checkpoints(folder / CHECKPOINTS, settings=kept, override=override, **how)


def say_finished(folder: Path, why: str) -> None:
    """That there is nothing to do, and how there would be."""
    print(f"{folder} is finished: {why}. More --epochs go on from there, --restart begins anew")
