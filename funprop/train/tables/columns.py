"""What the columns of a table hold: numbers, categories, dates, or nothing to learn from."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from funprop.train.tables.frames import has_times, is_number, is_text, numbers
from funprop.train.tables.spellings import why_text

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["number", "category", "date"]
FEW = 20  # rows in which all may differ by chance


class Column(NamedTuple):
    """A column that is learnt from; of dates, what of them: `days` since 1970, and where in `year`,
    `week` and `day`."""

    name: str
    kind: Kind
    parts: tuple[str, ...] = ()


def columns_of(
    table: pa.Table, rows: Any, left_out: Collection[str], time: str | None = None
) -> tuple[list[Column], list[str]]:
    """The columns that are learnt from, and lines that say which are not, and why.

    Args:
      table: all of it.
      rows: those that are trained on.
      left_out: columns that are not looked at: targets, groups.
      time: the column by which rows are held out: later ones have values that training never sees.

    Raises:
      ValueError: none is left.
    """
    found, notes = [], []
    for name in table.column_names:
        if name in left_out:
            continue
        kind, why = _kind(table[name])
        if kind is not None and len(table[name].take(rows).unique()) == 1:
            kind, why = None, "every row is the same"
        if kind == "number" and np.isnan(numbers(table[name].take(rows), name)).all():
            kind, why = None, "it holds no finite number"
        if name == time and kind != "date":
            kind, why = None, "rows are held out by it"
        if kind is None:
            notes.append(f"{name!r} left out: {why}")
        elif kind == "date":
            found.append(Column(name, kind, _parts_of(table[name], elapsed=name != time)))
        else:
            found.append(Column(name, kind))
            hint = why_text(table[name].drop_null()) if is_text(table[name].type) else ""
            notes += [f"{name!r} is taken for categories: {hint}"] if hint else []
    if not found:
        raise ValueError(f"there is no column to learn from: {'; '.join(notes) or 'only targets'}")
    return found, notes


def _parts_of(column: pa.ChunkedArray, elapsed: bool) -> tuple[str, ...]:
    """What to take of dates: nothing that training never sees, no time where there is none; of
    times of the day that alone."""
    from pyarrow import types

    if types.is_time(column.type):
        return ("day",)
    timed = has_times(column)
    return (*(("days",) if elapsed else ()), "year", "week", *(("day",) if timed else ()))


def _kind(column: pa.ChunkedArray) -> tuple[Kind | None, str]:
    """What a column holds; or why nothing can be learnt from it."""
    from pyarrow import types

    kind, dtype = None, column.type
    if is_number(dtype):
        kind = "number"
    elif types.is_timestamp(dtype) or types.is_date(dtype) or types.is_time(dtype):
        kind = "date"
    elif is_text(dtype):
        kind = "category"
    elif not types.is_null(dtype):
        return None, f"it holds {dtype}"
    values = column.drop_null()
    n, different = len(values), len(values.unique())
    if n == 0:
        return None, "it is empty"
    if different == n > FEW and (kind == "category" or counts_rows(values)):
        return None, "every row differs"
    if kind == "category" and different > max(FEW, n / 2):
        why = f"it holds text: {different:,} different values in {n:,} rows"
        return None, "; ".join(filter(None, [why, why_text(values)]))
    return kind, ""


def counts_rows(values: pa.ChunkedArray) -> bool:
    """Whether there are whole numbers one after another, in any order, none twice.

    Example:
      >>> import pyarrow as pa
      >>> counts_rows(pa.chunked_array([[7, 9, 8]])), counts_rows(pa.chunked_array([[7, 7, 8]]))
      (True, False)
    """
    from pyarrow import types

    if not types.is_integer(values.type) or not len(values):
        return False
    n, numbers = len(values), np.asarray(values.to_numpy())
    return int(numbers.max()) - int(numbers.min()) == n - 1 and len(values.unique()) == n
