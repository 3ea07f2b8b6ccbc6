"""Records of a random-access source; what cannot be read is told by its index, or skipped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from funprop.values import short_line, whole_number

TOLD = 10  # of the records that were skipped, the first so many
TRIED = 100  # records in a row that cannot be read: then there is no use


def is_source(data: Any) -> bool:
    """Whether it has a length and gives records by number, as grain's and Hugging Face's datasets
    do. Arrays and what holds them are none, nor is a list, unless it is one of records.

    Example:
      >>> is_source([(0, 1), (2, 3)]), is_source([1, 2])
      (True, False)
    """
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], tuple | dict)
    if isinstance(data, tuple | str | bytes | Mapping | type) or hasattr(data, "__array__"):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def read(source: Any, indices: Sequence[int]) -> Iterator[Any]:
    """The records of these indices, all at once by `__getitems__` where the source has it; else
    one by one, so that a source may use one buffer for all.

    Raises:
      ValueError: one cannot be read; names it.
    """
    if hasattr(source, "__getitems__"):
        try:
            records = list(source.__getitems__(list(indices)))
        except Exception:
            pass  # which one it was is found below
        else:
            if len(records) != len(indices):
                raise ValueError(
                    f"data: __getitems__ must give as many records as it is asked for, "
                    f"{len(indices)}, gave {len(records)}"
                )
            yield from (_record(r, i) for r, i in zip(records, indices, strict=True))
            return
    for i in indices:
        yield _one(source, i)


def _one(source: Any, i: int) -> Any:
    try:
        record = source[i]
    except Exception as error:
        raise ValueError(f"data: record {i} cannot be read: {short_line(error)}") from error
    return _record(record, i)


def _record(record: Any, i: int) -> Any:
    if record is None:  # what a filter of grain's leaves out
        raise ValueError(f"data: record {i} cannot be read: it is None")
    return record


class skip_unreadable:  # noqa: N801  # called like a function
    """The same source, where the next record that can be read stands in for one that cannot.

    A record that cannot be read raises, or is `None`, as those are that a filter of grain's leaves
    out. The first ten are warned of, each once. Which record stands in depends on the index alone.

    Args:
      source: has `__len__` and `__getitem__`.

    Raises:
      TypeError: it has not.
      ValueError: when read: a hundred records in a row cannot be.

    Example:
      >>> list(skip_unreadable([(0, 0), None, (2, 2)])[i] for i in (0, 2))
      [(0, 0), (2, 2)]
    """

    def __init__(self, source: Any) -> None:
        if not is_source(source):
            raise TypeError(
                f"source must have __len__ and __getitem__, got {type(source).__name__}"
            )
        self.source = source
        self._told: set[int] = set()
        if hasattr(source, "__getitems__"):
            self.__getitems__ = self._at_once

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Any:
        n, problem = len(self), None
        for other in (whole_number(i, "index") + k for k in range(min(n, TRIED))):
            try:
                return _one(self.source, other % n)
            except ValueError as error:
                problem = problem or error
                self._tell(other % n, error)
        raise ValueError(f"{problem}; nor can any of the {min(n, TRIED)} from there on")

    def _at_once(self, indices: Sequence[int]) -> list[Any]:
        try:
            return list(read(self.source, indices))
        except ValueError:
            return [self[i] for i in indices]

    def _tell(self, i: int, error: ValueError) -> None:
        if i not in self._told and len(self._told) < TOLD:
            self._told.add(i)
            more = "; of more nothing is said" if len(self._told) == TOLD else ""
            warnings.warn(f"{error}: skipped{more}", stacklevel=2)
