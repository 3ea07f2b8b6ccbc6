"""One picture of a run: how it learned, and what it now says about data it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.train.runs.tasks import Task
from funprop.train.stopping import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

TRAIN, HELD_OUT, WRONG, QUIET = "#9aa5b1", "#1f6feb", "#d1242f", "#57606a"
GALLERY_ROWS, GALLERY_COLUMNS = 4, 7
RESTORED_COLUMNS = 6


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
    metric = next(iter(task.metrics))
    curves = left.subplots(1, 2)
    for axes, name in zip(curves, ["loss", metric], strict=True):
        _curve(axes, history, name)
    _make_room(left, curves)
    if not np.isfinite(outputs).all():
        _heading(right, "test data", "the network says NaN or infinity")
    elif task.image_shape and task.classes:
        _gallery(right, task, outputs)
    elif task.image_shape:
        _restored(right, task, outputs)
    elif task.classes:
        _confusion(right, task, outputs)
    else:
        _scatter(right, task, outputs)
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


def _gallery(figure: SubFigure, task: Task, outputs: Any) -> None:
    images, truth = task.test
    said = task.decide(outputs)
    shown = GALLERY_ROWS * GALLERY_COLUMNS
    wrong = np.flatnonzero(said != truth)
    chosen = np.concatenate([wrong, np.flatnonzero(said == truth)])[:shown]
    _heading(
        figure,
        f"test pictures and what the network says: {len(truth) - len(wrong)} of {len(truth)} right",
        "each with its prediction; the wrong ones come first, in red, with the truth beside",
    )
    grid = figure.subplots(GALLERY_ROWS, GALLERY_COLUMNS)
    figure.subplots_adjust(left=0.03, right=0.98, top=0.75, bottom=0.03, hspace=0.55, wspace=0.25)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i in zip(grid.flat, chosen, strict=False):
        right = said[i] == truth[i]
        label, true = task.classes[said[i]], task.classes[truth[i]]
        axes.imshow(images[i].reshape(task.image_shape), cmap="gray_r")
        axes.set_title(
            label if right else f"{label}, is {true}",
            fontsize=10,
            pad=3,
            color=QUIET if right else WRONG,
            fontweight="normal" if right else "bold",
        )
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="#d0d7de" if right else WRONG, linewidth=0.8 if right else 2.5)


def _restored(figure: SubFigure, task: Task, outputs: Any) -> None:
    _heading(
        figure,
        "test pictures: what the network is shown, and what it makes of it",
        "the first ones, none chosen; in the last row what it should be",
    )
    grid = figure.subplots(3, RESTORED_COLUMNS)
    figure.subplots_adjust(left=0.14, right=0.97, top=0.76, bottom=0.05, hspace=0.12, wspace=0.1)
    inputs, targets = task.test
    rows = {"input": inputs, "output": task.decide(outputs), "target": targets}
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", color=QUIET, labelpad=8)
        for axes, picture in zip(line, pictures, strict=False):
            # One scale for all: black is 1, white is 0.
            axes.imshow(picture.reshape(task.image_shape), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#d0d7de")


def _confusion(figure: SubFigure, task: Task, outputs: Any) -> None:
    counts = confusion(task, outputs)
    _heading(figure, "confusion matrix on the test data", "rows: the truth; columns: what it says")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.2, right=0.95, top=0.76, bottom=0.13)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        axes.text(
            j,
            i,
            str(count),
            ha="center",
            va="center",
            color="white" if share[i, j] > 0.5 else (WRONG if count and i != j else QUIET),
            fontweight="bold" if count else "normal",
        )
    places = range(len(task.classes))
    axes.set_xticks(places, task.classes)
    axes.set_yticks(places, task.classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _scatter(figure: SubFigure, task: Task, outputs: Any) -> None:
    name, mean, deviation = task.unit
    truth, said = task.test[1] * deviation + mean, task.decide(outputs) * deviation + mean
    _heading(figure, "test data: prediction against truth", "on the line, the prediction is right")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.14, right=0.95, top=0.78, bottom=0.13)
    ends = [min(truth.min(), said.min()), max(truth.max(), said.max())]
    axes.plot(ends, ends, color=QUIET, linewidth=1, linestyle="--")
    axes.scatter(truth, said, color=HELD_OUT, s=22, alpha=0.7, edgecolors="none")
    axes.set_xlabel(f"{name}, true")
    axes.set_ylabel("predicted")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _heading(figure: SubFigure, title: str, under: str) -> None:
    figure.text(0.03, 0.87, title, fontsize=11, ha="left")
    figure.text(0.03, 0.825, under, fontsize=9, ha="left", color=QUIET)


def confusion(task: Task, outputs: Any) -> Any:
    """How often each class (rows) was taken for each (columns), on the test data."""
    n = len(task.classes)
    pairs = task.test[1] * n + task.decide(outputs)
    return np.bincount(pairs, minlength=n * n).reshape(n, n)
