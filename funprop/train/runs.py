"""A run: what it may be asked for, and its folder, which is tried before anything is computed."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import itertools
import json
import math
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import optax

from funprop.train import processes
from funprop.train.params_file import save
from funprop.train.stopping import Row
from funprop.train.whole_file import whole_file
from funprop.version import __version__

if TYPE_CHECKING:
    from jaxtyping import PyTree

SETTINGS = "run.json"
SMALL_FILES = 1 << 20  # bytes: curves, history, settings


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raise a `ValueError` where `given` is none of those that are known."""
    if given not in known:
        raise ValueError(f"unknown {what} {given!r}, there are {', '.join(known)}")


def check_rate(rate: float) -> None:
    """Raise a `ValueError` where a learning rate is not positive and finite."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"learning_rate must be positive and finite, got {rate}")


def check_seed(seed: int) -> None:
    """Raise a `ValueError` where a seed is none of a random key's."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")


def check_installed() -> None:
    """Raise a `ModuleNotFoundError` where what the run is written with at its end is missing."""
    for what, module in (("the picture", "matplotlib"), ("the file of params", "safetensors")):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"{what} needs {module}: pip install 'funprop[train]'")


@contextmanager
def run_folder(
    name: str, out: Path | None, settings: dict[str, Any], nbytes: int = 0
) -> Iterator[Path]:
    """The folder of a run, made before anything is computed: one that cannot be written to is known
    before it is trained for. Where nothing but `run.json` has been written, an exception takes the
    folder away again.

    Args:
      name: of the data.
      out: where it shall be; else a new one under `runs/`, with the time in its name.
      settings: what the run was asked for; `run.json` has it from here on, as not `finished`.
      nbytes: what will be written, about.

    Raises:
      ValueError: it exists already, cannot be made or written to, or has too little room.
    """
    made, problem = [], ""
    if processes.first():
        try:
            made = _new_folder(name, out)
            try:
                write_settings(made[0], settings)
                _check_room(made[0], nbytes)
            except BaseException:
                _take_away(made)
                raise
        except OSError as error:
            problem = f"the run folder {out or 'runs'} cannot be written: {error.strerror}"
        except ValueError as error:
            problem = str(error)
    problem = processes.words_of_first(problem)
    if problem:
        raise ValueError(problem)
    folder = Path(processes.words_of_first(str(made[0]) if made else ""))
    try:
        yield folder
    except BaseException:
        _take_away(made)
        raise


def _new_folder(name: str, out: Path | None) -> list[Path]:
    """The run's folder, and those above it that had to be made too. Making it is what finds out
    whether there is one already, so that of two runs that start at once each gets its own."""
    if out is not None:
        try:
            return _make(out)
        except FileExistsError:
            raise ValueError(f"the run folder {out} exists already") from None
    now = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = now
    for i in itertools.count(2):
        try:
            return _make(folder)
        except FileExistsError:
            if not folder.is_dir():
                raise
            folder = now.with_name(f"{now.name}-{i}")
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
        if made and [file.name for file in made[0].iterdir()] == [SETTINGS]:
            (made[0] / SETTINGS).unlink()
        for folder in made:
            folder.rmdir()


def _check_room(folder: Path, nbytes: int) -> None:
    needed, free = nbytes + SMALL_FILES, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"the run folder {folder} must have room for {needed:,} bytes, {free:,} are free"
        )


def write_run(folder: Path, write: Callable[[Path], None]) -> None:
    """`write(folder)`; where that fails for the folder's sake, into one for temporary files, since
    training may have taken days.

    Raises:
      OSError: it has failed; says where the results are instead.
    """
    try:
        write(folder)
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="funprop-"))
        write(elsewhere)
        raise OSError(f"{error}; what was reached is in {elsewhere}") from None


def save_reached(folder: Path, params: PyTree) -> None:
    """`params.safetensors`, to be loaded by `funprop.load`; whatever they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where training diverged, that is said
        save(folder / "params.safetensors", params)


def write_history(folder: Path, history: Sequence[Row]) -> None:
    """`history.jsonl`: one JSON object a line, one line an epoch; NaN and infinity as null."""
    write_text(folder / "history.jsonl", "".join(f"{_json(row)}\n" for row in history))


def write_settings(folder: Path, settings: dict[str, Any], finished: bool = False) -> None:
    """`run.json`: what a run was asked for and came to, with the versions of what it ran on."""
    versions = {
        "funprop": __version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }
    whole = {**settings, "finished": finished, "versions": versions}
    write_text(folder / SETTINGS, _json(whole, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Text into a file that is there as a whole or not at all; UTF-8, wherever one is."""
    with whole_file(file) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_without_nan(value), allow_nan=False, indent=indent)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def contents(folder: Path) -> str:
    """A line that says what was written."""
    return f"Written to {folder}: " + ", ".join(sorted(file.name for file in folder.iterdir()))


def check_not_diverged(history: Sequence[Row], folder: Path) -> None:
    """Raise a `FloatingPointError` in all processes, once the first has written, where the last
    loss is not finite."""
    if history and not math.isfinite(history[-1]["loss"]):
        processes.anywhere(True)  # waits for the first, whom an end of the others would end too
        raise FloatingPointError(
            f"training diverged, the loss is {history[-1]['loss']}; {folder} has what was reached"
        )
