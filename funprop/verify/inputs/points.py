"""Inputs that people forget: zeros, ties, repeated indices, large and tiny numbers, one example,
axes that differ where the given ones agree, or agree where they differ.

What is made of an input stays within what the given one seems to promise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from funprop.verify.inputs.properties import drawn, free, in_order, is_free, redrawable, within
from funprop.verify.subject import Subject, is_floating
from funprop.verify.truth import internals

TRIED_AXES = 12  # more axes than this are not tried one by one
LARGE, TINY = 1e4, 1e-4
MUCH, FEW = 4, 1000  # no shapes are tried that hold so many times the given numbers, or these few


class Point(NamedTuple):
    """Inputs in float64, and what is particular about them."""

    name: str
    inputs: list[Any]


def nearby(
    args: Sequence[Any], rng: np.random.Generator, places: Sequence[int] | None = None
) -> list[Any]:
    """Inputs of which every number is up to 30% smaller or larger; those at `places`, if given."""
    moving = [i for i in free(args) if places is None or i in places]
    values = [
        within(a, drawn(a) * (1 + 0.3 * rng.uniform(-1, 1, a.shape))) if i in moving else drawn(a)
        for i, a in enumerate(args)
    ]
    return in_order(args, values, moving)


def same_shape(subject: Subject, rng: np.random.Generator) -> Iterator[Point]:
    """Other values in arrays of the given shapes, the simplest first."""
    args = subject.args
    open_ = [i for i in redrawable(args) if i in subject.differentiable]
    given = [drawn(leaf) for leaf in args]

    def changed(change: Any, places: Sequence[int]) -> list[Any]:
        values = [
            within(args[i], change(given[i], i)) if i in places else leaf
            for i, leaf in enumerate(given)
        ]
        return in_order(args, values, open_)

    def normal(values: np.ndarray, i: int) -> np.ndarray:
        return rng.standard_normal(values.shape)

    for i in open_[-6:]:
        name = subject.called(i).rpartition(": ")[2]
        for number, what in enumerate(("zeros", "ones")):
            inputs = changed(lambda v, _, number=number: 0 * v + number, [i])
            meant = np.all(inputs[i] == number)  # it may have promised not to be
            yield Point(f"{name} of {what}" if meant else f"equal numbers in {name}", inputs)
    yield Point("ties", changed(lambda v, _: np.round(v), open_))
    yield Point("whole numbers", changed(lambda v, i: np.round(3 * normal(v, i)), open_))
    indices = [i for i, leaf in enumerate(args) if are_indices(args, i)]
    if indices:
        repeated = [np.full_like(v, v.flat[0]) if i in indices else v for i, v in enumerate(given)]
        yield Point("repeated indices", repeated)
    if shuffled := [i for i in indices if not is_rising(given[i])]:
        yield Point(
            "other indices",
            [
                rng.permutation(v.ravel()).reshape(v.shape) if i in shuffled else v
                for i, v in enumerate(given)
            ],
        )
    masks = [i for i, leaf in enumerate(args) if leaf.dtype == bool]
    for i in masks:
        for value in (False, True):
            name = f"{subject.called(i)} {'true' if value else 'false'} everywhere"
            filled = np.full_like(given[i], value)
            yield Point(name, [filled if j == i else v for j, v in enumerate(given)])
    turned = changed(lambda v, _: -v, open_)
    if any(not np.array_equal(a, b) for a, b in zip(turned, given, strict=True)):
        yield Point("the signs turned", turned)
    yield Point("random numbers", changed(normal, open_))
    yield Point("random numbers", changed(lambda v, i: 3 * normal(v, i), open_))
    for i in open_[-6:]:
        name = subject.called(i).rpartition(": ")[2]
        yield Point(f"large {name}", changed(lambda v, _: LARGE * v, [i]))
        yield Point(f"tiny {name}", changed(lambda v, _: TINY * v, [i]))


def are_indices(args: Sequence[Any], i: int) -> bool:
    """Whether an argument's integers may be any: not a permutation of the places along an axis, nor
    one in each row."""
    leaf = np.asarray(args[i])
    if not np.issubdtype(leaf.dtype, np.integer) or leaf.size < 2:
        return False
    n = leaf.shape[-1]
    sizes = {m for other in args for m in other.shape if other is not args[i]}
    return n not in sizes or not np.all(np.sort(leaf, axis=-1) == np.arange(n))


def is_rising(values: np.ndarray) -> bool:
    """Sorted segments, bounds of parts."""
    return values.size > 2 and values.ndim == 1 and bool(np.all(np.diff(values) >= 0))


# --------------------------------------------------------------------------------------- shapes


def other_shapes(subject: Subject, rng: np.random.Generator) -> Iterator[Point]:
    """Inputs of other shapes: one example, and axes that differ where the given ones agree; or,
    where no given ones do, agree."""
    if axes := _batch(subject):
        yield from _resized(subject, "a batch of one", dict.fromkeys(axes, 1), rng)
    if changes := _distinct(subject):
        if same := _alike(subject, changes):
            yield from _resized(subject, "axes of the same size", same, rng)
        else:
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
        if all(n <= m for n, m in zip(shape, leaf.shape, strict=True)):
            value = drawn(np.asarray(leaf)[tuple(slice(0, n) for n in shape)])
        else:
            value = drawn(leaf)
            if is_free(leaf):
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
        with internals.unfiltered_errors():
            plain = _outputs(subject, sizes)
            if subject.forward in (None, subject.plain):
                return True
            rule = _outputs(subject, sizes, subject.forward)
    except Exception:  # whatever a function raises at a shape that it was not made for
        return False
    return [y.shape for y in plain] == [y.shape for y in rule]


def _outputs(
    subject: Subject, sizes: dict[tuple[int, int], int], forward: Any = None
) -> list[jax.ShapeDtypeStruct]:
    specs = [
        jax.ShapeDtypeStruct(shape, leaf.dtype)
        for shape, leaf in zip(shapes(subject, sizes), subject.args, strict=True)
    ]
    return jax.eval_shape(forward or subject.plain, *specs)


def _batch(subject: Subject) -> list[tuple[int, int]]:
    """The leading axes of inputs that examples stand along.

    Outputs have the axis in front too, or else none of its size, for the examples are summed.
    """
    leaves = [(i, subject.args[i]) for i in subject.data if subject.args[i].ndim]
    sizes = sorted({int(leaf.shape[0]) for _, leaf in leaves if leaf.shape[0] > 1}, reverse=True)
    for follows in (_leads, _is_summed):
        for n in sizes:
            together = [(i, 0) for i, leaf in leaves if leaf.shape[0] == n]
            for axes in (together, *([axis] for axis in together)):
                larger = dict.fromkeys(axes, n + 1)
                if fits(subject, larger) and follows(_outputs(subject, larger), n + 1):
                    return axes
    return []


def _leads(outputs: list[jax.ShapeDtypeStruct], n: int) -> bool:
    return all(y.shape[:1] == (n,) for y in outputs)


def _is_summed(outputs: list[jax.ShapeDtypeStruct], n: int) -> bool:
    return all(n not in y.shape for y in outputs)


def _distinct(subject: Subject) -> dict[tuple[int, int], int]:
    """New sizes for all axes, as far as the function takes them, so that no two agree by chance.

    Larger by an even number: odd kernels stay odd, and even widths even.
    """
    axes = [(i, axis) for i in subject.data for axis in range(subject.args[i].ndim)]
    if len(axes) > TRIED_AXES:
        return {}
    axes = [axis for axis in axes if _size(subject, axis) > 1]
    changes: dict[tuple[int, int], int] = {}
    grown = 1
    for count in (1, 2, 3):
        for group in itertools.combinations(axes, count):
            same = len({_size(subject, a) for a in group}) == 1
            if not same or any(a in changes for a in group):
                continue
            trial = {**changes, **{a: _size(subject, a) + 2 * grown for a in group}}
            if fits(subject, trial):
                changes, grown = trial, grown + 1
    return changes


def _alike(subject: Subject, changes: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """One new size for axes that all differ, as far as the function takes it; else none.

    Where there may be kernels, odd sizes stay odd; where integers may count along an axis it is
    not cut.
    """
    groups: dict[int, list[tuple[int, int]]] = {}
    for axis, n in changes.items():
        groups.setdefault(n, []).append(axis)
    given = {_size(subject, axes[0]) for axes in groups.values()}
    if len(groups) < 2 or len(given) < len(groups):
        return {}
    kernels = any(subject.args[i].ndim > 2 for i in subject.data)
    counted = any(np.issubdtype(leaf.dtype, np.integer) for leaf in subject.args)
    for pick in (max,) if counted else (max, min):
        tops = {n: pick(m for m in groups if not kernels or (m - n) % 2 == 0) for n in groups}
        same = {axis: tops[n] for n, axes in groups.items() for axis in axes}
        if len(set(tops.values())) == len(groups) or not fits(subject, same):
            continue
        if _numbers(subject, same) <= MUCH * max(_numbers(subject, {}), FEW):
            return same
    return {}


def _numbers(subject: Subject, sizes: dict[tuple[int, int], int]) -> int:
    outputs = [y.shape for y in _outputs(subject, sizes)]
    return sum(math.prod(shape) for shape in (*shapes(subject, sizes), *outputs))


def _size(subject: Subject, axis: tuple[int, int]) -> int:
    return subject.args[axis[0]].shape[axis[1]]
