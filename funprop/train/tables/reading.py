"""Tables in files: CSV, plain or compressed, and Parquet."""

from __future__ import annotations

import codecs
import csv
import importlib.util
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funprop.train.tables.spellings import as_numbers, functions, no_number, tidied
from funprop.train.whole_file import whole_file
from funprop.values import short_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
SEPARATORS = ",;\t|"
# Dates that can be read in one way alone: whether 1/2/2026 is in January, nobody can tell.
DAYS = "%Y/%m/%d", "%d.%m.%y", "%d.%m.%Y", "%Y.%m.%d"  # %Y would take 25 for the year 25
DATES = tuple(day + time for day in DAYS for time in ("", " %H:%M", " %H:%M:%S"))
HEAD = 1 << 22  # bytes, in which the names are
INDEX = re.compile(r"__index_level_\d+__")  # pandas' numbers of rows, in Parquet


def is_table(path: str | Path) -> bool:
    """Whether a file of that name is a table.

    Example:
      >>> is_table("people.csv.gz"), is_table("people.txt")
      (True, False)
    """
    return str(path).lower().endswith(SUFFIXES)


def check_installed() -> None:
    """Raise a `ModuleNotFoundError` where what tables are read with is missing."""
    for module in ("pandas", "pyarrow", "skops", "sklearn"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"tables need {module}: pip install 'funprop[tables]'")


def read(path: Path, as_text: Iterable[str] = ()) -> pa.Table:
    """The table in a file, with the types that are found there.

    Args:
      path: ends in one of `SUFFIXES`. In text, columns are parted by commas, semicolons, tabs or
        bars, as the first line has them.
      as_text: columns that are text whatever stands in them.

    Raises:
      ValueError: it is no table, is empty, has rows of other widths or columns of one name; in one
        sentence that names the file.
      OSError: it cannot be read.
      ModuleNotFoundError: a package is missing.
    """
    check_installed()
    import pyarrow as pa

    if path.is_dir():
        raise ValueError(f"{path} is a folder, and must be a file with a table")
    try:
        table = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path, set(as_text))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = short_line(error).removeprefix("CSV parse error: ")
        raise ValueError(f"{path} is no table: {said}") from None
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} must have columns of different names, got {twice!r} twice")
    if not table.num_rows:
        raise ValueError(f"{path} has no rows below its names: {', '.join(names)[:160]}")
    return table


def _parquet(path: Path) -> pa.Table:
    """With one type of text, and null for what is no number."""
    import pyarrow as pa
    from pyarrow import parquet

    compute = functions()

    def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
        if pa.types.is_string_view(column.type):
            return pa.chunked_array([column.to_pylist()], pa.string())  # older ones do not cast it
        if pa.types.is_floating(column.type):
            no_number = compute.is_nan(column.cast(pa.float64()))
            return compute.if_else(no_number, pa.scalar(None, column.type), column)
        return column

    table = parquet.read_table(str(path))
    kept = [name for name in table.column_names if not INDEX.fullmatch(name)]
    return pa.table([plain(table[name]) for name in kept], names=kept)


def _text(path: Path, as_text: set[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with pa.input_stream(str(path)) as start:  # decompressed as the suffix says
        separator, names = _first_line(path, bytes(start.read(HEAD)))
    missing = arrow_csv.ConvertOptions().null_values
    with pa.input_stream(str(path)) as file:
        table = arrow_csv.read_csv(
            file,
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.binary() for name in names if name.strip() in as_text},
                null_values=[*missing, *no_number()],  # of text they are words
                timestamp_parsers=[arrow_csv.ISO8601, *DATES],
            ),
        )

    def meant(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        if pa.types.is_binary(column.type):
            try:
                column = column.cast(pa.string())
            except pa.ArrowInvalid:
                raise ValueError(f"{path} is no text in UTF-8: column {name!r}") from None
        if not pa.types.is_string(column.type):
            return column
        text = tidied(column, missing)
        numbers = None if name in as_text else as_numbers(text, separator)
        return text if numbers is None else numbers

    read = [
        (name.strip(), column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    kept = [(name, column) for name, column in read if name or column.null_count < len(column)]
    return pa.table([meant(*pair) for pair in kept], names=[name for name, _ in kept])


def _first_line(path: Path, head: bytes) -> tuple[str, list[str]]:
    """What parts the columns, and their names, as the start of a file has them."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is text in UTF-16, and must be in UTF-8")
    if b"\0" in head:
        raise ValueError(f"{path} is no text: it has a byte 0x00")
    text = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode(head).strip("\r\n")
    if not text.strip():
        raise ValueError(f"{path} is empty")
    first = text.splitlines()[0]
    separator = max(SEPARATORS, key=re.sub('"[^"]*"', "", first).count)
    names = next(csv.reader(io.StringIO(text, newline=None), delimiter=separator))
    if any("\ufffd" in name for name in names):
        raise ValueError(f"{path} is no text in UTF-8: its first line, {first[:80]!r}")
    if len(head) < HEAD and len(text.splitlines()) == 1:
        raise ValueError(f"{path} has no rows below its names: {', '.join(names)[:160]}")
    return separator, names


def write(path: Path, frame: pd.DataFrame) -> None:
    """A table into a file that is there as a whole or not at all, by its suffix.

    Raises:
      ValueError: the suffix is none of a table's.
      OSError: it cannot be written.
    """
    name = path.name.lower()
    if not is_table(name):
        raise ValueError(f"out must end in {', '.join(SUFFIXES)}, got {path}")
    with whole_file(path) as draft:
        if name.endswith(".parquet"):
            content: Any = frame.to_parquet(index=False)
        else:
            text = frame.to_csv(index=False, sep="\t" if ".tsv" in name else ",")
            content = text.encode()
        if name.endswith(".gz"):
            import gzip

            content = gzip.compress(content)
        draft.write_bytes(content)
