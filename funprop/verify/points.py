"""Inputs that people forget: zeros, ties, repeated indices, large and tiny numbers, one example,
axes that differ where the given ones agree.

What is made of an input stays within what the given one seems to promise. A leaf of positive
numbers stays positive; probabilities, masks, whole numbers and symmetric matrices stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from funprop.verify.subject import Subject, is_floating

TRIED_AXES = 12  # more axes than this are not tried one by one
LARGE, TINY = 1e4, 1e-4


class Point(NamedTuple):
    """Inputs in float64, and what is particular about them."""

    name: str
    inputs: list[Any]


def drawn(leaf: Any) -> np.ndarray:
    """A leaf as float64, or as it is where it is not of floating dtype."""
    return np.asarray(leaf).astype(np.float64) if is_floating(leaf) else np.asarray(leaf)


def is_free(leaf: Any) -> bool:
    """Whether the values of a leaf look as if any others would do."""
    if not is_floating(leaf):
        return False
    values = drawn(leaf)
    if values.size == 0 or not np.isfinite(values).all():
        return False
    if values.size > 1 and np.all(values == np.round(values)) and np.ptp(values) > 0:
        return False  # a mask, one-hot labels, whole numbers
    if values.ndim and values.shape[-1] > 1 and np.all(values >= 0):
        sums = values.sum(-1)
        if np.allclose(sums, 1, atol=1e-2):
            return False  # probabilities
    if values.ndim >= 2 and values.shape[-1] == values.shape[-2] > 1:
        return not np.allclose(values, np.swapaxes(values, -1, -2))
    return True


def within(leaf: Any, values: np.ndarray) -> np.ndarray:
    """`values` brought into the range that the leaf's own values seem to promise."""
    own = drawn(leaf)
    if np.all(own > 0):
        values = np.abs(values) + (0 if np.all(values != 0) else np.min(own))
        if np.all(own < 1) and own.size > 1:
            values = np.clip(values, np.min(own), np.max(own))
    elif np.all(own >= 0) and own.size > 1:
        values = np.abs(values)
    elif np.all(own < 0) and own.size > 1:
        values = -np.abs(values) - (0 if np.all(values != 0) else np.min(-own))
    return values


def nearby(args: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """Inputs of which every number is up to 30% smaller or larger."""
    return [
        within(a, drawn(a) * (1 + 0.3 * rng.uniform(-1, 1, a.shape))) if is_free(a) else drawn(a)
        for a in args
    ]


def same_shape(subject: Subject, rng: np.random.Generator) -> Iterator[Point]:
    """Other values in arrays of the given shapes, the simplest first."""
    args = subject.args
    free = [i for i, leaf in enumerate(args) if is_free(leaf)]
    given = [drawn(leaf) for leaf in args]

    def changed(change: Any, places: Sequence[int]) -> list[Any]:
        return [
            within(args[i], change(given[i], i)) if i in places else leaf
            for i, leaf in enumerate(given)
        ]

    def normal(values: np.ndarray, i: int) -> np.ndarray:
        return rng.standard_normal(values.shape)

    for i in free[-6:]:
        name = subject.paths[i].rpartition(": ")[2]
        yield Point(f"{name} of zeros", changed(lambda v, _: 0 * v, [i]))
        yield Point(f"{name} of ones", changed(lambda v, _: 0 * v + 1, [i]))
    yield Point("ties", changed(lambda v, _: np.round(v), free))
    indices = [i for i, leaf in enumerate(args) if _is_integer(leaf) and leaf.size > 1]
    if indices:
        repeated = list(given)
        for i in indices:
            repeated[i] = np.full_like(given[i], given[i].flat[0])
        yield Point("repeated indices", repeated)
        shuffled = list(given)
        for i in indices:
            shuffled[i] = rng.permutation(given[i].ravel()).reshape(given[i].shape)
        yield Point("other indices", shuffled)
    yield Point("the signs turned", changed(lambda v, _: -v, free))
    yield Point("random numbers", changed(normal, free))
    yield Point("random numbers", changed(lambda v, i: 3 * normal(v, i), free))
    for i in free[-6:]:
        name = subject.paths[i].rpartition(": ")[2]
        yield Point(f"large {name}", changed(lambda v, _: LARGE * v, [i]))
        yield Point(f"tiny {name}", changed(lambda v, _: TINY * v, [i]))


def _is_integer(leaf: Any) -> bool:
    return np.issubdtype(leaf.dtype, np.integer)


# --------------------------------------------------------------------------------------- shapes


def other_shapes(subject: Subject, rng: np.random.Generator) -> Iterator[Point]:
    """Inputs of other shapes: one example, and axes that differ where the given ones agree."""
    if axes := _batch(subject):
        yield from _resized(subject, "a batch of one", dict.fromkeys(axes, 1), rng)
    if changes := _square(subject):
        yield from _resized(subject, "axes of different sizes", changes, rng)


def _resized(
    subject: Subject, name: str, sizes: dict[tuple[int, int], int], rng: np.random.Generator
) -> Iterator[Point]:
    inputs = filled(subject, shapes(subject, sizes), rng)
    if inputs is not None:
        yield Point(name, inputs)


def filled(
    subject: Subject, shapes: Sequence[tuple[int, ...]], rng: np.random.Generator
) -> list[Any] | None:
    """Values for arrays of other shapes; `None` where the given ones promise too much."""
    inputs = []
    for leaf, shape in zip(subject.args, shapes, strict=True):
        value = drawn(leaf)
        if shape != leaf.shape:
            cut = tuple(slice(0, n) for n in shape)
            if all(n <= m for n, m in zip(shape, leaf.shape, strict=True)):
                value = value[cut]
            elif is_free(leaf):
                size = float(np.std(value)) or 1.0
                value = within(leaf, size * rng.standard_normal(shape))
            elif value.ndim and shape[-1] != leaf.shape[-1] and is_floating(leaf):
                return None
            else:
                value = np.resize(value, shape)
        inputs.append(value)
    return inputs


def shapes(subject: Subject, sizes: dict[tuple[int, int], int]) -> list[tuple[int, ...]]:
    """The shapes of all inputs when some axes, `(input, axis)`, have other sizes."""
    changed = [list(leaf.shape) for leaf in subject.args]
    for (i, axis), n in sizes.items():
        changed[i][axis] = n
    specs = [
        jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
        for shape, leaf in zip(changed, subject.args, strict=True)
    ]
    if subject.remade is not None:
        specs = jax.eval_shape(subject.remade, specs)
    return [tuple(spec.shape) for spec in specs]


def fits(subject: Subject, sizes: dict[tuple[int, int], int]) -> bool:
    """Whether the forward pass takes inputs of these sizes."""
    try:
        specs = [
            jax.ShapeDtypeStruct(shape, leaf.dtype)
            for shape, leaf in zip(shapes(subject, sizes), subject.args, strict=True)
        ]
        plain = jax.eval_shape(subject.plain, *specs)
        rule = jax.eval_shape(subject.forward or subject.plain, *specs)
    except Exception:  # whatever a function raises at a shape that it was not made for
        return False
    return jax.tree.map(lambda y: y.shape, plain) == jax.tree.map(lambda y: y.shape, rule)


def _batch(subject: Subject) -> list[tuple[int, int]]:
    leaves = [(i, subject.args[i]) for i in subject.data if subject.args[i].ndim]
    for n in sorted({leaf.shape[0] for _, leaf in leaves if leaf.shape[0] > 1}, reverse=True):
        axes = [(i, 0) for i, leaf in leaves if leaf.shape[0] == n]
        if fits(subject, dict.fromkeys(axes, n + 1)):
            return axes
        for chosen in axes:
            if fits(subject, {chosen: n + 1}):
                return [chosen]
    return []


def _square(subject: Subject) -> dict[tuple[int, int], int]:
    """New sizes for axes that have the same size as another, as far as the function takes them."""
    axes = [(i, axis) for i in subject.data for axis in range(subject.args[i].ndim)]
    if len(axes) > TRIED_AXES:
        return {}
    every = [n for leaf in subject.args for n in leaf.shape]
    equal = [a for a in axes if every.count(_size(subject, a)) > 1 and _size(subject, a) > 1]
    changes: dict[tuple[int, int], int] = {}
    grown = 1
    for count in (1, 2, 3):
        for group in itertools.combinations(equal, count):
            same = len({_size(subject, a) for a in group}) == 1
            if not same or any(a in changes for a in group):
                continue
            trial = {**changes, **{a: _size(subject, a) + grown for a in group}}
            if fits(subject, trial):
                changes, grown = trial, grown + 1
    return changes


def _size(subject: Subject, axis: tuple[int, int]) -> int:
    return subject.args[axis[0]].shape[axis[1]]
