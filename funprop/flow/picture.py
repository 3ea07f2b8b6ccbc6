"""A picture of how activations, cotangents and updates are spread, by layer, over training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from funprop.checks import check_string, described
from funprop.flow.spread import DECADES, Spread
from funprop.flow.watch import Look, Watch
from funprop.params.selection import fits

ROWS = ("activation", "cotangent", "update")
TITLES = ("activations", "cotangents", "updates")
COLOURS = ("Blues", "Purples", "Greens")
OFF, QUIET = "#d1242f", "#57606a"
MOST = 16  # columns that a person still reads
TELLING = 0.2  # a share of dead units, or of saturated numbers, from which it is said


def gradient_flow(
    seen: Watch | Sequence[Look],
    file: str | os.PathLike[str] | None = None,
    *,
    where: str | None = None,
    title: str = "",
) -> Any:
    """A picture of what `watch` saw: a column a layer, over epochs; from above activations,
    cotangents and updates.

    In each field the darkness says how many numbers have that size, in absolute value, on a
    logarithmic axis; the line is the root of the mean square. In red stands what is off at the last
    look: units that are dead, numbers that are saturated. Of more than 16 layers those with
    params are shown, and of these 16 along the depth, if `where` chooses none.

    Args:
      seen: a `Watch` that was given to `fit`, or looks of one.
      file: where the PNG goes; without it, nothing is written.
      where: a pattern for the paths of layers, as `blocks[*]/*/output`; `*` stands for anything.
      title: over all.

    Returns:
      The figure of matplotlib.

    Raises:
      ModuleNotFoundError: without matplotlib.
      TypeError: `seen` is neither a `Watch` nor looks, `file` no path, or `where` or `title` no
        string.
      ValueError: nothing was seen, the looks are not all of one model, or `where` matches no layer.

    Example:
      >>> import jax, jax.numpy as jnp, optax, funprop as fp
      >>> line = fp.objective(fp.serial(fp.dense(1), fp.tanh()), fp.mean_squared())
      >>> batch = jnp.ones((4, 2)), jnp.zeros((4, 1))
      >>> train = fp.step(fp.backprop(line), optax.sgd(0.1))
      >>> seen = fp.watch()
      >>> state = train.init(line.init(jax.random.key(0), batch), None)
      >>> _ = seen.look(train, state, batch, epoch=0, update=0)
      >>> len(gradient_flow(seen).axes)  # two columns of three
      6
    """
    looks = _looks(seen)
    check_string("title", title)
    if not (file is None or isinstance(file, str | os.PathLike)):
        raise TypeError(f"file must be a path, got {described(file)}")
    if not looks:
        raise ValueError("gradient_flow needs at least one look, got none; fit(..., watch=) looks")
    paths = _chosen(looks, where)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the picture needs matplotlib: pip install 'funprop[train]'"
        ) from None
    size = max(5.0, 1.6 + 1.15 * len(paths)), 7.6
    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    grid = figure.subplots(3, len(paths), squeeze=False, sharex=True, sharey="row")
    for axes, kind, name, colours in zip(grid, ROWS, TITLES, COLOURS, strict=True):
        _row(axes, looks, paths, kind, colours)
        axes[0].set_ylabel(f"{name}, absolute", fontsize=10)
    for axes, path in zip(grid[0], paths, strict=True):
        axes.set_title(_short(path), fontsize=8, rotation=30, ha="left", x=0.05)
        _say(axes, looks[-1].layers[path])
    figure.supxlabel("epoch", fontsize=10)
    if file is not None:
        figure.savefig(file)
    return figure


def _looks(seen: Any) -> list[Look]:
    looks = seen.looks if isinstance(seen, Watch) else seen
    if not isinstance(looks, list | tuple) or not all(isinstance(look, Look) for look in looks):
        raise TypeError(f"seen must be a watch() or a list of its looks, got {described(seen)}")
    for look in looks:
        if list(look.layers) != list(looks[0].layers):
            raise ValueError(
                "seen must hold looks of one model, got layers "
                f"{', '.join(list(looks[0].layers)[:4])} and {', '.join(list(look.layers)[:4])}"
            )
    return list(looks)


def _chosen(looks: Sequence[Look], where: str | None) -> list[str]:
    layers = looks[0].layers
    if where is not None:
        check_string("where", where)
        paths = [path for path in layers if fits(path, where)]
        if not paths:
            some = ", ".join(list(layers)[:8])
            raise ValueError(f"where must match a layer, as {some}; got {where!r}")
        return paths
    paths = list(layers)
    if len(paths) > MOST:
        paths = [path for path in paths if looks[-1].layers[path].update is not None]
    if len(paths) > MOST:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, MOST).round().astype(int)]
    return paths


def _row(axes: Any, looks: Sequence[Look], paths: Sequence[str], kind: str, colours: str) -> None:
    spreads = {path: [getattr(look.layers[path], kind) for look in looks] for path in paths}
    every = [s for each in spreads.values() for s in each if s is not None]
    low, high = _range(every)
    edges = _edges([look.epoch for look in looks])
    for ax, path in zip(axes, paths, strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.set_ylim(10.0**low, 10.0**high)
        ax.set_yscale("log")
        ax.set_xlim(edges[0], edges[-1])
        seen = spreads[path]
        if all(s is None for s in seen):
            ax.set_facecolor("#f6f8fa")
            continue
        shares = np.array([_shares(s) for s in seen]).T
        sizes = 10.0 ** np.concatenate([[-12.5], DECADES, [4.5]])
        ax.pcolormesh(edges, sizes, shares, cmap=colours, vmin=0, vmax=0.5, rasterized=True)
        rms = [np.nan if s is None or not s.rms else s.rms for s in seen]
        marker = "o" if len(looks) < 3 else ""
        ax.plot([look.epoch for look in looks], rms, color="black", linewidth=1, marker=marker)
        if seen[-1] is not None and not any(seen[-1].bins):
            ax.text(0.5, 0.5, "all 0", color=OFF, ha="center", transform=ax.transAxes, fontsize=9)


def _shares(found: Spread | None) -> Any:
    if found is None:
        return np.zeros(len(DECADES) + 1)
    return np.asarray(found.bins) / max(1, found.size)


def _range(spreads: Sequence[Spread]) -> tuple[float, float]:
    """Of the exponents, without the last thousandth of the numbers at either end."""
    each = [10.0 ** np.arange(-2, 1)]
    for s in spreads:
        if any(s.bins):
            each.append(np.array([s.quantile(0.01), s.quantile(0.999)]))
    ends = np.log10(np.concatenate(each[1:] or each))
    return float(np.floor(ends.min())), float(np.ceil(ends.max() + 0.01))


def _edges(epochs: Sequence[float]) -> Any:
    """Of columns, one around each look."""
    x = np.asarray(epochs, float)
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])


def _say(axes: Any, flow: Any) -> None:
    told = [
        f"{share:.0%} {what}"
        for share, what in ((flow.dead, "dead"), (flow.saturated, "saturated"))
        if share >= TELLING
    ]
    if told:
        text = "\n".join(told)
        axes.text(0.04, 0.02, text, color=OFF, fontsize=8, transform=axes.transAxes, va="bottom")


def _short(path: str) -> str:
    return path if len(path) <= 24 else f"...{path[-22:]}"
