"""A history in a notebook: its curves, where matplotlib is installed, and its last rows."""

from __future__ import annotations

import io
from collections.abc import Sequence

from funprop.inspect.table import as_html
from funprop.train.stopping import Row

SHOWN = 5  # rows


def history_html(history: Sequence[Row], stopped: str) -> str:
    """Curves of the losses, and a table of the last rows.

    Example:
      >>> history_html([{"epoch": 1.0, "loss": 0.5}], "all 1 epochs done").count("<tr>")
      2
    """
    last = history[-1] if history else {}
    names = [name for name, value in last.items() if isinstance(value, float)]
    rows = [names, *([f"{row.get(n, float('nan')):.4g}" for n in names] for row in history)]
    table = as_html([rows[0], *rows[1:][-SHOWN:]], left=()) if names else ""
    return f"{_curves(history)}{table}<p>{len(history)} rows; {stopped}</p>"


def _curves(history: Sequence[Row]) -> str:
    if len(history) < 2:
        return ""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return ""
    figure = Figure((6, 3), layout="constrained")
    axes = figure.subplots()
    for name in ("loss", "held_out/loss"):
        values = [row.get(name, float("nan")) for row in history]
        if any(name in row for row in history):
            axes.plot([row["epoch"] for row in history], values, label=name)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return "<svg" + file.getvalue().partition("<svg")[2]  # without the head of a file
