"""Tables in files: CSV, plain or compressed, and Parquet."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funprop.train.whole_file import whole_file
from funprop.values import short_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
SEPARATORS = ",;\t|"
# Dates that can be read in one way alone: whether 1/2/2026 is in January, nobody can tell.
DATES = "%Y/%m/%d", "%d.%m.%Y"


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

    try:
        table = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path, set(as_text))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = short_line(error).removeprefix("CSV parse error: ")
        raise ValueError(f"{path} is no table: {said}") from None
    names = table.column_names
    for field in table.schema:
        if pa.types.is_binary(field.type) and path.suffix.lower() != ".parquet":
            raise ValueError(f"{path} is no text in UTF-8: column {field.name!r}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} must have columns of different names, got {twice!r} twice")
    if not table.num_rows:
        raise ValueError(f"{path} has no rows below its names: {', '.join(names)[:160]}")
    return table


def _parquet(path: Path) -> pa.Table:
    from pyarrow import parquet

    return parquet.read_table(str(path))


def _text(path: Path, as_text: set[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    with pa.input_stream(str(path)) as start:  # decompressed as the suffix says
        head = bytes(start.read(1 << 16))
    if not head.strip():
        raise ValueError(f"{path} is empty")
    if b"\0" in head:
        raise ValueError(f"{path} is no text: it has a byte 0x00")
    first = head.removeprefix(b"\xef\xbb\xbf").splitlines()[0].decode(errors="replace")
    separator = max(SEPARATORS, key=first.count)
    text = {name: pa.string() for name in as_text}
    with pa.input_stream(str(path)) as file:
        return csv.read_csv(
            file,
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=text,
                strings_can_be_null=True,
                timestamp_parsers=[csv.ISO8601, *DATES],
            ),
        )


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
