"""The history as a CSV file, a line a row, as it goes."""

from __future__ import annotations

import csv as writing
import io
import os
from collections.abc import Sequence

from funprop.checks import to_path
from funprop.train.callbacks.protocol import Rows, Start, numbers
from funprop.train.stopping import Row
from funprop.train.whole_file import whole_file


class csv(Rows):
    """Writes every row of the history as a line of a CSV file, at once.

    Of a run that goes on the file has the rows that are gone on from, whatever was in it. Where a
    row brings a number that the ones before do not have, the file is written anew.

    Args:
      path: of the file; its folder is there already.

    Raises:
      OSError: from `fit`: the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "history.csv"
      >>> rows = csv(file)
      >>> rows.on_epoch({"epoch": 1, "loss": 0.5}, None)
      >>> rows.on_epoch({"epoch": 2, "loss": 0.25}, None)
      >>> file.read_text().split()
      ['epoch,loss', '1,0.5', '2,0.25']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = to_path("path", path)
        self.columns: list[str] = []
        self.rows: list[dict[str, float]] = []

    def begin(self, start: Start) -> None:
        self.columns, self.rows = [], [numbers(row) for row in start.history]
        self._write_whole()

    def on_epoch(self, row: Row, state: object) -> None:
        self.rows.append(numbers(row))
        if not self.columns or not self.rows[-1].keys() <= set(self.columns):
            self._write_whole()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._lines(self.rows[-1:]))  # in one piece

    def _write_whole(self) -> None:
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with whole_file(self.path) as draft:
            header = _line(self.columns) if self.columns else ""
            draft.write_text(header + self._lines(self.rows), encoding="utf-8", newline="")

    def _lines(self, rows: list[dict[str, float]]) -> str:
        return "".join(_line([row.get(name, "") for name in self.columns]) for row in rows)


def _line(entries: Sequence[object]) -> str:
    text = io.StringIO()
    writing.writer(text, lineterminator="\n").writerow(entries)
    return text.getvalue()
