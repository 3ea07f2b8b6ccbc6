"""A schedule is a value: which stage of a pipeline does what, and when."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from funprop.checks import check_string
from funprop.pipelining.picture import as_svg, as_text
from funprop.values import short

KINDS = ("F", "B", "W")


class Slot(NamedTuple):
    """What a stage does in one unit of time.

    Attributes:
      kind: `F`, forward; `B`, backward to the cotangent of its input; `W`, to those of its params.
      microbatch: which, from 0.
    """

    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}"


Row = tuple[Slot | None, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule:
    """A table, stage by time, of slots: a row a stage, and in it a `Slot` or `None`, idle, for each
    unit of time. Ready ones are made by `gpipe`, `one_f_one_b` and `zero_bubble`; any other table
    that holds together will do.

    A slot of each kind takes one unit here. On a device the three take about the same time, as
    each makes a product where the others make one, and `pipeline` waits for all in every unit.

    Attributes:
      rows: the table.
      name: of the schedule, for its picture.

    Raises:
      TypeError: `rows` is no such table, or `name` no string.
      ValueError: the rows differ in length; a stage has a slot twice, or not at all, or those of a
        kind out of the microbatches' order; or a slot comes before what it needs: `F` after that of
        the stage before, `B` after its `F` and the `B` of the stage behind, `W` after its `B`.

    Example:
      >>> import funprop as fp
      >>> plan = fp.one_f_one_b(2, 2)
      >>> print(plan)
      F0 F1 .  .  B0 W0 .  B1 W1
      .  F0 B0 W0 F1 B1 W1 .  .
      >>> plan.idle, round(plan.bubble, 2), plan.kept
      ((3, 3), 0.33, (2, 1))
    """

    rows: tuple[Row, ...]
    name: str = "schedule"

    def __post_init__(self) -> None:
        check_string("name", self.name)
        object.__setattr__(self, "rows", _slots(self.rows))
        _check(self.rows, self.starts())

    def starts(self) -> dict[tuple[str, int, int], int]:
        """When each slot is done: the time, by kind, microbatch and stage."""
        return {
            (slot.kind, slot.microbatch, stage): time
            for stage, row in enumerate(self.rows)
            for time, slot in enumerate(row)
            if slot is not None
        }

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def microbatches(self) -> int:
        """Into how many a batch is cut."""
        return sum(slot is not None for slot in self.rows[0]) // len(KINDS)

    @property
    def length(self) -> int:
        """Units of time from the first slot to the last."""
        return len(self.rows[0])

    @property
    def idle(self) -> tuple[int, ...]:
        """How many units each stage has nothing to do."""
        return tuple(row.count(None) for row in self.rows)

    @property
    def bubble(self) -> float:
        """The share of all slots that is idle."""
        return sum(self.idle) / (self.stages * self.length)

    @property
    def kept(self) -> tuple[int, ...]:
        """Of how many microbatches each stage keeps residuals, at most: from `F` to `W`."""
        return tuple(between(row, row, "F", "W") for row in self.rows)

    def __str__(self) -> str:
        return as_text(self.rows)

    def __repr__(self) -> str:
        return f"{self.name}(stages={self.stages}, microbatches={self.microbatches})"

    def _repr_svg_(self) -> str:
        return as_svg([self])


def between(first: Row, second: Row, start: str, end: str) -> int:
    """How many microbatches are, at most, between their `start` in one row and their `end` in
    another, itself included."""
    now = most = 0
    for one, other in zip(first, second, strict=True):
        # What starts in this unit is there from the next on; what ends in it, up to its end.
        now -= other is not None and other.kind == end
        now += one is not None and one.kind == start
        most = max(most, now)
    return most


def _slots(rows: object) -> tuple[Row, ...]:
    wanted = 'rows must be a table of ("F", 0) and such, or None, a row a stage'

    def one(slot: object) -> Slot | None:
        if slot is None:
            return None
        kind: Any
        microbatch: Any
        kind, microbatch = slot if isinstance(slot, tuple) and len(slot) == 2 else (None, None)
        whole = isinstance(microbatch, int | np.integer) and not isinstance(microbatch, bool)
        if not (isinstance(kind, str) and whole):
            raise TypeError(f"{wanted}, got {short(slot)}")
        return Slot(kind, int(microbatch))

    if not isinstance(rows, tuple | list) or not all(isinstance(r, tuple | list) for r in rows):
        raise TypeError(f"{wanted}, got {short(rows)}")
    return tuple(tuple(one(slot) for slot in row) for row in rows)


def _check(rows: tuple[Row, ...], starts: dict[tuple[str, int, int], int]) -> None:
    if not rows or len({len(row) for row in rows}) > 1:
        raise ValueError(f"rows must be of one length, got {short([len(row) for row in rows])}")
    slots = [slot for row in rows for slot in row if slot]
    if not slots:
        raise ValueError("rows must have a slot, got none")
    if (least := min(slots, key=lambda slot: slot.microbatch)).microbatch < 0:
        raise ValueError(f"rows must have microbatches from 0, got {short(tuple(least))}")
    n = max(slot.microbatch for slot in slots) + 1
    for stage, row in enumerate(rows):
        for kind in KINDS:
            got = [slot.microbatch for slot in row if slot and slot.kind == kind]
            if len(got) != n or got != list(range(n)):
                raise ValueError(
                    f"rows must have {kind} of each microbatch once and in order, got {short(got)} "
                    f"for {n} in stage {stage}"
                )
        unknown = {slot.kind for slot in row if slot} - set(KINDS)
        if unknown:
            raise ValueError(f"rows must be made of F, B and W, got {short(min(unknown))}")
    for (kind, i, stage), time in starts.items():
        needed = {
            "F": [("F", i, stage - 1)],
            "B": [("F", i, stage), ("B", i, stage + 1)],
            "W": [("B", i, stage)],
        }[kind]
        for other in needed:
            if other[2] in range(len(rows)) and starts[other] >= time:
                raise ValueError(
                    f"rows must have {kind}{i} of stage {stage} after {other[0]}{i} of stage "
                    f"{other[2]}, got times {time} and {starts[other]}"
                )
