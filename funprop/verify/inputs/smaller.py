"""Large inputs made small: corners of the given arrays, in shapes that the function takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify.inputs import points
from funprop.verify.subject import Subject, is_floating

TRIES = 3  # of shapes, where not all axes can be cut at once: each traces the forward pass
LEAST = 3  # axes are cut to this and the next numbers, so that those of other sizes stay others


def smaller(subject: Subject, rng: np.random.Generator) -> list[Any] | None:
    """Small inputs in the dtypes of the given ones; `None` where no shapes are found.

    Axes of one size are cut together: all at once, or, where the function does not take that, one
    size after another, the largest first.
    """
    groups = _groups(subject)
    sizes = {axis: LEAST + n for n, group in enumerate(groups) for axis in group}
    if not sizes:
        return None
    if not points.fits(subject, sizes):
        sizes = {}
        for n, group in enumerate(groups[:TRIES]):
            trial = {**sizes, **dict.fromkeys(group, LEAST + n)}
            if points.fits(subject, trial):
                sizes = trial
    inputs = points.filled(subject, points.shapes(subject, sizes), rng) if sizes else None
    if inputs is None:
        return None
    return [
        np.asarray(v, a.dtype) if is_floating(a) else _index(v)
        for v, a in zip(inputs, subject.args, strict=True)
    ]


def _index(values: Any) -> Any:
    """Whole numbers that may count along a cut axis, within its least size."""
    return (
        np.minimum(values, LEAST - 1) if np.issubdtype(values.dtype, np.signedinteger) else values
    )


def _groups(subject: Subject) -> list[list[tuple[int, int]]]:
    """The axes, `(input, axis)`, of each size that can be cut; the largest size first."""
    by_size: dict[int, list[tuple[int, int]]] = {}
    for i in range(len(subject.args)) if subject.remade is None else subject.data:
        for axis, n in enumerate(subject.args[i].shape):
            by_size.setdefault(int(n), []).append((i, axis))
    sizes = sorted(by_size, reverse=True)
    return [by_size[n] for place, n in enumerate(sizes) if n > LEAST + place]
