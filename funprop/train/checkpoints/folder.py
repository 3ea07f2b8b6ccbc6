"""The folder of a run's checkpoints: which are there, which stay, and who may write."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
from os import PathLike as PathLike
from pathlib import Path
from typing import Any

from funprop.train.checkpoints.description import FILE
from funprop.train.checkpoints.written import ARRAYS
from funprop.train.whole_file import sync

LOCK = ".lock"
SAVING, GOING = ".saving-", ".going-"  # what one is called while it is written, or taken away
OTHER = ".other"  # at the end of the name of what is no checkpoint, and was in the way of one
DIGITS = 10


def check_installed() -> None:
    """Raise a `ModuleNotFoundError` where a package is missing that checkpoints need."""
    for module, package in (("orbax.checkpoint", "orbax-checkpoint"), ("filelock", "filelock")):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ModuleNotFoundError(f"checkpoints need {package}: pip install 'funprop[train]'")


def place(folder: Path, update: int) -> Path:
    """Where the checkpoint of an update is."""
    return folder / f"{update:0{DIGITS}d}"


def updates_in(folder: Path) -> list[int]:
    """The updates of which there are checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    digits = [int(name) for name in names if name.isascii() and name.isdigit()]
    return sorted(update for update in digits if place(folder, update).name in names)


def nbytes(folder: Path) -> int:
    """What it takes on the disk."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it may be taken away meanwhile
            total += file.stat().st_size
    return total


def draft(folder: Path, attempt: int) -> Path:
    """Where a checkpoint is written; nobody who has not given up yet writes where another does."""
    return folder / f"{SAVING}{attempt}"


def commit(draft: Path, final: Path) -> None:
    """Give a checkpoint that is all written its name: in one step, or not.

    Raises:
      OSError: that cannot be.
    """
    take_away(final)
    draft.rename(final)
    sync(final.parent)


def clear(folder: Path, kept: set[int]) -> None:
    """Take away the checkpoints that are not among those to keep."""
    for update in updates_in(folder):
        if update not in kept and _ours(place(folder, update)):
            take_away(place(folder, update))


def take_away(checkpoint: Path) -> None:
    """Remove a checkpoint; its name is gone first, so that none is ever half there. What is none
    is not ours to remove, and gets another name."""
    going = checkpoint.with_name(GOING + checkpoint.name)
    with contextlib.suppress(OSError):
        if not os.path.lexists(checkpoint):
            return
        if not _ours(checkpoint):
            _move_aside(checkpoint)
            return
        shutil.rmtree(going, ignore_errors=True)
        checkpoint.rename(going)
        shutil.rmtree(going, ignore_errors=True)


def _ours(place: Path) -> bool:
    """Whether it is a checkpoint, or what is left of one."""
    return (place / FILE).is_file() or (place / ARRAYS).is_dir()


def _move_aside(place: Path) -> None:
    names = (f"{place.name}{OTHER}-{i}" for i in itertools.count(1))
    place.rename(next(p for p in map(place.with_name, names) if not os.path.lexists(p)))


def clear_leftovers(folder: Path) -> None:
    """Remove what a process that was killed was writing, or taking away."""
    for entry in folder.iterdir():
        if entry.name.startswith((SAVING, GOING)):
            shutil.rmtree(entry, ignore_errors=True)


def locked(folder: Path) -> Any:
    """Make the folder and lock it; the lock ends with the process, however that ends.

    Raises:
      ValueError: another process has locked it.
      OSError: it cannot be made, or written to.
    """
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"{folder} is in use: another process writes to it") from None
    with contextlib.suppress(OSError):
        (folder / LOCK).write_text(f"{os.getpid()}\n")
    return lock


def in_use(folder: Path) -> bool:
    """Whether a process has locked it."""
    import filelock

    if not (folder / LOCK).exists():
        return False
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return True
    except OSError:  # it may not be written to: then nobody here does
        return False
    lock.release()
    return False


class NoLock:
    """What the other processes of a run hold, where the first has the lock."""

    def release(self) -> None:
        """Nothing."""
