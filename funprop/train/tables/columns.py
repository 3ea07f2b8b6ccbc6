"""What the columns of a table hold: numbers, categories, dates, or nothing to learn from."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Kind = Literal["number", "category", "date"]
MISSING = "(missing)"  # the category of what is not there
FEW = 20  # rows in which all may differ by chance
SECONDS = {"year": 31_556_952, "week": 604_800, "day": 86_400}  # what dates come round in


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
        if name == time and kind != "date":
            kind, why = None, "rows are held out by it"
        if kind is None:
            notes.append(f"{name!r} left out: {why}")
        elif kind == "date":
            found.append(Column(name, kind, _parts_of(table[name], elapsed=name != time)))
        else:
            found.append(Column(name, kind))
    if not found:
        raise ValueError(f"there is no column to learn from: {'; '.join(notes) or 'only targets'}")
    return found, notes


def _parts_of(column: pa.ChunkedArray, elapsed: bool) -> tuple[str, ...]:
    """What to take of dates: nothing that training never sees, no time where there is none."""
    seconds = _seconds(column, "")
    timed = (seconds[np.isfinite(seconds)] % SECONDS["day"]).any()
    return (*(("days",) if elapsed else ()), "year", "week", *(("day",) if timed else ()))


def _kind(column: pa.ChunkedArray) -> tuple[Kind | None, str]:
    """What a column holds; or why nothing can be learnt from it."""
    from pyarrow import types

    kind, dtype = None, column.type
    if _is_number(dtype):
        kind = "number"
    elif types.is_timestamp(dtype) or types.is_date(dtype):
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
        return None, f"it holds text: {different:,} different values in {n:,} rows"
    return kind, ""


def is_text(dtype: Any) -> bool:
    """Whether a type of Arrow's is that of text, or of categories."""
    from pyarrow import types

    return types.is_string(dtype) or types.is_large_string(dtype) or types.is_dictionary(dtype)


def _is_number(dtype: Any) -> bool:
    from pyarrow import types

    return any(
        (
            types.is_integer(dtype),
            types.is_floating(dtype),
            types.is_decimal(dtype),
            types.is_boolean(dtype),
        )
    )


def counts_rows(values: pa.ChunkedArray) -> bool:
    """Whether there are whole numbers one after another, in any order, none twice.

    Example:
      >>> import pyarrow as pa
      >>> counts_rows(pa.chunked_array([[7, 9, 8]])), counts_rows(pa.chunked_array([[7, 7, 8]]))
      (True, False)
    """
    from pyarrow import compute, types

    if not types.is_integer(values.type) or not len(values):
        return False
    ends = compute.min_max(values).as_py()
    n = len(values)
    return ends["max"] - ends["min"] == n - 1 and len(values.unique()) == n


def frame(table: pa.Table, columns: Collection[Column]) -> pd.DataFrame:
    """The columns as numbers in float64, NaN where one is missing, and categories as text; a date
    is its parts.

    Raises:
      ValueError: a column is missing, or holds something else than it did in training; names it.
    """
    import pandas as pd

    missing = [c.name for c in columns if c.name not in table.column_names]
    if missing:
        raise ValueError(f"column {', '.join(map(repr, missing))} is missing")
    parts: dict[str, Any] = {}
    for name, kind, of_date in columns:
        if kind == "category":
            parts[name] = texts(table[name])
        elif kind == "number":
            parts[name] = numbers(table[name], name)
        else:
            parts |= _date(table[name], name, of_date)
    return pd.DataFrame(parts)


def texts(column: pa.ChunkedArray) -> Any:
    """Categories, as they stand in the file."""
    import pyarrow as pa

    return np.asarray(column.cast(pa.string()).fill_null(MISSING).to_pylist(), dtype=object)


def numbers(column: pa.ChunkedArray, name: str) -> Any:
    """Numbers in float64; NaN in the place of what is missing or infinite.

    Raises:
      ValueError: something else is there.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if is_text(column.type) or not (_is_number(column.type) or types.is_null(column.type)):
        raise ValueError(f"column {name!r} must hold numbers, got {_example(column)}")
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _example(column: pa.ChunkedArray) -> str:
    """The first value that is no number."""

    def is_number(text: Any) -> bool:
        try:
            float(text)
        except (TypeError, ValueError):
            return False
        return True

    for i, value in enumerate(column.to_pylist()):
        if value is not None and not is_number(value):
            return f"{value!r} in row {i + 1}"
    return f"{column.type}"


def _seconds(column: pa.ChunkedArray, name: str) -> Any:
    """Since 1970, NaN where there is no date."""
    import pyarrow as pa

    try:
        moments = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    except pa.ArrowException:
        raise ValueError(f"column {name!r} must hold dates, got {_example(column)}") from None
    return numbers(moments, name)


def _date(column: pa.ChunkedArray, name: str, parts: Collection[str]) -> dict[str, Any]:
    """Days since 1970; of what comes round a sine and a cosine: December is near January."""
    seconds, found = _seconds(column, name), {}
    for part in parts:
        if part == "days":
            found[f"{name}: days"] = seconds / SECONDS["day"]
        else:
            angle = 2 * np.pi * (seconds % SECONDS[part]) / SECONDS[part]
            found[f"{name}: {part}, sine"] = np.sin(angle)
            found[f"{name}: {part}, cosine"] = np.cos(angle)
    return found
