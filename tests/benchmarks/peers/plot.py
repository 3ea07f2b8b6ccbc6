"""The tables as a picture."""

from pathlib import Path
from typing import Any

from tests.benchmarks.peers.data import WORKS
from tests.benchmarks.peers.listed import PEERS


def drawn(found: dict[str, list[dict[str, Any]]], path: Path, seconds: str) -> None:
    """Bars: throughput over plain JAX's, and `seconds`, of which clock, to the target."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(found), 2, figsize=(10, 2.6 * len(found)), squeeze=False, layout="constrained"
    )
    for (work, rows), (left, right) in zip(found.items(), axes, strict=True):
        name, wanted = WORKS[work].target
        target = f"{wanted:.0%}" if name == "accuracy" else f"loss {wanted}"
        titles = (
            f"{work}: {WORKS[work].unit[0]}/s over plain JAX's",
            f"{work}: {seconds} to {target}",
        )
        for axis, key, title in zip((left, right), ("ratio", "target"), titles, strict=True):
            some = [row for row in reversed(rows) if row.get(key)]
            names = [PEERS[row["peer"]].says for row in some]
            colours = ["#d1495b" if row["peer"] == "funprop" else "#9aa5b1" for row in some]
            bars = axis.barh(names, [row[key] for row in some], color=colours)
            axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
            axis.set_title(title, fontsize=10, loc="left")
            axis.tick_params(labelsize=8)
            axis.margins(x=0.12)
            axis.spines[["top", "right"]].set_visible(False)
            if key == "ratio":
                axis.axvline(1, color="black", linewidth=0.6)
    figure.savefig(path, dpi=110)
    plt.close(figure)
