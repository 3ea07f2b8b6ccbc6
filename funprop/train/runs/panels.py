"""The right half of a run's picture: what the network says of data that it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop.train.runs.pictures import PALE, QUIET, WRONG, gallery, heading, restored
from funprop.train.runs.told import confusion, shortened
from funprop.train.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

HELD_OUT = "#1f6feb"
MOST_NUMBERS = 12  # classes whose counts are written into a confusion matrix
MOST_TICKS = 24  # classes whose names stand beside it
MOST_PARTS = 4  # targets that are drawn
MOST_POINTS = 2000


def draw_test(figure: SubFigure, task: Task, outputs: Any) -> None:
    """Pictures with their predictions, or what became of them; a confusion matrix; prediction
    against truth; of several targets, each of the first ones."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs)):
        heading(figure, "test data", "the network says NaN or infinity")
    elif task.parts:
        _several(figure, task, outputs)
    elif not hasattr(outputs, "shape") or (outputs.ndim > 2 and not task.image_shape):
        heading(figure, "test data", "outputs of this shape are not drawn")
    elif task.image_shape and task.classes:
        gallery(figure, task, outputs)
    elif task.image_shape and np.shape(outputs) == np.shape(task.test[0]):
        restored(figure, task, outputs)
    elif task.classes:
        heading(
            figure, "confusion matrix on the test data", "rows: the truth; columns: what it says"
        )
        axes = figure.subplots()
        _confusion(axes, task, outputs)
        _fit_names(figure, task)
    elif np.shape(outputs) == np.shape(task.test[1]):
        heading(
            figure, "test data: prediction against truth", "on the line, the prediction is right"
        )
        axes = figure.subplots()
        figure.subplots_adjust(left=0.16, right=0.95, top=0.78, bottom=0.13)
        _scatter(axes, task, outputs)
    else:
        heading(figure, "test data", "outputs that are unlike the targets are not drawn")


def _several(figure: SubFigure, task: Task, outputs: Any) -> None:
    shown = [*zip(task.parts, outputs, strict=True)][:MOST_PARTS]
    of = f"the first {len(shown)} of " if len(task.parts) > len(shown) else ""
    heading(figure, f"test data: {of}{len(task.parts)} targets", "truth and prediction of each")
    columns = 1 if len(shown) == 1 else 2
    grid = figure.subplots(-(-len(shown) // columns), columns, squeeze=False)
    figure.subplots_adjust(left=0.16, right=0.96, top=0.74, bottom=0.1, hspace=0.65, wspace=0.5)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (part, output) in zip(grid.flat, shown, strict=False):
        axes.set_axis_on()
        (_confusion if part.classes else _scatter)(axes, part, output, small=True)
        axes.set_title(shortened(part.unit[0], 24), fontsize=9, loc="left")


def _confusion(axes: Axes, task: Task, outputs: Any, small: bool = False) -> None:
    counts, n = confusion(task, outputs), len(task.classes)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= (MOST_NUMBERS // 2 if small else MOST_NUMBERS):
        for (i, j), count in np.ndenumerate(counts):
            axes.text(
                j,
                i,
                str(count),
                ha="center",
                va="center",
                fontsize=8 if small else 10,
                color="white" if share[i, j] > 0.5 else (WRONG if count and i != j else QUIET),
                fontweight="bold" if count else "normal",
            )
    axes.tick_params(length=0, labelsize=7 if small or n > MOST_NUMBERS else 10)
    axes.spines[:].set_visible(False)
    if n > (MOST_NUMBERS if small else MOST_TICKS):
        axes.set(xticks=[], yticks=[], xlabel=f"{n} classes")
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(PALE)
        return
    names = [shortened(name, 10 if small else 14) for name in task.classes]
    axes.set_yticks(range(n), names)
    crowded = sum(map(len, names)) > (22 if small else 42)
    axes.set_xticks(range(n), names)
    if crowded:
        upright = n > 6
        for label in axes.get_xticklabels():
            label.set(rotation=90 if upright else 35, rotation_mode="anchor", ha="right")
            label.set(va="center" if upright else "top")


def _fit_names(figure: SubFigure, task: Task) -> None:
    """Room for the names beside the matrix and below it."""
    longest = max(len(shortened(name, 14)) for name in task.classes)
    few = len(task.classes) <= MOST_TICKS
    side = 0.06 + 0.016 * longest if few else 0.08
    crowded = few and sum(min(14, len(name)) for name in task.classes) > 42
    below = 0.06 + (0.02 * longest if crowded else 0.07)
    figure.subplots_adjust(left=max(0.12, side), right=0.95, top=0.78, bottom=below)


def _scatter(axes: Axes, task: Task, outputs: Any, small: bool = False) -> None:
    name, mean, deviation = task.unit
    truth, said = (np.asarray(x).reshape(-1) * deviation + mean for x in (task.test[1], outputs))
    ends = [min(truth.min(), said.min()), max(truth.max(), said.max())]
    axes.plot(ends, ends, color=QUIET, linewidth=1, linestyle="--")
    many = len(truth) > MOST_POINTS // 4
    axes.scatter(
        truth,
        said,
        color=HELD_OUT,
        s=6 if small or many else 22,
        alpha=0.35 if many else 0.7,
        edgecolors="none",
    )
    if small:
        axes.tick_params(labelsize=7)
    else:
        axes.set_xlabel(f"{shortened(name, 40)}, true" if name else "true")
        axes.set_ylabel("predicted")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
