"""An explanation as tables, one for each stage: plain, in a terminal, in a notebook."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from funprop.inspect.table import aligned
from funprop.nonfinite.numbers import short
from funprop.verify.report import shown

if TYPE_CHECKING:
    from funprop.explaining.calls import Call
    from funprop.explaining.explain import Explanation

COPY = re.compile(r"\[\d+\]")


class Stage(NamedTuple):
    """A table of one stage: the first row is its head; the columns `left` are flush left."""

    title: str
    rows: list[tuple[str, ...]]
    left: tuple[int, ...]


def stages(told: Explanation) -> list[Stage]:
    """The tables; the copies of a `repeat` share a row, with the range of their numbers."""
    groups: dict[str, list[Call]] = {}
    for call in told.layers:
        groups.setdefault(COPY.sub("", call.path), []).append(call)
    forward: list[tuple[str, ...]] = [("layer", "formula", "output", "mean", "deviation", "zeros")]
    backward: list[tuple[str, ...]] = [("layer", "formula", "|dy|", "|dx|", "gradients")]
    for calls in groups.values():
        name, one = _name(calls), calls[0]
        formula = one.formula
        y = [call.y for call in calls if call.y is not None]
        if y and one is not told.layers[-1]:
            shape = f"{y[0].dtype}[{','.join(map(str, y[0].shape))}]"
            numbers = [_range([getattr(s, f) for s in y]) for f in ("mean", "deviation")]
            zeros = _range([100 * s.zeros for s in y], "%")
            forward.append((name, formula.forward if formula else "-", shape, *numbers, zeros))
        norms = [
            _range([s.norm for s in found if s is not None])
            for found in ([c.dy for c in calls], [c.dx for c in calls])
        ]
        grads = [
            f"{leaf} {_range([c.gradients[leaf].norm for c in calls])}" for leaf in one.gradients
        ]
        row = (name, formula.backward if formula else "-", *norms, ", ".join(grads))
        backward.append(row)
    of_loss = told.layers[-1]
    loss: list[tuple[str, ...]] = [
        ("loss", "formula", "sum", "weight", "mean"),
        (
            of_loss.path,
            of_loss.formula.forward if of_loss.formula else "-",
            *map(short, (told.loss, told.weight, told.loss / (told.weight or 1.0))),
        ),
    ]
    update: list[tuple[str, ...]] = [
        ("param", "|weight|", "|gradient|", "|update|", "update / weight")
    ]
    for row in told.updates:
        grad = "fixed" if row.gradient is None else short(row.gradient.norm)
        ratio = f"{row.ratio:.1e}" if isfinite(row.ratio) else "-"
        sizes = short(row.weight.norm), grad, short(row.change.norm), ratio
        update.append((row.name, *sizes))
    backward[1:] = backward[:0:-1]
    terms = short(told.weight)
    return [
        Stage("1. Forward: what each layer gives", forward, (0, 1, 2)),
        Stage("2. Loss: how far the outputs are from the targets", loss, (0, 1)),
        Stage(f"3. Backward: of the sum over {terms} terms, last layer first", backward, (0, 1, 4)),
        Stage(f"4. Update: of the mean, by {told.optimizer}", update, (0,)),
    ]


def text(told: Explanation) -> str:
    """In colour where it goes to a terminal and rich is installed, else plain."""
    return shown(told)


def plain(told: Explanation) -> str:
    """All tables and notes as plain text."""
    parts = []
    for stage in stages(told):
        lines = aligned([tuple(map(_cut, row)) for row in stage.rows], stage.left)
        rule = "-" * max(map(len, lines))
        parts.append("\n".join([stage.title, "", lines[0], rule, *lines[1:]]))
    return "\n\n".join([*parts, _notes(told)])


def rich(told: Explanation) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = []
    for stage in stages(told):
        head, *rows = stage.rows
        table = Table(title=stage.title, title_justify="left", box=None, pad_edge=False)
        for i, name in enumerate(head):
            left = i in stage.left
            table.add_column(name, justify="left" if left else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        tables += [table, Text()]
    return Group(*tables, Text(_notes(told), style="yellow" if told.notes else "green"))


def _notes(told: Explanation) -> str:
    if not told.notes:
        return "Nothing is off."
    return "\n".join(["What is off:", *(f"  {note}" for note in told.notes)])


def _name(calls: Sequence[Call]) -> str:
    if len(calls) == 1:
        return calls[0].path
    return f"{COPY.sub('', calls[0].path)} (x {len(calls)})"


def _range(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return ""
    low, high = short(float(np.min(values))), short(float(np.max(values)))  # NaN where one is
    return f"{low}{unit}" if low == high else f"{low}{unit} to {high}{unit}"


def _cut(cell: str) -> str:
    return cell if len(cell) <= 44 else f"{cell[:41]}..."
