"""The tensors of a folder: of one safetensors file, or of many with an index; read one at a time,
and written one after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from funprop.checks import described
from funprop.train.params_file import DTYPES
from funprop.train.whole_file import whole_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("float32", "bfloat16", "float16", "float64")  # of weights
KNOWN = {short: long for long, short in DTYPES.items()}


def folder_of(given: Any) -> Path:
    """Raise a `TypeError` where no path was given."""
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {described(given)}")
    return Path(given)


class Spec(NamedTuple):
    """What is said of a tensor before it is read.

    Attributes:
      dtype: as JAX calls it; as the format does, where JAX has no such thing.
      shape: of it.
    """

    dtype: str
    shape: tuple[int, ...]


class Tensors:
    """The tensors of a folder by their names, for use in a `with`. Files are mapped into memory, so
    that what is not asked for is not read.

    Raises:
      OSError: there are no files of weights.
      ValueError: a file is damaged, or lacks what the index says that it holds.
      ModuleNotFoundError: safetensors is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}
        self.specs: dict[str, Spec] = {}

    def __enter__(self) -> Tensors:
        try:
            for file, names in _files(self.folder).items():
                self._open(file, names)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _open(self, file: Path, wanted: list[str] | None) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "files of weights need safetensors: pip install 'funprop[train]'"
            ) from None
        with file.open("rb"):  # says in Python's own words what is missing or not allowed
            pass
        asked = None if wanted is None else set(wanted)
        try:
            opened = self._stack.enter_context(safe_open(file, framework="np"))
            for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                part = opened.get_slice(name)
                dtype, shape = part.get_dtype(), tuple(part.get_shape())
                if asked is None or name in asked:
                    self.specs[name] = Spec(KNOWN.get(str(dtype), str(dtype)), shape)
                    self._file_of[name] = opened
        except (SafetensorError, OSError):
            raise ValueError(f"{file} is damaged, or no safetensors file") from None
        for name in wanted or ():
            if name not in self.specs:
                raise ValueError(f"{file} must hold {name}, as {INDEX} says, but does not")

    def read(self, name: str) -> np.ndarray:
        return self._file_of[name].get_tensor(name)


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """The files of weights, each with the names that the index says, where there is one."""
    if (folder / WEIGHTS).exists():
        return {folder / WEIGHTS: None}
    index = folder / INDEX
    if not index.exists():
        raise FileNotFoundError(f"{folder} must hold {WEIGHTS} or {INDEX}, and has neither")
    where = read_json(index).get("weight_map")
    files: dict[Path, list[str] | None] = {}
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index} must have a weight_map, from names to files")
    for name, file in where.items():
        if not isinstance(file, str) or file != os.path.basename(file):  # noqa: PTH119  # no path
            raise ValueError(f"{index} must name files beside it, got {file!r} for {name}")
        names = files.setdefault(folder / file, [])
        assert names is not None
        names.append(name)
    return files


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      OSError: it cannot be read.
      ValueError: it is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} must be a JSON object, and is none")
    return found


def write(file: Path, specs: dict[str, Spec], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """One safetensors file, there as a whole or not at all; a copy of one tensor at a time.

    Args:
      file: its name.
      specs: of all tensors, in their order.
      tensors: in the same order.
    """
    with whole_file(file) as draft, draft.open("wb") as written:
        written.write(_header(specs))
        for name, array in tensors:
            assert specs[name] == Spec(array.dtype.name, array.shape), name
            written.write(np.ascontiguousarray(array).view(np.uint8).data)


def _header(specs: dict[str, Spec]) -> bytes:
    """How the file begins: the length of what follows, and in JSON where each tensor is.

    Source: https://github.com/huggingface/safetensors (the format); transformers wants `format`.
    """
    told: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in specs.items():
        start, end = end, end + np.dtype(dtype).itemsize * int(np.prod(shape))
        told[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
