"""The smallest and simplest input on which a gradient is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from funprop.verify.inputs import points, properties
from funprop.verify.judging.judge import in_float64, judged
from funprop.verify.report import Example
from funprop.verify.subject import Subject, is_floating
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.samples import Sample, drawn_sample

SHAPES = 12  # shapes that are tried
NEAR = 1e-9  # of an array's largest number: aside of a kink
WRONG = 1e-4  # of the gradient's size: wrong beyond any rounding


def smallest(given: Instruments, leaf: int, rng: np.random.Generator) -> list[Example]:
    """An input as small and as simple as greedy steps make it, or none if the error is too small
    to be sure of at other inputs."""
    state = _smaller_shapes(given, leaf, rng)
    if state is None:
        return []
    tools, sample = state
    sample = _simplified(tools, sample, leaf)
    return [_example(tools, sample, leaf)]


def _smaller_shapes(
    given: Instruments, leaf: int, rng: np.random.Generator
) -> tuple[Instruments, Sample] | None:
    subject = given.subject
    sizes: dict[tuple[int, int], int] = {}
    best = _tried(given, leaf, sizes, rng)
    tries = 0
    for target in (1, 2):
        for group in _groups(subject):
            old = {(i, a): sizes.get((i, a), int(subject.args[i].shape[a])) for i, a in group}
            trial = {**sizes, **{axis: target for axis, n in old.items() if n > target}}
            if trial == sizes or tries >= SHAPES or not points.fits(subject, trial):
                continue
            tries += 1
            found = _tried(given, leaf, trial, rng)
            if found is not None:
                best, sizes = found, trial
    return best


def _others(args: Sequence[Any], rng: np.random.Generator) -> Iterator[list[Any]]:
    """All ones, and random numbers, in the arrays that may hold any."""
    free = properties.free(args)
    for draw in (np.ones, rng.standard_normal):
        values = [
            properties.within(a, draw(a.shape)) if i in free else properties.drawn(a)
            for i, a in enumerate(args)
        ]
        yield properties.in_order(args, values)


def _groups(subject: Subject) -> Iterator[list[tuple[int, int]]]:
    """Axes that may have to shrink together: those of one size, then each on its own."""
    axes = [(i, a) for i in subject.data for a in range(subject.args[i].ndim)]
    by_size: dict[int, list[tuple[int, int]]] = {}
    for i, a in axes:
        by_size.setdefault(subject.args[i].shape[a], []).append((i, a))
    yield from by_size.values()
    yield from ([axis] for axis in axes)


def _tried(
    like: Instruments, leaf: int, sizes: dict[tuple[int, int], int], rng: np.random.Generator
) -> tuple[Instruments, Sample] | None:
    subject = like.subject
    shapes = points.shapes(subject, sizes)
    inputs = points.filled(subject, shapes, rng)
    if inputs is None:
        return None
    try:
        args = [
            np.asarray(v, a.dtype) if is_floating(a) else v
            for v, a in zip(inputs, subject.args, strict=True)
        ]
        tools = Instruments(subject, args, like).traced()
        given = [properties.drawn(a) for a in args]
        for values in (given, given, points.nearby(args, rng), *_others(args, rng)):
            sample = drawn_sample(tools, values, 1.0, rng)
            if _is_wrong(tools, sample, leaf):
                return tools, sample
    except Exception:  # whatever a backward pass raises at a shape
        return None
    return None


def _distance(tools: Instruments, sample: Sample, leaf: int) -> float:
    off = np.abs(tools.exact(sample)[leaf] - tools.truth(sample)[leaf])
    return float(np.max(np.nan_to_num(off, nan=np.inf), initial=0))


def _is_wrong(tools: Instruments, sample: Sample, leaf: int, least: float = 0.0) -> bool:
    try:
        truth = tools.truth(sample)[leaf]
        if not all(np.isfinite(y).all() for y in tools.output(sample)):
            return False
    except NotWideError:
        return False
    if not np.isfinite(truth).all():
        return False
    size = judged(in_float64(tools, [sample]), tools.eps, tools.constants).size
    if not _distance(tools, sample, leaf) > max(WRONG * size.leaf[leaf], least):
        return False
    return not tools.may_have_kinks or not _at_a_kink(tools, sample, leaf)


def _at_a_kink(tools: Instruments, sample: Sample, leaf: int) -> bool:
    """Whether the gradient is another a little aside of the inputs: of the same program."""
    truth = tools.truth(sample)[leaf]
    for side in (NEAR, -NEAR):
        aside = [
            v + side * (np.abs(v).max(initial=0) or 1) * np.cos(np.arange(v.size)).reshape(v.shape)
            if isinstance(v, np.ndarray) and is_floating(v)
            else v
            for v in sample.inputs
        ]
        if not np.allclose(truth, tools.truth(sample._replace(inputs=aside))[leaf]):
            return True
    return False


def _simplified(tools: Instruments, sample: Sample, leaf: int) -> Sample:
    """Ones or rounded numbers, for each array on which the gradient stays wrong with them."""
    least = 0.01 * _distance(tools, sample, leaf)
    for kind in ("dys", "inputs"):
        for i, value in enumerate(getattr(sample, kind)):
            if not (isinstance(value, np.ndarray) and is_floating(value)):
                continue
            if not (tools.subject.free_cotangent if kind == "dys" else properties.is_free(value)):
                continue
            for simpler in (np.ones_like(value), np.round(value) + 0.0, np.round(value, 1)):
                values = list(getattr(sample, kind))
                values[i] = simpler
                values = properties.in_order(sample.inputs, values) if kind == "inputs" else values
                candidate = sample._replace(**{kind: values})
                if _is_wrong(tools, candidate, leaf, least):
                    sample = candidate
                    break
    return sample


def _example(tools: Instruments, sample: Sample, leaf: int) -> Example:
    subject = tools.subject
    names = [path or f"input {i}" for i, path in enumerate(subject.paths)]
    return Example(
        subject.leaf(leaf),
        {
            name.replace("dx", "x"): value
            for name, value in zip(names, sample.inputs, strict=True)
            if isinstance(value, np.ndarray)
        },
        tuple(sample.dys),
        tools.exact(sample)[leaf],
        tools.truth(sample)[leaf],
    )
