"""Inputs that take the branches which the given ones do not: on either side of every number that
the forward pass compares with, indices at both ends, rows that a mask hides whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from funprop.verify.inputs.points import Point, are_indices, is_rising
from funprop.verify.inputs.properties import drawn, in_order, redrawable, within
from funprop.verify.subject import Subject, is_floating
from funprop.verify.truth.thresholds import Thresholds

NUMBERS, WHOLE = 4, 8  # literals that are tried, of floats and of each integer input
EVERYWHERE = 2  # of these, so many fill the whole input too
HIDDEN = -1e4  # what is added to hide, at the most


def other_branches(
    subject: Subject, found: Thresholds, rng: np.random.Generator
) -> Iterator[Point]:
    """Other values in arrays of the given shapes."""
    given = [drawn(leaf) for leaf in subject.args]

    def filled(name: str, i: int, values: np.ndarray) -> Iterator[Point]:
        if not np.array_equal(values, given[i]):
            yield Point(name, [values if j == i else v for j, v in enumerate(given)])

    for i, leaf in enumerate(subject.args):
        name = subject.called(i).rpartition(": ")[2]
        if np.issubdtype(leaf.dtype, np.integer):
            for what, values in _whole(np.asarray(leaf), i, found, subject):
                yield from filled(f"{name} {what}", i, values)
        else:
            for what, values in _rows(given[i], leaf.dtype):
                yield from filled(f"a row of {name} {what}", i, values)
    yield from _numbers(subject, given, found, rng)


def _numbers(
    subject: Subject, given: list[Any], found: Thresholds, rng: np.random.Generator
) -> Iterator[Point]:
    args = subject.args
    open_ = [i for i in redrawable(args) if i in subject.differentiable]
    sizes = sorted(found.numbers, key=lambda c: (abs(c), c))
    for c in sizes[:: -(-len(sizes) // NUMBERS) or 1] if open_ else ():
        for name, middle, width in (("around", c, abs(c)), ("beyond", 2 * c, 0.3 * abs(c))):
            values = [
                within(args[i], middle + width * rng.standard_normal(leaf.shape))
                if i in open_
                else leaf
                for i, leaf in enumerate(given)
            ]
            yield Point(f"numbers {name} {c:.3g}", in_order(args, values, open_))


def _whole(
    given: np.ndarray, i: int, found: Thresholds, subject: Subject
) -> Iterator[tuple[str, np.ndarray]]:
    """Integers: what they are compared with, and both ends of what they count along."""
    n = found.counts.get(i)
    if given.size > 1 and n in (None, given.shape[-1]) and not are_indices(subject.args, i):
        return
    rising, range_ = is_rising(given), np.iinfo(given.dtype)
    if n and given.size and given.min() >= 0 and given.max() < n <= range_.max:
        if given.ndim == 0:
            yield "0", np.zeros_like(given)
            yield f"{n - 1}", np.full_like(given, n - 1)
        else:
            ends = np.resize(np.asarray([0, n - 1], given.dtype), given.shape)
            yield f"0 and {n - 1}", np.sort(ends) if rising else ends
    if rising and given[0] == 0:  # bounds of parts, from the first on
        return
    some = {0} if given.ndim == 0 and given > 0 else set()  # a count, a place, a number of a step
    for k, c in enumerate(sorted({*found.whole.get(i, ()), *some}, key=abs)[:WHOLE]):
        if range_.min <= c <= range_.max:
            values = given.copy()
            values.reshape(-1)[::2] = c
            yield str(c), np.sort(values) if rising else values
            if given.size > 1 and k < EVERYWHERE:
                yield f"{c} everywhere", np.full_like(given, c)


def _rows(given: np.ndarray, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Masks of which a whole row is hidden."""
    if given.ndim < 2 or given.shape[-1] < 2 or given.size == given.shape[-1]:
        return
    if np.issubdtype(dtype, np.bool_):
        for value in (False, True):
            values = given.copy()
            values.reshape(-1, given.shape[-1])[0] = value
            values.reshape(-1, given.shape[-1])[-1] = not value
            yield "true" if value else "false", values
    elif is_floating(given) and np.all((given == 0) | (given <= HIDDEN)) and np.any(given):
        values = given.copy()
        values.reshape(-1, given.shape[-1])[0] = given.min()
        yield "hidden", values
