"""What a run over text shows: a line a round, and what the model writes by then."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from funprop import trees
from funprop.train import processes
from funprop.train.progress import silent
from funprop.train.runs.files import write_text
from funprop.train.runs.in_folder import Shown
from funprop.train.runs.plots import curve
from funprop.train.runs.recorded import recorded
from funprop.train.stopping import Row

SAMPLES = "samples.txt"
HEADING = "--- after round {} ---"
HEADINGS = re.compile(r"^--- after round (\d+) ---$", re.MULTILINE)


class Rounds(silent):
    """A display; and the measure that draws its samples, as it is given the params.

    Args:
      folder: where the samples are written.
      length: tokens an example.
      measured: `(params, batch) -> {name: Sum}`.
      draw: `(params, round) -> sample`, or `None`.
    """

    def __init__(
        self,
        folder: Path,
        length: int,
        measured: Callable[[Any, Any], dict[str, trees.Sum]],
        draw: Callable[[Any, int], str] | None,
    ) -> None:
        self.folder, self.length = folder, length
        self._measured, self._draw = measured, draw
        self.samples: dict[int, str] = {}
        self.turn = 0

    def measure(self, params: Any, batch: Any) -> dict[str, trees.Sum]:
        """As is given, and a sample."""
        self.turn += 1
        found = self._measured(params, batch)
        if self._draw is not None:
            known = math.isfinite(jax.device_get(found["loss"].total))
            nothing = "(the loss is not finite: nothing is drawn)"
            self.samples[self.turn] = self._draw(params, self.turn) if known else nothing
        return found

    def begin(self, history: Sequence[Row]) -> None:
        self.turn = len(history)
        self.samples = {n: s for n, s in _read(self.folder).items() if n <= self.turn}
        if history:
            print(f"going on after round {self.turn}\n", flush=True)

    def epoch(self, row: Row, epochs: int) -> None:
        bits = _in_bits([row])[0]
        speed = row["examples_per_second"] * self.length
        print(
            f"round {row['epoch']:g}/{epochs}  bits per token {bits['bits_per_token']:.3f}, "
            f"held out {bits['held_out/bits_per_token']:.3f}  {speed:,.0f} tokens/s",
            flush=True,
        )
        if self.turn in self.samples:
            print(f"{_quoted(self.samples[self.turn])}\n", flush=True)
        if row["epoch"] % 1 == 0 and processes.first():  # no part of a round
            self.write(self.folder)

    def shown(self, title: str) -> Shown:
        """What a run shows and leaves behind; `report.png` has the title."""

        def write(folder: Path, params: Any, history: Sequence[Row], outcome: Any) -> None:
            self.write(folder)
            if history:
                curve(folder / "report.png", _in_bits(history), "bits_per_token", title)

        return Shown(self.measure, lambda: recorded(lambda: self, self.folder), write)

    def write(self, folder: Path) -> None:
        """The samples so far."""
        parts = [f"{HEADING.format(n)}\n{sample}\n" for n, sample in sorted(self.samples.items())]
        if parts:
            write_text(folder / SAMPLES, "\n".join(parts))


def _read(folder: Path) -> dict[int, str]:
    try:
        text = (folder / SAMPLES).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    parts = HEADINGS.split(text)[1:]
    return {int(n): sample.strip("\n") for n, sample in zip(parts[::2], parts[1::2], strict=True)}


def _in_bits(history: Sequence[Row]) -> list[Row]:
    """The losses of a history in bits."""
    return [
        {"epoch": row["epoch"]}
        | {
            name.replace("loss", "bits_per_token"): row.get(name, math.nan) / math.log(2)
            for name in ("loss", "held_out/loss")
        }
        for row in history
    ]


def _quoted(sample: str) -> str:
    """A sample behind a bar, without what would move the cursor."""
    lines = "".join(c if c.isprintable() or c == "\n" else "?" for c in sample).splitlines()
    return "\n".join(f"    | {line}" for line in lines)
