"""What was found: one row for each leaf, as text or as a table."""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from funprop.inspect.table import as_html
from funprop.verify.written import as_json


class Check(NamedTuple):
    """What was found for one leaf of one part's gradient.

    Attributes:
      layer: where the part is in the model: `serial/dense[0]`; of a rule, its name.
      path: part and leaf: `serial/dense[0]/w`; `dx` for the input of a layer. Of a combinator,
        whose leaves are its children's, `serial: dense[0]/w`.
      error: largest distance from the truth, relative to the largest element of the truth; of a
        large part that is right it may be that from autodiff in the same precision.
      allowed: the distance that was allowed there, relative in the same way.
      worst: the index of the element that is furthest beyond what is allowed.
      problem: what is wrong, in one sentence; empty where nothing is.
      story: the kind of mistake that explains it, in a word or two; empty where none does.
      point: at which input it was found; empty for the given one.
      note: what else should be known, such as a kink at this point.
      source: file and line of the rule or the function; empty where they are not known.
    """

    layer: str
    path: str
    error: float = 0.0
    allowed: float = 0.0
    worst: tuple[int, ...] = ()
    problem: str = ""
    story: str = ""
    point: str = ""
    note: str = ""
    source: str = ""

    @property
    def help(self) -> str:
        """Where the usual cause and the remedy stand; empty where nothing is wrong."""
        return f"docs/stories.md#{self.story.lower().replace(' ', '-')}" if self.story else ""


class Example(NamedTuple):
    """The smallest and simplest input that was found on which a gradient is wrong.

    Attributes:
      path: the leaf whose gradient is wrong.
      inputs: what the part was given, by path.
      cotangents: of its outputs.
      got, expected: that leaf's gradient.
    """

    path: str
    inputs: dict[str, Any]
    cotangents: tuple[Any, ...]
    got: Any
    expected: Any


class Report(NamedTuple):
    """Every leaf of every part's gradient. `print` shows it as a table.

    Attributes:
      checks: a row for each leaf.
      notes: what was done and what could not be.
      examples: for each wrong part, the smallest input that shows it.
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.findings

    @property
    def findings(self) -> tuple[Check, ...]:
        """The leaves that are wrong."""
        return tuple(check for check in self.checks if check.problem)

    def raise_if_wrong(self) -> None:
        """Raise an `AssertionError`, the table its message, where a leaf is wrong."""
        if not self.ok:
            n = len(self.findings)
            raise AssertionError(f"{n} gradient{'s are' if n > 1 else ' is'} wrong\n{self.plain()}")

    def to_json(self) -> str:
        """The report as a JSON object, with versions and platform; see docs/verify.md."""
        return as_json(self)

    def __repr__(self) -> str:
        """In one line."""
        wrong = [check.path for check in self.findings]
        if not wrong:
            return f"Report({len(self.checks)} right)"
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return f"Report({len(wrong)} of {len(self.checks)} wrong: {', '.join(wrong[:3])}{more})"

    def __str__(self) -> str:
        """The table: in colour where it goes to a terminal and rich is installed, else plain."""
        return shown(self)

    def _repr_html_(self) -> str:
        rows = [("gradient of", "error", "allowed", "")]
        for check in self.checks:
            error, allowed = _number(check.error), _number(check.allowed)
            rows.append((check.path, error.strip(), allowed.strip(), _verdict(check)))
        return notebook(rows, (0, 3), self._below())

    def plain(self) -> str:
        """The table as plain text."""
        paths = [check.path for check in self.checks]
        width = max(map(len, ["gradient of", *paths]))
        lines = [f"{'gradient of':{width}}    error  allowed"]
        for check, path in zip(self.checks, paths, strict=True):
            numbers = f"{_number(check.error)}  {_number(check.allowed)}"
            lines.append(f"{path:{width}}  {numbers}  {_verdict(check)}")
        return "\n".join([*lines, *self._below()])

    def _below(self) -> list[str]:
        """What stands under the table."""
        n = len(self.checks)
        wrong = {check.path for check in self.findings}
        of = f"{n} gradient{'' if n == 1 else 's'}"
        summary = f"{len(wrong)} of {of} wrong" if wrong else f"{of} right"
        unit = "error and allowed: of each gradient's largest element"
        pages = dict.fromkeys(check.help for check in self.findings if check.help)
        remedy = [f"usual causes and remedies: {', '.join(pages)}"] if pages else []
        lines = [f"{summary} ({unit})"] if n else []
        return [*lines, *remedy, *self.notes, *map(_example_lines, self.examples)]

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("gradient of", overflow="fold")
        for name in ("error", "allowed"):
            table.add_column(name, justify="right")
        table.add_column("", overflow="fold")
        for check in self.checks:
            style = "bold red" if check.problem else "green"
            table.add_row(
                Text(check.path),
                _number(check.error).strip(),
                _number(check.allowed).strip(),
                Text(_verdict(check), style=style),
            )
        return Group(table, *map(Text, self._below()))


def shown(report: Any) -> str:
    """A report's `__rich__` where it goes to a terminal and rich is installed, else its `plain`."""
    if sys.stdout is None or not sys.stdout.isatty():
        return report.plain()
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return report.plain()
    console = Console()
    with console.capture() as captured:
        console.print(report)
    return captured.get().rstrip("\n")


def notebook(rows: Sequence[Sequence[str]], left: Collection[int], below: Sequence[str]) -> str:
    """A report as HTML: its table, and what stands under it."""
    return f"{as_html(rows, left)}<pre>{html.escape(chr(10).join(below))}</pre>"


def _verdict(check: Check) -> str:
    verdict = check.problem or "ok"
    return f"{verdict} ({check.note})" if check.note else verdict


def _number(value: float) -> str:
    return f"{value:7.1e}" if math.isfinite(value) else f"{value:7}"


def _example_lines(example: Example) -> str:
    lines = [f"smallest input found on which the gradient of {example.path} is wrong:"]
    values = {
        **example.inputs,
        "cotangent of the output": example.cotangents[0]
        if len(example.cotangents) == 1
        else list(example.cotangents),
        "gradient": example.got,
        "should be": example.expected,
    }
    lines += [f"  {name} = {_value(value)}" for name, value in values.items()]
    return "\n".join(lines)


def _value(value: Any) -> str:
    shown = np.array2string(value, precision=4) if isinstance(value, np.ndarray) else str(value)
    text = " ".join(shown.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
