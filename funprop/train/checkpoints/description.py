"""What a checkpoint says of itself: its leaves, its notes, and a digest of each of its files.

It is written last, and read first: no file is given to a reader of arrays that is not, byte for
byte, what was written. So nobody else's parser ever sees damaged input.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from funprop.checks import described
from funprop.train.whole_file import whole_file
from funprop.values import real_number, short_line, whole_number

FILE = "checkpoint.json"
FORMAT = 1  # of what is written; one that cannot be read by what was written before has the next


class DamagedError(Exception):
    """A checkpoint that is not what was written; the message says what is wrong with it."""


class Description(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
      update: how many updates had been made.
      leaves: of each leaf by name, its spec (`float32[3,4]`), its digest and, of random keys, what
        its bits are for.
      notes: what else was stored; JSON.
      value: of the metric that the best is chosen by.
      metric: its name, where it has one.
    """

    update: int
    leaves: dict[str, dict[str, str]]
    notes: dict[str, Any]
    value: float | None
    metric: str | None = None


def write_description(folder: Path, description: Description) -> None:
    """Write it beside all other files of the checkpoint, which are on the disk.

    Raises:
      OSError: it cannot be written, or they cannot be read.
    """
    files = {name: _sha256(folder / name) for name in _names(folder)}
    whole = {"format": FORMAT, **description._asdict(), "files": files}
    whole["sha256"] = _digest(whole)
    with whole_file(folder / FILE) as draft:
        draft.write_text(json.dumps(whole), encoding="utf-8")


def describe(folder: Path) -> Description:
    """What it says of itself; no other file is read.

    Raises:
      DamagedError: it is not there, or not what was written.
      ValueError: it is of a format that is newer than this.
    """
    return _described(folder)[0]


def check_files(folder: Path) -> None:
    """Read every file; raise `DamagedError` where one is gone, or not what was written."""
    for name, digest in _described(folder)[1].items():
        try:
            found = _sha256(folder / name)
        except FileNotFoundError:
            raise DamagedError(f"its file {name} is gone") from None
        except OSError as error:
            raise DamagedError(f"its file {name} cannot be read: {error.strerror}") from None
        if found != digest:
            raise DamagedError(f"its file {name} is not what was written")


def _described(folder: Path) -> tuple[Description, dict[str, str]]:
    try:
        whole = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"its file {FILE} is gone") from None
    except OSError as error:
        raise DamagedError(f"its file {FILE} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        whole = None
    if not isinstance(whole, dict) or whole.pop("sha256", None) != _digest(whole):
        raise DamagedError(f"its file {FILE} is not what was written")
    if whole["format"] > FORMAT:
        raise ValueError(
            f"the checkpoint {folder} has format {whole['format']}, which a newer version of "
            f"funprop writes; this one reads format {FORMAT}"
        )
    description = Description(**{n: whole[n] for n in Description._fields if n in whole})
    if folder.name.lstrip("0") != str(description.update).lstrip("0"):
        raise DamagedError(f"it is that of update {description.update}")
    return description, whole["files"]


def _names(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files if file.name != FILE)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(whole: dict[str, Any]) -> str:
    """Of no other file's content: one that stands in its place is not taken for it."""
    return hashlib.sha256(f"{FILE}\n{json.dumps(whole, sort_keys=True)}".encode()).hexdigest()


def checked(update: Any, notes: Any, value: Any) -> tuple[int, dict[str, Any], float | None]:
    """What is stored beside a state, before any of it is written: what cannot be is the caller's
    mistake, and no disk's, to be told in a warning and tried again. The notes are a copy.

    Raises:
      TypeError: names the argument.
      ValueError: `update` is negative.
    """
    number = None if value is None else float(real_number(value, "value"))
    return whole_number(update, "update", 0), as_json(notes, "notes"), number


def as_json(given: Any, name: str) -> dict[str, Any]:
    """A dict as it comes back from a file.

    Raises:
      TypeError: it is none, or holds what JSON has not; names the argument.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TypeError(f"{name} must be a dict, got {described(given)}")
    try:
        return json.loads(json.dumps(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name} must be what JSON has: {short_line(error)}") from None
