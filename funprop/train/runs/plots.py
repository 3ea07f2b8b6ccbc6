"""One picture of a run: how it learned, and what it now says about data it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.train.runs.panels import draw_test
from funprop.train.runs.pictures import QUIET
from funprop.train.stopping import Row
from funprop.train.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, HELD_OUT = "#9aa5b1", "#1f6feb"


def draw(file: Path, task: Task, history: Sequence[Row], outputs: Any, title: str) -> None:
    """Curves of the loss and the first metric on the left; on the right the test data: pictures
    with their predictions, or what became of them; a confusion matrix; prediction against truth.

    Args:
      file: where the PNG goes.
      task: which data.
      history: as `fit` returns it, with held-out entries.
      outputs: of the trained model, for `task.test`.
      title: over all.
    """
    figure = _figure((12.5, 4.9), title)
    panels: Any = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    left, right = panels
    names = ["loss", *list(task.metrics or {})[:1]]
    curves = left.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(curves, names, strict=True):
        _curve(axes, history, name)
    _make_room(left, curves)
    draw_test(right, task, outputs)
    figure.savefig(file)


def curve(file: Path, history: Sequence[Row], name: str, title: str) -> None:
    """The curve of one metric, in training and held out, as a PNG."""
    figure = _figure((6.5, 4.2), title)
    axes = figure.subplots()
    _curve(axes, history, name)
    _make_room(figure, [axes])
    figure.savefig(file)


def _figure(size: tuple[float, float], title: str) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the picture needs matplotlib: pip install 'funprop[train]'"
        ) from None
    figure = Figure(figsize=size, dpi=110, facecolor="white")
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.02, y=0.97, ha="left")
    return figure


def _curve(axes: Axes, history: Sequence[Row], name: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    epochs = [row["epoch"] for row in history]
    finite: list[float] = []
    for key, label, color in (
        (name, "training", TRAIN),
        (f"held_out/{name}", "held out", HELD_OUT),
    ):
        values = [row[key] for row in history]
        shown = np.asarray(values)[np.isfinite(values)]
        finite.extend(shown)
        marker = "o" if len(shown) == 1 else ""  # a line needs two
        label = f"{label} {short(values[-1])}"
        axes.plot(epochs, values, color=color, linewidth=2, marker=marker, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(history) == 1:
        axes.set(xticks=epochs, xlim=(epochs[0] - 1, epochs[0] + 1))
    if not finite:
        axes.text(0.5, 0.4, "no finite value", ha="center", color=QUIET, transform=axes.transAxes)
        axes.set_yticks([])
    elif name == "loss" and min(finite) > 0:
        _log(axes, max(finite) / min(finite))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 6)))
    axes.set_title(name.replace("_", " "), loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _log(axes: Axes, ratio: float) -> None:
    """A logarithmic axis, with between two and ten numbers on it."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    if ratio < 10:
        axes.yaxis.set_major_locator(MaxNLocator(6))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1e3 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())


def short(value: float, digits: int = 3) -> str:
    """A number in few characters.

    Example:
      >>> short(0.25), short(0.0001), short(123456.0), short(2e30)
      ('0.25', '1e-4', '1.23e5', '2e30')
    """
    if value == 0 or not np.isfinite(value) or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _make_room(figure: Any, rows: Sequence[Axes], top: float = 0.8) -> None:
    """Margins as wide as the numbers beside the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure.figure).get_renderer()
    figure.figure.draw_without_rendering()
    boxes = [axes.yaxis.get_tightbbox(renderer) for axes in rows]
    margin = 0.03 + max(box.width if box else 0 for box in boxes) / figure.bbox.width
    each = (0.97 - margin * len(rows)) / len(rows)
    figure.subplots_adjust(left=margin, right=0.97, top=top, bottom=0.13, wspace=margin / each)
