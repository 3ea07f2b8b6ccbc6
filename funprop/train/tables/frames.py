"""Columns of a table as numbers and as text, to be encoded."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MISSING = "(missing)"  # the category of what is not there
LARGEST = 1e100  # of numbers: of what is larger, no deviation can be taken
SECONDS = {"year": 31_556_952, "week": 604_800, "day": 86_400}  # what dates come round in


def frame(table: pa.Table, columns: Collection[tuple[str, str, Collection[str]]]) -> pd.DataFrame:
    """The columns as numbers in float64, NaN where one is missing, and categories as text; a date
    is its parts.

    Raises:
      ValueError: a column is missing, or holds something else than it did in training; names it.
    """
    import pandas as pd

    missing = [name for name, *_ in columns if name not in table.column_names]
    if missing:
        raise ValueError(f"column {', '.join(map(repr, missing))} is missing")
    parts: dict[str, Any] = {}
    for name, kind, of_date in columns:
        if kind == "category":
            parts[name] = texts(table[name])
        elif kind == "number":
            parts[name] = numbers(table[name], name)
        else:
            of_date = _date(table[name], name, of_date)
            both = {*of_date} & {*table.column_names}
            if both:
                raise ValueError(
                    f"column {min(both)!r} has the name of a part of column {name!r}: rename it"
                )
            parts |= of_date
    return pd.DataFrame(parts)


def texts(column: pa.ChunkedArray) -> Any:
    """Categories, as they stand in the file."""
    import pyarrow as pa

    return np.asarray(column.cast(pa.string()).fill_null(MISSING).to_pylist(), dtype=object)


def numbers(column: pa.ChunkedArray, name: str) -> Any:
    """Numbers in float64; NaN in the place of what is missing, infinite or too large.

    Raises:
      ValueError: something else is there.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if is_text(column.type) or not (is_number(column.type) or types.is_null(column.type)):
        raise ValueError(f"column {name!r} must hold numbers, got {_example(column)}")
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


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


def has_times(column: pa.ChunkedArray) -> bool:
    """Whether dates have a time of the day."""
    seconds = _seconds(column, "")
    return bool((seconds[np.isfinite(seconds)] % SECONDS["day"]).any())


def _seconds(column: pa.ChunkedArray, name: str) -> Any:
    """Since 1970, NaN where there is no date."""
    import pyarrow as pa

    if pa.types.is_time(column.type):
        return numbers(column.cast(pa.time32("s"), safe=False).cast(pa.int32()), name)
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


def is_text(dtype: Any) -> bool:
    """Whether a type of Arrow's is that of text, or of categories."""
    from pyarrow import types

    return types.is_string(dtype) or types.is_large_string(dtype) or types.is_dictionary(dtype)


def is_number(dtype: Any) -> bool:
    """Whether a type of Arrow's is that of numbers, or of truth values."""
    from pyarrow import types

    return any(
        (
            types.is_integer(dtype),
            types.is_floating(dtype),
            types.is_decimal(dtype),
            types.is_boolean(dtype),
        )
    )
