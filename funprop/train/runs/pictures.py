"""Pictures that a network was shown, drawn with what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.train.runs.told import shortened
from funprop.train.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

WRONG, QUIET, PALE = "#d1242f", "#57606a", "#d0d7de"
GALLERY_ROWS, GALLERY_COLUMNS = 4, 7
RESTORED_COLUMNS = 6


def gallery(figure: SubFigure, task: Task, outputs: Any) -> None:
    """Pictures, each with its prediction."""
    images, truth = task.test[:2]
    said = np.asarray(task.decide(outputs) if task.decide else outputs)
    shown = GALLERY_ROWS * GALLERY_COLUMNS
    wrong = np.flatnonzero(said != truth)
    chosen = np.concatenate([wrong, np.flatnonzero(said == truth)])[:shown]
    heading(
        figure,
        f"test pictures and what the network says: {len(truth) - len(wrong)} of {len(truth)} right",
        "each with its prediction; the wrong ones come first, in red, with the truth beside",
    )
    grid = figure.subplots(GALLERY_ROWS, GALLERY_COLUMNS)
    figure.subplots_adjust(left=0.03, right=0.98, top=0.75, bottom=0.03, hspace=0.55, wspace=0.25)
    for axes in grid.flat:
        axes.set_axis_off()
    longest = max(map(len, task.classes))
    for axes, i in zip(grid.flat, chosen, strict=False):
        right = said[i] == truth[i]
        label, true = (shortened(task.classes[j], 9) for j in (said[i], truth[i]))
        gap = ", is " if longest < 5 else "\nis "
        axes.imshow(_picture(images[i], task.image_shape), cmap="gray_r")
        axes.set_title(
            label if right else f"{label}{gap}{true}",
            fontsize=10 if longest < 5 else 7.5,
            pad=3,
            color=QUIET if right else WRONG,
            fontweight="normal" if right else "bold",
        )
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=PALE if right else WRONG, linewidth=0.8 if right else 2.5)


def _picture(image: Any, shape: tuple[int, ...]) -> Any:
    """As matplotlib takes it: colour from 0 to 1."""
    image = np.asarray(image).reshape(shape)
    if shape[-1:] != (3,):
        return image.reshape(shape[:2])
    low, high = min(0.0, float(image.min())), max(1.0, float(image.max()))
    return (image - low) / (high - low)


def restored(figure: SubFigure, task: Task, outputs: Any) -> None:
    """Pictures, and what became of them."""
    heading(
        figure,
        "test pictures: what the network is shown, and what it makes of it",
        "the first ones, none chosen; in the last row what it should be",
    )
    grid = figure.subplots(3, RESTORED_COLUMNS)
    figure.subplots_adjust(left=0.14, right=0.97, top=0.76, bottom=0.05, hspace=0.12, wspace=0.1)
    inputs, targets = task.test[:2]
    rows = {"input": inputs, "output": outputs, "target": targets}
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", color=QUIET, labelpad=8)
        for axes, picture in zip(line, pictures, strict=False):
            # One scale for all: black is 1, white is 0.
            axes.imshow(_picture(picture, task.image_shape), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(PALE)


def heading(figure: SubFigure, title: str, under: str) -> None:
    """What a panel shows, in two lines."""
    figure.text(0.03, 0.87, title, fontsize=11, ha="left")
    figure.text(0.03, 0.825, under, fontsize=9, ha="left", color=QUIET)
