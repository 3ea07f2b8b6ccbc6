"""Outputs of a model as columns of a table: what is predicted, and how probable each class is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from funprop.train.tables.reading import check_installed, write
from funprop.train.tables.targets import Target
from funprop.train.task import Task
from funprop.train.whole_file import whole_file


class Said(NamedTuple):
    """What a model says.

    Attributes:
      columns: of the table to be written; empty where the outputs are no columns.
      outputs: as the model gives them.
      notes: lines about the data.
    """

    columns: dict[str, Any]
    outputs: Any
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many examples there are."""
        return len(self.outputs[0] if isinstance(self.outputs, tuple | list) else self.outputs)

    def names(self, out: Path) -> str:
        """What is in the file, in a few words."""
        names = [*self.columns]
        if out.suffix == ".npy":
            return f"outputs, {self.outputs.dtype} {list(self.outputs.shape)}"
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    def write(self, out: Path) -> None:
        """Into a file that is there as a whole or not at all.

        Raises:
          ValueError: its suffix is of no table, nor `.npy`; or the outputs fit into none.
        """
        if out.suffix == ".npy":
            if not isinstance(self.outputs, np.ndarray):
                raise ValueError("out must be a table: a .npy file holds outputs of one target")
            with whole_file(out) as draft, draft.open("wb") as file:
                np.save(file, self.outputs, allow_pickle=False)
            return
        if not self.columns:
            raise ValueError(
                f"out must end in .npy: outputs of this shape are no columns, got {out}"
            )
        check_installed()
        import pandas as pd

        write(out, pd.DataFrame(self.columns))


def said_of(
    targets: Sequence[Target],
    outputs: Sequence[Any],
    first: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Said:
    """What a model says of each target: `prediction` and `probability_CLASS`, with the target's
    name within where there are several."""
    columns: dict[str, Any] = dict(first or {})
    for target, y in zip(targets, outputs, strict=True):
        of = f"_{target.name}" if len(targets) > 1 else ""
        columns |= _columns(target, y, of)
    return Said(columns, outputs[0] if len(outputs) == 1 else tuple(outputs), notes)


def said_of_task(task: Task, outputs: Any) -> Said:
    """What the model of a task says."""
    if task.parts:
        targets = [Target(p.unit[0], p.classes, False, *p.unit[1:]) for p in task.parts]
        return said_of(targets, outputs)
    if not isinstance(outputs, np.ndarray) or outputs.ndim > 2:
        return Said({}, outputs)
    if task.classes:
        target = Target("", task.classes)
        columns = _columns(target, outputs, "")
        if task.decide is not None:
            columns["prediction"] = [task.classes[i] for i in np.asarray(task.decide(outputs))]
        return Said(columns, outputs)
    name, mean, deviation = task.unit
    values = np.asarray(task.decide(outputs) if task.decide else outputs)
    if values.ndim > 2:
        return Said({}, outputs)
    return Said(_columns(Target(name, (), False, mean, deviation), values, ""), outputs)


def _columns(target: Target, y: Any, of: str) -> dict[str, Any]:
    if not target.classes:
        values = np.asarray(y, np.float64) * target.deviation + target.mean
        if values.ndim == 1 or values.shape[1] == 1:
            return {f"prediction{of}": values.reshape(len(values))}
        return {f"prediction{of}_{i}": column for i, column in enumerate(values.T)}
    shares = probabilities(y)
    chosen = [target.classes[i] for i in shares.argmax(-1)]
    named = zip(target.classes, shares.T, strict=True)
    return {
        f"prediction{of}": [int(name) for name in chosen] if target.whole else chosen,
        **{f"probability{of}_{name}": column for name, column in named},
    }


def probabilities(logits: Any) -> Any:
    """Of each class; of a lone logit, of both.

    Example:
      >>> probabilities(np.zeros((1, 4))).tolist(), probabilities(np.zeros(1)).tolist()
      ([[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5]])
    """
    z = np.asarray(logits, np.float64)
    if z.ndim == 1 or z.shape[-1] == 1:
        z = np.stack([np.zeros(len(z)), z.reshape(len(z))], -1)
    shares = np.exp(z - z.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
