"""What a run shows while it runs: a live line in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol

from funprop.train.stopping import Row

HIDDEN = ("epoch", "seconds", "examples_per_second")


class Progress(AbstractContextManager, Protocol):
    """A display; `fit` calls it and never asks it anything."""

    def update(self, epoch: float, epochs: int, examples: int, means: Row) -> None:
        """After each device call: epochs done so far (a fraction), of how many, of what size."""

    def epoch(self, row: Row, epochs: int) -> None:
        """After each epoch, with its row of the history."""

    def end(self, reason: str) -> None:
        """When the run ends, and why."""


def for_terminal() -> Progress:
    """`live` where standard output is a terminal and rich is installed, else `lines`."""
    if sys.stdout.isatty():
        try:
            return live()
        except ModuleNotFoundError:
            pass
    return lines()


class silent:
    """Shows nothing."""

    def __enter__(self) -> silent:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def update(self, epoch: float, epochs: int, examples: int, means: Row) -> None:
        pass

    def epoch(self, row: Row, epochs: int) -> None:
        pass

    def end(self, reason: str) -> None:
        pass


class lines(silent):
    """A line an epoch, and at most one every `seconds`; the last epoch always."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.shown: Row | None = None
        self.latest: Row | None = None
        self.next = 0.0

    def epoch(self, row: Row, epochs: int) -> None:
        self.latest = row
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + self.seconds
            self._show(row)

    def end(self, reason: str) -> None:
        if self.latest is not self.shown and self.latest is not None:
            self._show(self.latest)
        print(f"stopped: {reason}", flush=True)

    def _show(self, row: Row) -> None:
        self.shown = row
        speed = f"{row['examples_per_second']:,.0f} examples/s"
        print(f"epoch {row['epoch']:<6g} {_metrics(row)}  {speed}", flush=True)


class live(silent):
    """One live line: a bar, the epoch, the metrics, examples a second and the time left."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.bar = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[metrics]}"),
            TextColumn("[dim]{task.fields[speed]}"),
            TextColumn("[dim]elapsed"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
        )
        self.task: Any = None
        self.start = time.monotonic()
        self.row: Row = {}

    def __enter__(self) -> live:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def update(self, epoch: float, epochs: int, examples: int, means: Row) -> None:
        if self.task is None:
            self.task = self.bar.add_task("", total=epochs, epoch="", metrics="", speed="")
        held_out = {k: v for k, v in self.row.items() if k.startswith("held_out/")}
        speed = examples * epoch / max(time.monotonic() - self.start, 1e-9)
        self.bar.update(
            self.task,
            completed=epoch,
            epoch=f"{min(int(epoch) + 1, epochs)}/{epochs}",
            metrics=_metrics(means | held_out),
            speed=f"{speed:,.0f} examples/s",
        )

    def epoch(self, row: Row, epochs: int) -> None:
        self.row = row

    def end(self, reason: str) -> None:
        self.bar.stop()
        self.bar.console.print(f"[dim]stopped:[/dim] {reason}", highlight=False)


def _metrics(row: Row) -> str:
    return "  ".join(
        f"{name.replace('held_out/', 'held-out ')} {value:.4f}"
        for name, value in row.items()
        if name not in HIDDEN
    )
