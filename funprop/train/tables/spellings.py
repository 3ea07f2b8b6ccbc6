"""How people write numbers, and that there is no value: columns of text as what they mean."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

# No value, in any column; beside what Arrow knows: an empty cell, NA, n/a, NaN, NULL, #N/A.
NEVER = ("", "?", "<NA>", "NaT")
# And among numbers and dates; among words these are words.
NO_NUMBER = (
    *("-", "--", ".", "...", " ", "none", "nil", "na", "missing", "unknown"),
    *("#DIV/0!", "#VALUE!", "#REF!", "#NUM!", "#NAME?", "#NULL!"),
)
GROUPS = " '\u00a0\u202f"  # what parts thousands, beside the mark that is not of decimals
UNITS = "$€£¥%"
DATE_IN_TWO_WAYS = r"^\d{1,2}[/-]\d{1,2}[/-]\d{2,4}\b"


def functions() -> Any:
    """Arrow's functions of columns, made when it is imported: type checkers know none of them."""
    return importlib.import_module("pyarrow.compute")


def no_number() -> list[str]:
    """What stands in the place of a number or a date that is missing."""
    spelled = [*NEVER, *NO_NUMBER]
    return sorted({form for s in spelled for form in (s, s.upper(), s.capitalize())})


def tidied(column: pa.ChunkedArray, missing: list[str]) -> pa.ChunkedArray:
    """Text without blanks around it; null where nothing is left, or what means nothing."""
    import pyarrow as pa

    compute = functions()
    text = compute.utf8_trim_whitespace(column)
    absent = compute.is_in(text, value_set=pa.array([*missing, *NEVER]))
    return compute.if_else(absent, pa.scalar(None, text.type), text)


def as_numbers(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray | None:
    """Text as numbers: `1,5`, `1.234,5`, `$1,234.50`, `12%`; `None` where not all of it is.

    What `1,234` is alone, the rest of the column says; else the separator: where semicolons part
    columns, a comma is that of decimals.

    Example:
      >>> import pyarrow as pa
      >>> as_numbers(pa.chunked_array([["1,234", "0,5", "-"]]), ",").to_pylist()
      [1.234, 0.5, None]
      >>> as_numbers(pa.chunked_array([["$1,234", "$5"]]), ",").to_pylist()
      [1234.0, 5.0]
      >>> as_numbers(pa.chunked_array([["$5", "€5"]]), ",") is None
      True
    """
    import pyarrow as pa

    compute = functions()
    absent = compute.is_in(column, value_set=pa.array(no_number()))
    text = _without_unit(compute.if_else(absent, pa.scalar(None, column.type), column))
    marks = {mark: _are_numbers(text, mark) for mark in ".,"}
    decimal = "," if marks[","] and (separator == ";" or not marks["."]) else "."
    if not marks[decimal]:
        return None
    whole = compute.replace_substring_regex(text, _parting(decimal), "")
    return compute.replace_substring(whole, decimal, ".").cast(pa.float64())


def _without_unit(text: Any) -> Any:
    """Without the sign of money or of percent that all numbers have."""
    compute = functions()
    for unit in UNITS:
        if compute.all(compute.match_substring(text, unit)).as_py():
            around = rf"^([-+]?)[{unit}] ?| ?[{unit}]$"
            return compute.replace_substring_regex(text, around, r"\1")
    return text


def _are_numbers(text: Any, decimal: str) -> bool:
    """Whether all are numbers with that mark of decimals, whole or parted in thousands."""
    compute = functions()
    thousands = rf"({_parting(decimal)}\d{{3}})+"
    number = rf"^[-+]?(\d+|[1-9]\d{{0,2}}{thousands})(\{decimal}\d+)?$"
    return compute.all(compute.match_substring_regex(text, number)).as_py() is True


def _parting(decimal: str) -> str:
    """What parts thousands where that is the mark of decimals, as a pattern."""
    return f"[{GROUPS}{'.' if decimal == ',' else ','}]"


def why_text(column: pa.ChunkedArray) -> str:
    """What keeps a column of text from being numbers or dates, where most of it looks so."""
    import pyarrow as pa

    compute = functions()
    values = column.drop_null().cast(pa.string())
    looks = compute.match_substring_regex(values, r"^[-+]?[\d.,]+([eE][-+]?\d+)?$")
    if compute.mean(compute.cast(looks, "int8")).as_py() > 0.5:
        others = values.filter(compute.invert(looks))
        return f"{others[0].as_py()!r} is no number" if len(others) else ""
    if compute.all(compute.match_substring_regex(values, DATE_IN_TWO_WAYS)).as_py():
        return f"{values[0].as_py()!r} could be two dates: write them as 2026-01-31"
    return ""
