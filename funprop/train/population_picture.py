"""A picture of a population: how each member learned, and what its numbers made of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from funprop.train.population_table import PopulationTable

BEST, QUIET = "#d1242f", "#57606a"
SPREAD = 10  # of values: from here on the axis is logarithmic
TOP = 20  # times the median: what lies above is drawn at the edge


def draw(table: PopulationTable, file: str | os.PathLike[str], title: str) -> None:
    """The curves of all members, coloured by the first number; then, for each number, the last
    value of every member against it, with the median over those that share it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the picture needs matplotlib: pip install 'funprop[train]'"
        ) from None
    panels = 1 + max(1, len(table.numbers))
    figure = Figure(figsize=(5.6 * panels, 4.4), dpi=110, facecolor="white", layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    curves, *others = np.atleast_1d(figure.subplots(1, panels))
    values = table.curves[table.metric]
    finite = values[np.isfinite(values)]
    top = TOP * float(np.median(finite)) if finite.size else 1.0
    what = table.metric.replace("held_out/", "held-out ")
    colours = _curves(figure, curves, table, np.minimum(values, top), top, what)
    numbers = table.numbers or {"seed": table.seed}
    for axes, (name, each) in zip(others, numbers.items(), strict=True):
        _against(axes, table, name, each, colours, top)
        axes.set_title(f"{what} at the end", loc="left", fontsize=11)
    for axes in (curves, *others):
        if finite.size and finite.min() > 0:
            axes.set_yscale("log")
            axes.set_ylim(finite.min() * 0.8, min(top, finite.max()) * 1.25)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def _curves(
    figure: Any, axes: Any, table: PopulationTable, values: Any, top: float, what: str
) -> Any:
    """All curves, the best in red; the colour of each member."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    name, each = next(iter(table.numbers.items()), ("seed", table.seed))
    sound = each[values[-1] < top] if (values[-1] < top).any() else each
    norm = (LogNorm if _is_spread(sound) else Normalize)(sound.min(), sound.max(), clip=True)
    shades = colormaps["viridis"]
    colours = shades(norm(each))
    marker = "o" if len(table.epochs) == 1 else ""
    for i in reversed(table.order):
        best = i == table.best
        axes.plot(
            table.epochs,
            values[:, i],
            color=BEST if best else colours[i],
            linewidth=2.2 if best else 1,
            alpha=1 if best else 0.7,
            marker=marker,
            zorder=3 if best else 2,
            label=f"the best, member {i}" if best else None,
        )
    axes.set_title(f"{what}, {len(table.order)} members", loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    if sound.min() < sound.max():
        figure.colorbar(
            ScalarMappable(norm, shades), ax=axes, label=name.replace("_", " "), pad=0.02
        )
    return colours


def _against(
    axes: Any, table: PopulationTable, name: str, each: Any, colours: Any, top: float
) -> None:
    last = table.curves[table.metric][-1]
    lost = ~(last < top)
    axes.scatter(each[~lost], last[~lost], c=colours[~lost], s=26, alpha=0.85, edgecolors="none")
    if lost.any():
        label = f"{int(lost.sum())} diverged or far above"
        axes.scatter(
            each[lost],
            np.full(lost.sum(), 0.97),
            marker="x",
            color=QUIET,
            transform=axes.get_xaxis_transform(),
            label=label,
        )
    shared = np.unique(each)
    if len(shared) < len(each):
        medians = [np.median(np.where(lost, np.inf, last)[each == value]) for value in shared]
        kept = np.isfinite(medians)
        axes.plot(shared[kept], np.array(medians)[kept], color=QUIET, linewidth=1, label="median")
    axes.scatter(
        *([each[table.best]], [last[table.best]]),
        s=90,
        facecolors="none",
        edgecolors=BEST,
        linewidths=2,
        label=f"the best, {each[table.best]:.3g}",
    )
    low, high = each.min(), each.max()  # those that are lost have a place, too
    if _is_spread(each):
        axes.set_xscale("log")
        margin = (high / low) ** 0.05
        axes.set_xlim(low / margin, high * margin)
    elif low < high:
        axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_xlabel(name.replace("_", " "))
    axes.legend(frameon=False, fontsize=9)


def _is_spread(each: Any) -> bool:
    return bool(each.min() > 0 and each.max() / each.min() > SPREAD)
