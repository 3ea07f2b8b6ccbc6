"""The pictures of docs/benchmarks/scale.md from the numbers of `scale` and `scale_devices`.

Run: python -m tests.benchmarks.scale_plots SCALE.json DEVICES.json docs/images
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tests.benchmarks.scale import AXES, numbers_at

# Blue for ours and orange for plain JAX, also apart in a print without colours.
LOOKS: dict[str, Any] = {
    "funprop": {"color": "#1f5fa8", "marker": "o"},
    "funprop, remat": {"color": "#1f5fa8", "marker": "o", "ls": "--", "mfc": "white"},
    "plain JAX": {"color": "#d9730d", "marker": "s"},
    "plain JAX, checkpoint": {"color": "#d9730d", "marker": "s", "ls": "--", "mfc": "white"},
}
UNITS = {
    "depth": "blocks",
    "width": "features",
    "batch": "sequences",
    "sequence": "tokens",
    "vocabulary": "tokens known",
}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "figure.dpi": 110,
}


def plain(x: float, _: Any = None) -> str:
    """A number as people write it."""
    return f"{x / 1024:g}k" if x >= 1024 and x % 1024 == 0 else f"{x:g}"


def ticked(ax: Any, axis: str) -> None:
    """The points measured along an axis, at equal distances."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(AXES[axis]))
    ax.xaxis.set_major_formatter(FuncFormatter(plain))
    ax.xaxis.set_minor_locator(NullLocator())


def draw(ax: Any, numbers: Any, axis: str, what: str) -> None:
    """One quantity along one axis, on logarithmic scales."""
    for name, look in LOOKS.items():
        heights = [numbers_at(numbers, axis, value)[name][what] for value in AXES[axis]]
        ax.plot(AXES[axis], heights, label=name, lw=1.8, ms=6, **look)
    ticked(ax, axis)


def many(ax: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = [m * 10.0**e for e in range(-2, 5) for m in (1, 2, 5)]
    ax.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def titled(figure: Any, ax: Any, title: str, places: tuple[int, float, float]) -> None:
    """The names of one of the axes below the figure, and a title, of this size, above; between
    them, from and to these heights, the axes."""
    size, bottom, top = places
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(handles), loc="lower center", frameon=False)
    figure.suptitle(title, fontsize=size)
    figure.tight_layout(rect=(0, bottom, 1, top))


def costs(numbers: Any, into: Path) -> None:
    """Time above memory, a column for each axis."""
    figure, grid = plt.subplots(2, len(AXES), figsize=(15, 6.4), sharey="row")
    for column, axis in zip(grid.T, AXES, strict=True):
        for ax, what in zip(column, ("step ms", "temporary MiB"), strict=True):
            draw(ax, numbers, axis, what)
        column[0].set_title(axis, fontweight="bold")
        column[1].set_xlabel(f"{axis} ({UNITS[axis]})")
    for row, label in zip(grid, ("time of a step (ms)", "temporary memory (MiB)"), strict=True):
        many(row[0])
        row[0].set_ylabel(label)
    titled(
        figure,
        grid[0, 0],
        "A GPT's training step: the hand-written backward takes 0.26 to 0.64 of the "
        "memory of plain JAX, and 0.55 to 0.86 of the time",
        (13, 0.05, 0.98),
    )
    figure.savefig(into / "scale-costs.png")


def compiling(numbers: Any, into: Path) -> None:
    """Tracing and compiling against depth and sequence, from zero."""
    figure, four = plt.subplots(1, 4, figsize=(13, 4.2), sharey=True)
    cells = [(axis, what) for axis in ("depth", "sequence") for what in ("trace s", "compile s")]
    for ax, (axis, what) in zip(four, cells, strict=True):
        if (axis, what) == ("depth", "compile s"):  # in turns: what differs little
            for name, look in (("funprop", "funprop"), ("plain", "plain JAX")):
                took = [numbers["compiling"][name][str(depth)] for depth in AXES[axis]]
                ax.plot(AXES[axis], took, lw=1.8, ms=6, **LOOKS[look])
            ticked(ax, axis)
        else:
            draw(ax, numbers, axis, what)
        ax.set_xlabel(f"{axis} ({UNITS[axis]})")
        ax.set_title("tracing and lowering" if what == "trace s" else "XLA's compilation")
    four[0].set_ylim(0, 4.2)  # shared
    four[0].set_ylabel("seconds")
    titled(
        figure,
        four[0],
        "Time to a first step: compiling takes the same at any depth under repeat; ours "
        "grows with the sequence",
        (12, 0.07, 1),
    )
    figure.savefig(into / "scale-compile.png")


def traffic(found: Any, into: Path) -> None:
    """Bytes that a device sends in a step, beside the least."""
    figure, axes = plt.subplots(1, len(found), figsize=(12, 4.4), sharey=True)
    for ax, (way, rows) in zip(axes, found.items(), strict=True):
        devices = [row["devices"] for row in rows]
        places = range(len(devices))
        for shift, what, color, name in (
            (-0.27, "least MiB", "#9a9a9a", "the least that the mathematics needs"),
            (0, "with scatter MiB", "#7fb0e0", "ours, a sum that is cut counted as reduce-scatter"),
            (0.27, "sent MiB", "#1f5fa8", "ours, as XLA compiles it for a CPU"),
        ):
            sizes = [row[what] for row in rows]
            bars = ax.bar([p + shift for p in places], sizes, 0.26, color=color, label=name)
            ax.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
        ax.set_xticks(list(places), [str(n) for n in devices])
        ax.set_xlabel("devices")
        ax.set_title(way)
        ax.grid(visible=False, axis="x")
    axes[0].set_ylabel("sent by a device in a step (MiB)")
    title = "Bytes moved between devices, beside the least that must be"
    titled(figure, axes[0], title, (13, 0.07, 1))
    figure.savefig(into / "scale-devices.png")


def main() -> None:
    """Draw all."""
    scale, devices, into = map(Path, sys.argv[1:])
    with mpl.rc_context(STYLE):
        costs(json.loads(scale.read_text()), into)
        compiling(json.loads(scale.read_text()), into)
        traffic(json.loads(devices.read_text()), into)


if __name__ == "__main__":
    main()
