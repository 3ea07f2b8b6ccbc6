"""`funprop train FILE --target COLUMN`: a table as a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.train.runs.inputs import ENCODER, write_inputs
from funprop.train.runs.table_models import recipe_for, task_for
from funprop.train.tables import encoding, splits
from funprop.train.tables.columns import Column, columns_of
from funprop.train.tables.frames import frame, is_text, numbers, texts
from funprop.train.tables.reading import read
from funprop.train.tables.splits import SPLIT_SEED
from funprop.train.tables.targets import Target, standardised, target_of
from funprop.train.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

PLURAL = {"number": "numbers", "category": "categories", "date": "dates"}


def task(path: Path, options: dict[str, Any]) -> Task:
    """A table in a file, to be learnt from.

    Args:
      path: of the file.
      options: `target`, a list of columns; and, if given, `task`, `class_weights`, `time`, `group`
        and `held_out`.

    Raises:
      ValueError: there is no target, or a column is missing; what else the readers raise.
    """
    return task_of(read(path), str(path), options)


def task_of(table: pa.Table, path: str, options: dict[str, Any], seed: int = SPLIT_SEED) -> Task:
    """A table, to be learnt from; what is held out at random is drawn by `seed`."""
    wanted = options.get("target") or []
    if not wanted:
        raise ValueError(f"--target must name a column of {path}: {_names(table)}")
    time, group = options.get("time"), options.get("group")
    _check_columns(table, path, [*wanted, *([time] if time else []), *([group] if group else [])])
    table, notes = _without_missing(table, wanted)
    found = [target_of(table[name], name, options.get("task")) for name in wanted]
    train, test = _split(table, found[0], options, seed)
    targets, values = zip(*(standardised(*pair, train) for pair in found), strict=True)
    left_out = [*wanted, *([group] if group else [])]
    columns, why = columns_of(table, train, left_out, time)
    notes += [target.told() for target in targets] + _taken_for(columns) + why
    if time or group:
        notes.append(
            f"held out: the last rows by {time!r}"
            if time
            else f"held out: whole groups by {group!r}"
        )
    whole = frame(table, columns)
    encoder = encoding.fitted(whole.iloc[train], columns)
    inputs = encoding.encoded(encoder, whole)
    weights = _weights(targets, values, train, options.get("class_weights"))
    told = {"kind": "table", "columns": columns, "targets": targets}
    told["recipe"] = recipe_for(len(train))._asdict()

    def write(folder: Path) -> None:
        write_inputs(folder, told)
        encoding.save(encoder, folder / ENCODER)

    def part(rows: Any, *extra: Any) -> Any:
        each = tuple(value[rows] for value in values)
        return inputs[rows], each[0] if len(each) == 1 else each, *extra

    return task_for(
        targets,
        train=part(train, *weights),
        test=part(test),
        title=f"{Path(path).name}, {_read(columns, inputs.shape[1])}",
        notes=tuple(notes),
        write=write,
    )


def _names(table: pa.Table) -> str:
    return ", ".join(table.column_names)[:160]


def _check_columns(table: pa.Table, path: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in table.column_names:
            raise ValueError(f"{path} has no column {name!r}, there are {_names(table)}")
        if names.count(name) > 1:
            raise ValueError(
                f"column {name!r} is named twice: it is a target, the time or the group"
            )


def _without_missing(table: pa.Table, wanted: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """Only rows that have all targets; with a line that says how many have not."""
    known = np.ones(table.num_rows, bool)
    for name in wanted:
        known &= np.asarray(table[name].is_valid())
    lost = int((~known).sum())
    notes = [f"{lost:,} rows left out: they have no {' or no '.join(wanted)}"] if lost else []
    return table.filter(known), notes


def _split(
    table: pa.Table, first: tuple[Target, Any], options: dict[str, Any], seed: int
) -> tuple[Any, Any]:
    """Rows to train on, and rows held out."""
    time, group = options.get("time"), options.get("group")
    share = options.get("held_out", splits.HELD_OUT)
    if time and group:
        raise ValueError("rows are held out by time or by group, got both")
    if not 0 < share < 1:
        raise ValueError(f"held_out must be above 0 and below 1, got {share}")
    if time:
        return splits.by_time(_times(table[time], time), time, share)
    if group:
        return splits.by_group(texts(table[group]), group, share)
    target, values = first
    return splits.at_random(values if target.classes else None, table.num_rows, share, seed)


def _times(column: pa.ChunkedArray, name: str) -> Any:
    from pyarrow import types

    if types.is_temporal(column.type):
        (days,) = frame(_table(column, name), [Column(name, "date", ("days",))]).to_numpy().T
        return days
    if is_text(column.type):
        raise ValueError(f"column {name!r} must hold dates or numbers, got {column[0].as_py()!r}")
    return numbers(column, name)


def _table(column: pa.ChunkedArray, name: str) -> pa.Table:
    import pyarrow as pa

    return pa.table({name: column})


def _weights(targets: Any, values: Any, train: Any, how: str | None) -> tuple[Any, ...]:
    """As the third of what is trained on, if asked for: classes count alike, however rare."""
    if how is None:
        return ()
    if len(targets) > 1 or not targets[0].classes:
        raise ValueError("class_weights are for one target that has classes")
    counts = np.bincount(values[0][train], minlength=len(targets[0].classes))
    each = len(train) / (len(counts) * counts)
    return (each[values[0][train]].astype(np.float32),)


def _read(columns: Sequence[Column], width: int) -> str:
    kinds = [(kind, sum(c.kind == kind for c in columns)) for kind in PLURAL]
    told = ", ".join(f"{n} {PLURAL[kind] if n > 1 else kind}" for kind, n in kinds if n)
    n = len(columns)
    return f"{n} column{'s' * (n > 1)} ({told}) as {width} input{'s' * (width > 1)}"


def _taken_for(columns: Sequence[Column]) -> list[str]:
    """Lines that say which columns hold what."""
    named = {kind: [c.name for c in columns if c.kind == kind] for kind in PLURAL}
    return [
        f"{PLURAL[kind]}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for kind, names in named.items()
        if names
    ]
