"""What a run shows while it runs: a live line in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from funprop.train.stopping import Row

HIDDEN = ("epoch", "update", "member", "members", "seconds", "examples_per_second")


class Progress(AbstractContextManager[Any, Any], Protocol):
    """A display; `fit` calls it and never asks it anything."""

    def begin(self, history: Sequence[Row]) -> None:
        """Before the first device call, with the rows of the epochs that a run that goes on has
        behind it. A display need not have this."""

    def update(self, epoch: float, epochs: int, examples: int, means: Row) -> None:
        """After each device call: epochs done so far (a fraction), of how many, of what size."""

    def epoch(self, row: Row, epochs: int) -> None:
        """After each epoch, with its row of the history."""

    def end(self, reason: str) -> None:
        """When the run ends, and why."""


def for_terminal() -> Progress:
    """`live` where standard output is a terminal and rich is installed, else `lines`."""
    if sys.stdout is not None and sys.stdout.isatty():
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

    def begin(self, history: Sequence[Row]) -> None:
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

    def begin(self, history: Sequence[Row]) -> None:
        if history:
            self._print(_goes_on(history))

    def epoch(self, row: Row, epochs: int) -> None:
        self.latest = row
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + self.seconds
            self._show(row)

    def end(self, reason: str) -> None:
        if self.latest is not self.shown and self.latest is not None:
            self._show(self.latest)
        self._print(f"stopped: {reason}")

    def _show(self, row: Row) -> None:
        self.shown = row
        speed = f"{row['examples_per_second']:,.0f} examples/s"
        self._print(f"epoch {row['epoch']:<6g} {_metrics(row)}  {speed}")

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a reader that has seen enough ends no training
            print(text, flush=True)


class live(silent):
    """One live line: the epoch, a bar where there is room, the loss and the metrics (training, then
    held-out after a stroke), examples a second and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console()
        bar = [BarColumn(bar_width=16)] if console.width >= 100 else []
        self.bar = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}"),
            *bar,
            TextColumn("{task.fields[metrics]}", markup=False),
            TextColumn("[cyan]{task.fields[speed]} examples/s"),
            TimeRemainingColumn(),
            TextColumn("[dim]left"),
            console=console,
        )
        self.task: Any = None
        self.behind = 0.0  # epochs of before
        self.start = time.monotonic()
        self.row: Row = {}

    def __enter__(self) -> live:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def begin(self, history: Sequence[Row]) -> None:
        if history:
            self.bar.console.print(_goes_on(history), highlight=False)

    def update(self, epoch: float, epochs: int, examples: int, means: Row) -> None:
        if self.task is None:
            self.behind, self.start = epoch, time.monotonic()
            self.task = self.bar.add_task("", total=epochs, epoch="", metrics="", speed="")
        self.bar.update(
            self.task,
            completed=epoch,
            epoch=f"{min(int(epoch) + 1, epochs)}/{epochs}",
            metrics=self._pairs(means),
            speed=_short(examples * (epoch - self.behind) / self._seconds()),
        )

    def _seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    def _pairs(self, means: Row) -> str:
        return " ".join(self._pair(*pair) for pair in means.items() if _tells(*pair))

    def _pair(self, name: str, value: float) -> str:
        held_out = self.row.get(f"held_out/{name}")
        return f"{name} {value:.3f}" + ("" if held_out is None else f"/{held_out:.3f}")

    def epoch(self, row: Row, epochs: int) -> None:
        self.row = row
        if self.task is not None:  # what has been held out is measured after the last update
            means = {name: v for name, v in row.items() if not name.startswith("held_out/")}
            self.bar.update(self.task, metrics=self._pairs(means))

    def end(self, reason: str) -> None:
        self.bar.stop()
        self.bar.console.print(f"[dim]stopped:[/dim] {reason}", highlight=False)


def _goes_on(history: Sequence[Row]) -> str:
    return f"going on after epoch {history[-1]['epoch']:g}"


def _short(speed: float) -> str:
    return f"{speed / 1000:,.0f}k" if speed >= 10_000 else f"{speed:,.0f}"


def _metrics(row: Row) -> str:
    return "  ".join(
        f"{name.replace('held_out/', 'held-out ')} {value:.4f}"
        for name, value in row.items()
        if _tells(name, value)
    )


def _tells(name: str, value: float) -> bool:
    """Whether it is said: that no update was skipped need not be."""
    return name not in HIDDEN and (name != "skipped" or value != 0)
