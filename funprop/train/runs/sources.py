"""What `funprop train` may be given: a name, a file, a folder, or a task of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from funprop.imported import imported
from funprop.train.runs import corpus, images
from funprop.train.runs.tasks import TASKS
from funprop.train.runs.tasks import task as known_task
from funprop.train.tables.reading import is_table
from funprop.train.task import Task

OF_TABLES = "target", "task", "time", "group"
OF_ALL = "class_weights", "held_out"
OPTIONS = (*OF_TABLES, *OF_ALL, "image_size")
TOKENS, TEXT = (".bin", ".npy"), corpus.SUFFIX


def kind_of(data: str) -> str:
    """`table`, `images`, `text`, `own` or `name`.

    Raises:
      ValueError: a folder that has neither images by class nor text.

    Example:
      >>> kind_of("people.csv"), kind_of("my_module:task"), kind_of("digits")
      ('table', 'own', 'name')
    """
    path = Path(data)
    if data in TASKS:
        return "name"
    if is_table(data):
        return "table"
    if data == "stdlib" or path.suffix.lower() in (*TOKENS, TEXT):
        return "text"
    if path.is_dir():
        if images.class_folders(path):
            return "images"
        if corpus.files_in(path):
            return "text"
        raise ValueError(
            f"{data} has neither folders of images, one for each class, nor .txt files"
        )
    return "own" if ":" in data else "name"


def task_of(data: str, options: Mapping[str, Any]) -> Task:
    """The task that is meant.

    Raises:
      ValueError: there is none; an option is for other data; or the data cannot be learnt from.
    """
    kind, options = kind_of(data), dict(options)
    check_options(kind, data, options)
    if kind == "table":
        from funprop.train.runs import tables

        return tables.task(Path(data), options)
    if kind == "images":
        return images.task(Path(data), options)
    if kind == "own":
        return _own(data)
    if data not in TASKS and (Path(data).suffix or "/" in data):
        if Path(data).exists():
            raise ValueError(f"{data} is no table, text or tokens: its name ends as none of these")
        raise ValueError(f"there is no file or folder {data} that can be learnt from")
    return known_task(data)


def check_options(kind: str, data: str, options: Mapping[str, Any]) -> None:
    """Raise a `ValueError` where an option is for another kind of data."""
    takes = {"table": (*OF_TABLES, *OF_ALL), "images": (*OF_ALL, "image_size")}.get(kind, ())
    for name in options:
        if name not in takes:
            raise ValueError(f"--{name.replace('_', '-')} is not for {data}")


def _own(place: str) -> Task:
    found = imported(place)
    if not isinstance(found, Task) and callable(found):
        found = found()
    if not isinstance(found, Task):
        raise ValueError(f"{place} must be a funprop.Task, or make one, got {type(found).__name__}")
    return found


def name_of(data: str) -> str:
    """For folders and headings.

    Example:
      >>> name_of("data/people.csv.gz"), name_of("my_module:task"), name_of("digits")
      ('people', 'task', 'digits')
    """
    kind = kind_of(data)
    if kind == "own":
        return data.rpartition(":")[2]
    if kind == "name" or data == "stdlib":
        return data
    path = Path(data)
    return (path.resolve().name if path.is_dir() else path.name.split(".")[0]) or "data"
