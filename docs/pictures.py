"""Draws the picture of docs/backpropagation.md: `python docs/pictures.py`."""

from pathlib import Path

import matplotlib.pyplot as plt

VALUE, GRADIENT = "#1f5f8b", "#b3312c"
NODES = {  # place, name, value, gradient
    "x1": (0, 1, "$x_1$", "1", "1"),
    "x2": (0, 0, "$x_2$", "2", "0.5"),
    "h1": (1.5, 1, "$h_1$", "1", "2"),
    "h2": (1.5, 0, "$h_2$", "0", "−1"),
    "y": (3, 0.5, "$y$", "2.5", "1"),
    "L": (4.2, 0.5, "$L$", "0.25", "1"),
}
EDGES = [  # from, to, weight, gradient, where along the edge
    ("x1", "h1", "0.5", "2", 0.5),
    ("x1", "h2", "1", "0", 0.28),
    ("x2", "h1", "0.25", "4", 0.28),
    ("x2", "h2", "−1", "0", 0.5),
    ("h1", "y", "2", "1", 0.5),
    ("h2", "y", "−1", "0", 0.5),
    ("y", "L", "", "", 0.5),
]


def main() -> None:
    figure, axes = plt.subplots(figsize=(8, 3.4), dpi=160)
    for start, end, weight, gradient, along in EDGES:
        (a, b, *_), (c, d, *_) = NODES[start], NODES[end]
        off = gradient == "0"
        axes.plot([a, c], [b, d], color="#aaaaaa", lw=1.2, ls=":" if off else "-", zorder=0)
        x, y = a + along * (c - a), b + along * (d - b)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
        axes.text(x, y + 0.055, weight, color=VALUE, ha="center", va="center", bbox=box)
        axes.text(x, y - 0.055, gradient, color=GRADIENT, ha="center", va="center", bbox=box)
    for x, y, name, value, gradient in NODES.values():
        axes.scatter(x, y, s=900, color="white", edgecolor="#444444", zorder=2)
        axes.text(x, y, name, ha="center", va="center", fontsize=12, zorder=3)
        axes.text(x, y + 0.24, value, color=VALUE, ha="center", fontsize=11, weight="bold")
        axes.text(x, y - 0.33, gradient, color=GRADIENT, ha="center", fontsize=11, weight="bold")
    axes.text(0, 1.55, "values, forward →", color=VALUE)
    axes.text(4.3, 1.55, "← gradients, backward", color=GRADIENT, ha="right")
    axes.set(xlim=(-0.4, 4.6), ylim=(-0.5, 1.7))
    axes.axis("off")
    figure.savefig(Path(__file__).parent / "images" / "pencil.png", bbox_inches="tight")


if __name__ == "__main__":
    main()
