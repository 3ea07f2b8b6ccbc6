"""A schedule as people see it: as text, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from funprop.checks import described

if TYPE_CHECKING:
    from funprop.pipelining.schedule import Schedule

# Of Okabe and Ito, whose colours all can tell apart; and dark enough for white figures.
COLOURS = {"F": "#0072b2", "B": "#d55e00", "W": "#009e73"}
TOLD = {"F": "F forward", "B": "B backward, inputs", "W": "W backward, params"}
IDLE, INK = "#e4e4e4", "#333333"
SIDE, HIGH, GAP, LEFT = 26, 24, 2, 62  # pixels


def schedule_picture(*schedules: Schedule) -> str:
    """An SVG of schedules, one below the other on one scale of time: a row a stage, a cell a slot,
    coloured by its kind, with the number of its microbatch. Grey is idle: the bubble.

    In a notebook a schedule shows itself so.

    Raises:
      TypeError: one is no schedule, or none is given.

    Example:
      >>> import funprop as fp
      >>> svg = schedule_picture(fp.one_f_one_b(4, 8), fp.zero_bubble(4, 8))
      >>> svg.startswith("<svg"), svg.count("<rect") > 2 * 4 * 24
      (True, True)
    """
    for given in schedules or (None,):
        if not hasattr(given, "rows") or not hasattr(given, "bubble"):
            raise TypeError(f"schedules must be such as one_f_one_b(4, 8), got {described(given)}")
    return as_svg(schedules)


def as_text(rows: Sequence[Sequence[Any]]) -> str:
    """A line a stage, a column a unit of time; a dot is idle."""
    cells = [["." if slot is None else str(slot) for slot in row] for row in rows]
    wide = max(len(cell) for row in cells for cell in row)
    return "\n".join(" ".join(cell.ljust(wide) for cell in row).rstrip() for row in cells)


def as_svg(schedules: Sequence[Schedule]) -> str:
    """As `schedule_picture`."""
    longest = max(schedule.length for schedule in schedules)
    wide = max(LEFT + longest * SIDE + 10, 640)
    parts, top = _legend(), 40
    for schedule in schedules:
        parts += _one(schedule, top)
        top += 26 + schedule.stages * HIGH + 22
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {top}" width="{wide}" '
        f'height="{top}" font-family="sans-serif" font-size="12">'
        f'<rect width="{wide}" height="{top}" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def _legend() -> list[str]:
    parts, left = [], LEFT
    for told, colour in [*((TOLD[kind], COLOURS[kind]) for kind in COLOURS), ("idle", IDLE)]:
        parts.append(_cell(left, 10, colour, 14, 14) + _text(left + 20, 21, told))
        left += 34 + 7 * len(told)
    return parts


def _one(schedule: Schedule, top: int) -> list[str]:
    told = (
        f"{schedule.name}: {schedule.length} units, {max(schedule.idle)} of them idle in a stage, "
        f"{schedule.bubble:.0%}; keeps at most {max(schedule.kept)} microbatches"
    )
    parts = [_text(LEFT, top + 14, told, weight="bold")]
    for stage, row in enumerate(schedule.rows):
        y = top + 22 + stage * HIGH
        parts.append(_text(LEFT - 8, y + 16, f"stage {stage}", anchor="end"))
        for time, slot in enumerate(row):
            x = LEFT + time * SIDE
            parts.append(_cell(x, y, IDLE if slot is None else COLOURS[slot.kind]))
            if slot is not None:
                at = x + (SIDE - GAP) / 2
                parts.append(_text(at, y + 15.5, slot.microbatch, "white", "middle"))
    return parts


def _cell(x: float, y: float, colour: str, wide: int = SIDE - GAP, high: int = HIGH - GAP) -> str:
    return f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="2" fill="{colour}"/>'


def _text(
    x: float, y: float, told: object, colour: str = INK, anchor: str = "start", weight: str = ""
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    place = f'x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}"{bold}'
    return f"<text {place}>{escape(str(told))}</text>"
