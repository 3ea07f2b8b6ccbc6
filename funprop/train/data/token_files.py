"""What files of tokens look like: `.npy`, and `.bin` with a `.bin.json` beside it.

Whatever stands in a file, it is read as numbers or refused: nothing in it is executed, and no size
that it states is believed before the file has that size.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from funprop.values import short, short_line, whole_number

DTYPES = "uint8", "uint16", "uint32"  # of a .bin file, little-endian
LONGEST_JSON = 2**16  # bytes


class Layout(NamedTuple):
    """Where in a file the tokens are, and what is known of them."""

    dtype: np.dtype
    start: int  # bytes before the first
    tokens: int
    vocabulary: int | None = None
    tokenizer: str | None = None


def beside(path: Path) -> Path:
    """The file that tells of a `.bin` file.

    Example:
      >>> beside(Path("tokens.bin")).name
      'tokens.bin.json'
    """
    return path.with_name(f"{path.name}.json")


def layout(path: Path, file: int, dtype: Any) -> Layout:
    """The layout of the open `file`.

    Raises:
      TypeError: a `dtype` that is none.
      ValueError: a file that cannot be one of tokens; names it.
    """
    size = os.fstat(file).st_size
    if path.suffix == ".npy":
        if dtype is not None:
            raise ValueError(f"dtype must not be given for {path}, which says it itself")
        return _of_npy(path, file, size)
    if path.suffix != ".bin":
        raise ValueError(f"path must end in .npy or .bin, got {path}")
    told = _told(path)
    name = told["dtype"] if dtype is None and told else _name(dtype, path)
    if told and name != told["dtype"]:
        raise ValueError(f"dtype must be {told['dtype']} as {beside(path)} says, got {name}")
    of_one = np.dtype(name).newbyteorder("<")
    if size % of_one.itemsize:
        raise ValueError(f"{path} has {size} bytes, which are no whole number of {name}")
    tokens = size // of_one.itemsize
    if told and told["tokens"] != tokens:
        raise ValueError(
            f"{path} must have {told['tokens']} tokens as {beside(path)} says, has {tokens}"
        )
    if not told:
        return Layout(of_one, 0, tokens)
    return Layout(of_one, 0, tokens, told["vocabulary"], told["tokenizer"])


def _name(dtype: Any, path: Path) -> str:
    if dtype is None:
        raise ValueError(
            f"dtype must be given for {path}, 'uint16' say, as there is no {beside(path).name}"
        )
    try:
        name = np.dtype(dtype).name
    except (TypeError, ValueError):  # of what is no dtype at all
        name = short(dtype)
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    return name


def _told(path: Path) -> dict[str, Any]:
    """What is said beside it; nothing, where there is no such file."""
    file = beside(path)
    if not file.is_file():
        return {}
    with file.open("rb") as opened:
        text = opened.read(LONGEST_JSON + 1)
    try:
        if len(text) > LONGEST_JSON:
            raise ValueError(f"more than {LONGEST_JSON} bytes")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} in the place of an object")
        told = {name: found.get(name) for name in ("dtype", "tokens", "vocabulary", "tokenizer")}
        if told["dtype"] not in DTYPES:
            raise ValueError(
                f"dtype must be one of {', '.join(DTYPES)}, got {short(told['dtype'])}"
            )
        whole_number(told["tokens"], "tokens", 0)
        if told["vocabulary"] is not None:
            whole_number(told["vocabulary"], "vocabulary", 1)
        if not isinstance(told["tokenizer"], str | None):
            raise ValueError(f"tokenizer must be a name, got {short(told['tokenizer'])}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} tells of no tokens: {short_line(error)}") from None
    return told


def _of_npy(path: Path, file: int, size: int) -> Layout:
    """By NumPy's own reader of headers, which evaluates literals only."""
    with os.fdopen(file, "rb", closefd=False) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        try:
            version = np.lib.format.read_magic(opened)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version[0]}.{version[1]} of .npy")
            read: Any = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, _, dtype = read(opened)
        except Exception as error:  # whatever a header that is none leads to
            raise ValueError(f"{path} is no .npy file: {short_line(error)}") from None
        start = opened.tell()
    if len(shape) != 1 or dtype.kind not in "ui":
        raise ValueError(
            f"{path} must hold integers in one dimension, holds {dtype} in {len(shape)}"
        )
    if shape[0] < 0 or size != start + shape[0] * dtype.itemsize:
        raise ValueError(
            f"{path} must have {shape[0]} tokens as it says, has {(size - start) // dtype.itemsize}"
        )
    return Layout(dtype, start, shape[0])
