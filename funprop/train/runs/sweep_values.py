"""What `--sweep` says: a number's name, and the values that it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

# The numbers of each optimizer that may be swept over, as optax calls them.
NUMBERS: dict[str, tuple[str, ...]] = {
    "sgd": ("learning_rate",),
    "momentum": ("learning_rate", "momentum"),
    "adam": ("learning_rate", "b1", "b2"),
    "adamw": ("learning_rate", "b1", "b2", "weight_decay"),
}
SPREAD = ("learning_rate", "weight_decay")  # whose values lie at equal ratios
MEMBERS = 4096


def sweep_values(text: str, optimizer: str) -> tuple[str, list[float]]:
    """A name and values, of `NAME=LOW..HIGH:COUNT` or `NAME=VALUE,VALUE,...`.

    Learning rate and weight decay lie at equal ratios, others at equal distances.

    Raises:
      ValueError: it is neither, or the optimizer has no such number.

    Example:
      >>> sweep_values("learning-rate=1e-3..1e-1:3", "adam")
      ('learning_rate', [0.001, 0.01, 0.1])
      >>> sweep_values("b1=0.5,0.9", "adam")
      ('b1', [0.5, 0.9])
    """
    name, _, values = text.partition("=")
    name = name.strip().replace("-", "_")
    known = NUMBERS[optimizer]
    if name not in known:
        raise ValueError(
            f"sweep must be over a number of {optimizer}, {', '.join(known)}, got {name!r}"
        )
    try:
        found = _range(values, name in SPREAD) if ".." in values else _numbers(values.split(","))
        _check(name, found)
    except ValueError as error:
        option = name.replace("_", "-")
        raise ValueError(
            f"sweep must be {option}=LOW..HIGH:COUNT or {option}=VALUE,VALUE, {error}, got {text!r}"
        ) from None
    return name, found


def _check(name: str, values: list[float]) -> None:
    if name == "learning_rate" and min(values) <= 0:
        raise ValueError("of numbers above 0")
    if min(values) < 0:
        raise ValueError("of numbers that are at least 0")
    if name not in SPREAD and max(values) >= 1:
        raise ValueError("of numbers below 1")


def _numbers(words: Sequence[str]) -> list[float]:
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise ValueError("of finite numbers")
    return found


def _range(text: str, ratios: bool) -> list[float]:
    ends, _, count = text.partition(":")
    low, high = _numbers(ends.split("..", 1))
    n = int(count) if count.isdecimal() else 0
    if n < 2:
        raise ValueError("with a COUNT of 2 or more")
    if not low < high:
        raise ValueError("with LOW below HIGH")
    if ratios and low <= 0:
        raise ValueError("with LOW above 0, as values lie at equal ratios")
    spaced = np.geomspace if ratios else np.linspace
    return [float(f"{x:.6g}") for x in spaced(low, high, n)]


def grid(sweeps: Sequence[str], optimizer: str, seeds: int) -> dict[str, list[float]]:
    """Every combination of the values of all sweeps, a column each.

    Raises:
      ValueError: one is not as it must be, two are of one name, or they are too many.

    Example:
      >>> grid(["learning-rate=0.1,0.2", "b1=0.5,0.9"], "adam", 1)
      {'learning_rate': [0.1, 0.1, 0.2, 0.2], 'b1': [0.5, 0.9, 0.5, 0.9]}
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    found = [sweep_values(text, optimizer) for text in sweeps]
    names = [name for name, _ in found]
    if len({*names}) < len(names):
        raise ValueError(f"sweep must name each number once, got {', '.join(names)}")
    n = math.prod(len(values) for _, values in found) * seeds
    if n > MEMBERS:
        raise ValueError(f"sweep must be of at most {MEMBERS:,} runs, got {n:,}")
    rows = itertools.product(*(values for _, values in found))
    columns = zip(*rows, strict=True)
    return dict(zip(names, map(list, columns), strict=True)) if names else {}
