"""One checkpoint, read with care: first that its files are what they were, then its arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from funprop.train import processes
from funprop.train.checkpoints import written
from funprop.train.checkpoints.description import (
    DamagedError,
    Description,
    check_files,
    describe,
)

if TYPE_CHECKING:
    from funprop.typing import PyTree


def read(checkpointer: Any, place: Path, like: PyTree) -> tuple[Any, Description | str]:
    """The state in a checkpoint and what it says of itself; or nothing, and what is wrong with it.

    All processes of a run must call this, and get the same answer; the first reads every file.

    Raises:
      ValueError: it is another state's, or of a newer format; alike in all of them.
    """
    description, newer, problem = None, "", ""
    try:
        description = describe(place)
        if processes.first():
            check_files(place)
    except DamagedError as error:
        problem = str(error)
    except ValueError as error:
        newer = str(error)
    if newer := processes.words_of_first(newer):
        raise ValueError(newer)
    state = None
    if not (problem := _anywhere(problem)):
        assert description is not None
        try:
            state = written.read(checkpointer, place, description.leaves, like)
        except DamagedError as error:
            problem = str(error)
        except ValueError as error:
            raise ValueError(f"the checkpoint {place} is of another state: {error}") from None
        problem = _anywhere(problem)
    if problem:
        return None, problem
    assert description is not None
    return state, description


def looked_at(checkpointer: Any, place: Path, check: bool) -> tuple[Description | None, str]:
    """What a checkpoint says of itself, and what is wrong with it; all of it is read to `check`."""
    description = None
    try:
        description = describe(place)
        if check:
            check_files(place)
            written.check(checkpointer, place, description.leaves)
    except (DamagedError, ValueError) as error:
        return description, str(error)
    return description, ""


def _anywhere(problem: str) -> str:
    """What is wrong in this process, or that something is in another."""
    there = processes.anywhere(bool(problem))
    return (problem or "another process cannot read it") if there else ""
