"""What was found of a training step: a row for each check, as text or as a table."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from funprop.verify.report import notebook, shown


class StepCheck(NamedTuple):
    """What one check found of a training step.

    Attributes:
      name: of the check, as `skip` takes it.
      problem: what is wrong, in one sentence; empty where nothing is.
      unasked: why it could not be asked; empty where it was.
      note: what else should be known.
      leaf: the leaf of the state, or the metric, that shows it most.
      error: how far that is off, relative to how much an update changes it.
      allowed: what rounding may make of it, relative in the same way.
      examples: how many examples the smallest batch has that shows it; 0 where that says nothing.
    """

    name: str
    problem: str = ""
    unasked: str = ""
    note: str = ""
    leaf: str = ""
    error: float = 0.0
    allowed: float = 0.0
    examples: int = 0


class StepReport(NamedTuple):
    """What was found of a training step. `print` shows it as a table.

    Attributes:
      checks: a row for each check, or several where it found several things.
      notes: what was done and what could not be.
    """

    checks: tuple[StepCheck, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong. What was not asked is not wrong: see `unasked`."""
        return not self.findings

    @property
    def findings(self) -> tuple[StepCheck, ...]:
        """What is wrong."""
        return tuple(check for check in self.checks if check.problem)

    @property
    def unasked(self) -> tuple[StepCheck, ...]:
        """What could not be asked, each with the reason."""
        return tuple(check for check in self.checks if check.unasked)

    def raise_if_wrong(self) -> None:
        """Raise an `AssertionError`, the table its message, where something is wrong."""
        if not self.ok:
            n = len(self.findings)
            thing = "things are" if n > 1 else "thing is"
            raise AssertionError(f"{n} {thing} wrong with this step\n{self.plain()}")

    def __str__(self) -> str:
        """The table: in colour where it goes to a terminal and rich is installed, else plain."""
        return shown(self)

    def _repr_html_(self) -> str:
        rows = [("check", "", ""), *((c.name, _mark(c), _said(c)) for c in self._sorted())]
        return notebook(rows, range(3), self._below())

    def plain(self) -> str:
        """The table as plain text, the wrong rows first."""
        width = max(len(check.name) for check in self.checks)
        rows = [f"{c.name:{width}}  {_mark(c):9}  {_said(c)}".rstrip() for c in self._sorted()]
        return "\n".join([*rows, *self._below()])

    def _sorted(self) -> list[StepCheck]:
        return sorted(self.checks, key=lambda check: (not check.problem, bool(check.unasked)))

    def _below(self) -> list[str]:
        """What stands under the table."""
        wrong, open_ = len(self.findings), len(self.unasked)
        right = len(self.checks) - wrong - open_
        return [f"{right} right, {wrong} wrong, {open_} not asked", *self.notes]

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for column in ("check", "verdict", "what"):
            table.add_column(column, overflow="fold")
        for check in self._sorted():
            style = "bold red" if check.problem else "dim" if check.unasked else "green"
            table.add_row(check.name, Text(_mark(check), style=style), Text(_said(check)))
        return Group(table, *map(Text, self._below()))


def _mark(check: StepCheck) -> str:
    return "WRONG" if check.problem else "not asked" if check.unasked else "ok"


def _said(check: StepCheck) -> str:
    said = check.problem or check.unasked
    if check.problem and check.error:
        allowed = f", rounding explains {percent(check.allowed)}" if check.allowed else ""
        said += f" [{check.leaf}: {percent(check.error)} off{allowed}]"
    if check.examples:
        noun = "example" if check.examples == 1 else "examples"
        said += f" [smallest batch that shows it: {check.examples} {noun}]"
    return f"{said} ({check.note})" if said and check.note else said or check.note


def percent(share: float) -> str:
    """A share as people read it.

    Example:
      >>> percent(0.125), percent(3.2e-7), percent(40.0)
      ('12%', '0.000032%', '40 times')
    """
    if not math.isfinite(share):
        return "NaN or infinity"
    if share >= 10:
        return f"{share:.3g} times"
    if share < 1e-12:
        return "nothing"
    digits = max(0, 1 - math.floor(math.log10(share * 100)))
    return f"{share * 100:.{digits if share < 0.1 else 0}f}%"
