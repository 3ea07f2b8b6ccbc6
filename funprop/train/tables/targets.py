"""What a table's targets are: classes, or numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from funprop.train.tables.columns import FEW, counts_rows
from funprop.train.tables.frames import is_number, is_text, numbers

if TYPE_CHECKING:
    import pyarrow as pa

Aim = Literal["classification", "regression"]
MOST_CLASSES = 20  # that whole numbers are taken for
ROWS_A_CLASS = 5  # that there must be on average, where whole numbers are taken for classes


class Target(NamedTuple):
    """A column that is predicted.

    Attributes:
      name: of the column.
      classes: their names; empty for numbers.
      whole: whether the classes' names are whole numbers.
      mean, deviation: of numbers, over the rows that are trained on.
    """

    name: str
    classes: tuple[str, ...] = ()
    whole: bool = False
    mean: float = 0.0
    deviation: float = 1.0

    def told(self) -> str:
        """In plain words."""
        if not self.classes:
            return f"target {self.name!r}: a number, {self.mean:.4g} on average"
        some = ", ".join(self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
        return f"target {self.name!r}: {len(self.classes)} classes ({some})"


def target_of(column: pa.ChunkedArray, name: str, aim: Aim | None = None) -> tuple[Target, Any]:
    """What is to be predicted, and every row's label or number.

    Args:
      column: without what is missing.
      name: of the column.
      aim: which of both it is; without, text and truth values are classes, fractions are numbers,
        and whole numbers are classes where they are few and each has rows enough.

    Raises:
      ValueError: it has one value alone, looks like an id, or is neither of both.
    """
    from pyarrow import types

    different, n = len(column.unique()), len(column)
    if different < 2:
        only = f"one value alone, {column[0].as_py()!r}" if n else "no value"
        raise ValueError(f"target {name!r} has {only}: there is nothing to learn")
    text = is_text(column.type)
    if aim is None and (counts_rows(column) or text) and different > max(FEW, n / 2):
        hint = "" if text else "; --task regression takes it as a number"
        raise ValueError(
            f"target {name!r} looks like an id: {different:,} different values in {n:,} rows{hint}"
        )
    if not (text or is_number(column.type)):
        raise ValueError(f"target {name!r} must be classes or numbers, got {column.type}")
    if text and aim == "regression":
        raise ValueError(f"target {name!r} must be numbers for a regression, got text")
    if aim == "regression" or (aim is None and not _are_classes(column, different)):
        values = numbers(column, name)
        if np.isnan(values).any():
            raise ValueError(f"target {name!r} must be finite numbers, got {_extreme(column)}")
        return Target(name), values
    whole = not text and not types.is_boolean(column.type)
    return _classes(column, name, whole)


def _extreme(column: pa.ChunkedArray) -> float:
    """The number that is farthest from zero."""
    return max(map(float, column.to_pylist()), key=abs)


def _are_classes(column: pa.ChunkedArray, different: int) -> bool:
    from pyarrow import types

    if is_text(column.type) or types.is_boolean(column.type):
        return True
    most = MOST_CLASSES if types.is_integer(column.type) else 2
    few = different <= most and len(column) >= ROWS_A_CLASS * different
    return few and all(float(value).is_integer() for value in column.unique().to_pylist())


def _classes(column: pa.ChunkedArray, name: str, whole: bool) -> tuple[Target, Any]:
    import pyarrow as pa

    if whole and all(float(value).is_integer() for value in column.unique().to_pylist()):
        values = np.asarray(column.cast(pa.int64()).to_numpy())
    else:
        values, whole = np.asarray(column.cast(pa.string()).to_pylist(), dtype=object), False
    found, labels = np.unique(values, return_inverse=True)
    return Target(name, tuple(map(str, found)), whole), labels.astype(np.int32)


def standardised(target: Target, values: Any, rows: Any) -> tuple[Target, Any]:
    """Numbers with mean 0 and deviation 1 over the rows that are trained on; labels as they are.

    Raises:
      ValueError: those rows have one value alone, or lack a class.
    """
    if target.classes:
        missing = sorted({*range(len(target.classes))} - {*values[rows].tolist()})
        if missing:
            names = ", ".join(target.classes[i] for i in missing[:5])
            raise ValueError(f"target {target.name!r}: no row to train on has {names}")
        return target, values
    mean, deviation = float(values[rows].mean()), float(values[rows].std())
    if not deviation:
        raise ValueError(f"target {target.name!r} has one value alone, {mean:g}, in training")
    target = target._replace(mean=mean, deviation=deviation)
    return target, ((values - mean) / deviation).astype(np.float32)
