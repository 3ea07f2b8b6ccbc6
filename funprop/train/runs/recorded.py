"""A display of progress that also writes the run's history, a line an epoch, as it goes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from funprop.train import processes
from funprop.train.progress import Progress, for_terminal
from funprop.train.runs.files import HISTORY, as_json, write_history
from funprop.train.stopping import Row


class recorded:  # noqa: N801  # displays are called like functions
    """`display`, and every row of the history a line of `history.jsonl`.

    A line is written at once and whole. Of a run that goes on the file has the rows of the epochs
    that are gone on from, whatever was in it: others will come again. That it cannot be written
    ends no training: it is told once, and written whole at the end.
    """

    def __init__(self, display: Callable[[], Progress], folder: Path) -> None:
        self.display, self.folder = display(), folder
        self.problem = ""

    def __enter__(self) -> recorded:
        self.display.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.display.__exit__(*exc)

    def begin(self, history: Sequence[Row]) -> None:
        self._try(lambda: write_history(self.folder, history))
        self.display.begin(history)

    def update(self, epoch: float, epochs: int, examples: int, means: Row) -> None:
        self.display.update(epoch, epochs, examples, means)

    def epoch(self, row: Row, epochs: int) -> None:
        self._try(lambda: _append(self.folder / HISTORY, f"{as_json(row)}\n"))
        self.display.epoch(row, epochs)

    def end(self, reason: str) -> None:
        self.display.end(reason)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self.problem:
                self.problem = str(error)
                warnings.warn(f"the history cannot be written: {error}", stacklevel=2)


def display(folder: Path) -> Callable[[], Progress]:
    """Makes what a run of the command shows; the first of many processes writes too."""
    return (lambda: recorded(for_terminal, folder)) if processes.first() else for_terminal


def _append(file: Path, line: str) -> None:
    opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(opened, line.encode())  # in one piece
    finally:
        os.close(opened)
