"""How good a trained model is on what it has not seen, in words."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from funprop.train.task import Task

MOST_CLASSES = 14  # that a confusion matrix is printed of; of more, what is confused most
LONGEST_NAME = 12
SHOWN = 8


def report(task: Task, outputs: Any) -> str:
    """Accuracy and confusion matrix; for numbers, the errors in the target's unit; for pictures out
    of pictures, how far from the target they are, and were. Of several targets, each."""
    if task.parts:
        each = zip(task.parts, outputs, strict=True)
        return "\n\n".join(report(part, output) for part, output in each)
    if not hasattr(outputs, "shape") or len(jax.tree.leaves(task.test[1])) != 1:
        return "Test: the history has the held-out loss"
    if task.classes and outputs.ndim <= 2:
        return _of_classes(task, outputs)
    if outputs.shape != np.shape(task.test[1]):
        return "Test: the history has the held-out loss"
    return _of_numbers(task, outputs)


def _of_numbers(task: Task, outputs: Any) -> str:
    inputs, truth = task.test[:2]
    if task.image_shape and np.shape(inputs) == np.shape(truth):
        after, before = (np.sqrt(((x - truth) ** 2).mean()) for x in (outputs, inputs))
        return f"Test: pixels off by {after:.3f} (root mean square), {before:.3f} before"
    unit, _, deviation = task.unit
    error = (np.asarray(_decided(task, outputs)) - truth) * deviation
    spread = (truth * deviation).var(0).mean()
    explained = 1 - float((error**2).mean() / spread) if spread else float("nan")
    digits = 1 if np.abs(error).mean() >= 10 else 4
    shown = (lambda x: f"{x:.1f}") if digits == 1 else (lambda x: f"{x:.4g}")
    return (
        f"Test: {unit or 'outputs'} off by {shown(np.abs(error).mean())} on average, "
        f"root mean square {shown(np.sqrt((error**2).mean()))}, R^2 {explained:.3f}"
    )


def _decided(task: Task, outputs: Any) -> Any:
    return np.asarray(outputs) if task.decide is None else task.decide(outputs)


def _of_classes(task: Task, outputs: Any) -> str:
    counts = confusion(task, outputs)
    right, n = int(np.trace(counts)), int(counts.sum())
    of = f" of {task.unit[0]}" if task.unit[0] else ""
    said = f"Test accuracy{of} {right / n:.2%} ({right} of {n} right)"
    often = int(counts.sum(1).max())
    if often / n > 0.5:
        commonest = task.classes[int(counts.sum(1).argmax())]
        said += f"; always {commonest!r} would be {often / n:.2%}"
    if len(task.classes) > MOST_CLASSES:
        return f"{said}\n\n{_most_confused(task, counts)}"
    names = [shortened(name) for name in task.classes]
    width = max(5, *(len(name) + 2 for name in names))
    rows = ["".join(name.rjust(width) for name in ("", *names))]
    rows += [
        name.rjust(width) + "".join((str(c) if c else ".").rjust(width) for c in row)
        for name, row in zip(names, counts, strict=True)
    ]
    return (
        f"{said}\n\n"
        "Confusion matrix (rows: the truth; columns: what the network says)\n\n" + "\n".join(rows)
    )


def _most_confused(task: Task, counts: Any) -> str:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:SHOWN]
    places = [tuple(int(i) for i in np.unravel_index(at, wrong.shape)) for at in order]
    lines = [
        f"  {task.classes[i]} taken for {task.classes[j]}: {wrong[i, j]} of {counts[i].sum()}"
        for i, j in places
        if wrong[i, j]
    ]
    return "\n".join(["Most often confused", *(lines or ["  none"])])


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A class's name, in so many characters.

    Example:
      >>> shortened("Tyrannosaurus rex"), shortened("cat")
      ('Tyrannosaur…', 'cat')
    """
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def confusion(task: Task, outputs: Any) -> Any:
    """How often each class (rows) was taken for each (columns), on the test data."""
    n = len(task.classes)
    truth, said = np.asarray(task.test[1]), np.asarray(_decided(task, outputs))
    if truth.ndim > 1:  # shares of classes
        truth = truth.argmax(-1)
    pairs = truth.astype(int) * n + said
    return np.bincount(pairs, minlength=n * n).reshape(n, n)
