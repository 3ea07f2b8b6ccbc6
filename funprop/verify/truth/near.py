"""What a forward pass gives beside an input, in float64, and its slopes on either side.

What `stop_gradient` gives is held as it is at the input: it is not meant to move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.subject import floats
from funprop.verify.truth.control_flow import CONTROL_FLOW
from funprop.verify.truth.differences import SIDED, Limit, limit, steps
from funprop.verify.truth.evaluate import Evaluate, NotWideError
from funprop.verify.truth.instruments import EPS64, Instruments
from funprop.verify.truth.internals import equations, inner_jaxprs, open_jaxpr
from funprop.verify.truth.samples import Sample

TOGETHER = 8  # directions of one run
MOST = 2**22  # numbers that a run may give


class Sides(NamedTuple):
    """The slopes of all terms of the outputs, [directions, terms], to the right and to the left."""

    right: Limit
    left: Limit

    def hull(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The least and the greatest slope of the weighted sum of all terms, and their error.

        Any choice of one-sided slopes, term by term, lies between. Where a term has a slope on one
        side only, as at the end of a domain, that is its slope. All are NaN where a term has none,
        and the error is infinite; an end is infinite where a term's is.
        """
        ways = np.stack([self.right.value, self.left.value]) * weights
        ways = np.where(weights == 0, 0.0, ways)
        low, high = np.fmin(*ways), np.fmax(*ways)
        errors = np.stack([self.right.error, self.left.error])
        errors = np.where(np.isfinite(errors), errors, 0) * np.abs(weights)
        return low.sum(-1), high.sum(-1), errors.max(0).sum(-1)


def by_values(jaxpr: Any) -> bool:
    """Whether slopes from values can be had: no `stop_gradient` hides in a loop or a branch."""
    return not any(
        True
        for outer in equations(jaxpr)
        if outer.primitive.name in CONTROL_FLOW
        for inner in inner_jaxprs(outer)
        for _ in _moving_stops(inner)
    )


def _moving_stops(jaxpr: Any) -> Iterator[Any]:
    """Every `stop_gradient` that values pass on their way to the outputs: not those of the factors
    that a linear solver alone is given, which are to follow its matrix."""
    opened, _ = open_jaxpr(jaxpr)
    needed = {id(atom) for atom in opened.outvars}
    for eqn in reversed(opened.eqns):
        if not any(id(v) in needed for v in eqn.outvars):
            continue
        if eqn.primitive.name == "stop_gradient":
            yield eqn
        inputs = eqn.invars
        if eqn.primitive.name == "custom_linear_solve":
            lengths = eqn.params["const_lengths"]
            inputs = [*inputs[: lengths.matvec], *inputs[sum(lengths) :]]
        else:
            for inner in inner_jaxprs(eqn):
                yield from _moving_stops(inner)
        needed.update(map(id, inputs))


def at_places(
    tools: Instruments, sample: Sample, leaf: int, places: Sequence[tuple[int, ...]]
) -> Sides:
    """The slopes with respect to some elements of a leaf.

    Raises:
      NotWideError: the forward pass cannot run in float64, or `by_values` says no.
    """
    x = np.asarray(sample.inputs[tools.subject.differentiable[leaf]])
    flat = [int(np.ravel_multi_index(p, x.shape)) if p else 0 for p in places]
    top = float(np.max(np.abs(x[np.isfinite(x)]), initial=0)) or 1.0
    sizes = [abs(float(x[p])) or top for p in places]
    leaves = [np.asarray(sample.inputs[i]) for i in tools.subject.differentiable]
    return _sides(tools, sample, leaf, flat, sizes, [np.zeros(v.size) for v in leaves])


def along(tools: Instruments, sample: Sample, directions: Sequence[np.ndarray]) -> Sides:
    """The slopes along one direction, in all leaves; raises as `at_places`."""
    leaves = [np.asarray(sample.inputs[i]) for i in tools.subject.differentiable]
    moved = [x[(d != 0) & np.isfinite(x)] for x, d in zip(leaves, directions, strict=True)]
    all_ = [x[np.isfinite(x)] for x, m in zip(leaves, moved, strict=True) if m.size]
    size = _largest(moved) or _largest(all_) or 1.0
    return _sides(tools, sample, 0, [-1], [size], [d.ravel() for d in directions])


def _largest(arrays: Sequence[np.ndarray]) -> float:
    return max((float(np.max(np.abs(a), initial=0)) for a in arrays), default=0.0)


def _sides(
    tools: Instruments,
    sample: Sample,
    leaf: int,
    places: list[int],
    sizes: list[float],
    directions: list[np.ndarray],
) -> Sides:
    if not by_values(tools.wide_plain):
        raise NotWideError("stop_gradient in a loop or a branch")
    run = tools.kept("near", tools, lambda: tools.jit(_near(tools)))
    found: list[tuple[Limit, Limit]] = []
    moves = list(zip(places, sizes, strict=True))
    for start in range(0, len(moves), TOGETHER):
        batch = moves[start : start + TOGETHER]
        where = np.zeros((TOGETHER, 2, SIDED), np.int64)
        h = np.zeros(where.shape)
        for n, (place, size) in enumerate(batch):
            where[n], h[n] = place, [steps(size), -steps(size)]
        every = [np.concatenate([[0], v.ravel()]).astype(v.dtype) for v in (where, h)]
        with jax.enable_x64(True):
            try:
                ys = run(sample.inputs, np.int64(leaf), *every, directions)
            except Exception as error:  # what takes no float64
                raise NotWideError(str(error)) from error
        ys = np.concatenate([np.asarray(y).reshape(1 + h.size, -1) for y in ys], axis=1)
        there = np.moveaxis(ys[1:].reshape(*h.shape, -1)[: len(batch)], 0, 2)
        middle = np.broadcast_to(ys[0], (len(batch), ys.shape[1]))
        right, left = (
            limit(middle, there[side], h[: len(batch), side].T, EPS64) for side in (0, 1)
        )
        found.append((right, left))
    return Sides(*(_joined([one[side] for one in found]) for side in (0, 1)))


def _joined(limits: list[Limit]) -> Limit:
    value, error = (np.concatenate(parts) for parts in zip(*limits, strict=True))
    return Limit(value, error)


def most_places(tools: Instruments) -> int:
    """How many elements can be looked at, at a time that is worth it."""
    numbers = sum(int(np.prod(d.shape)) for d in tools.dys) + sum(map(np.size, tools.args))
    return int(np.clip(MOST // (2 * SIDED * max(numbers, 1)), 4, 64))


def _near(tools: Instruments) -> Callable[..., Any]:
    """`(inputs, leaf, places, steps, directions) -> outputs` for each place and step: -1 is no
    place but the direction, flat for each leaf."""
    held = Held(tools.wide_plain, Evaluate(wide=True))

    def near(inputs: list[Any], leaf: Any, places: Any, h: Any, along: Any) -> list[Any]:
        stops = held.stops(inputs)

        def at(move: tuple[Any, Any]) -> list[Any]:
            place, step = move
            moved = list(inputs)
            for k, i in enumerate(tools.subject.differentiable):
                x = jnp.asarray(inputs[i])
                if not x.size:
                    continue
                own = jnp.where((leaf == k) & (place >= 0), step, 0)
                flat = x.reshape(-1).at[place].add(own, mode="drop")
                flat = flat + jnp.where(place < 0, step, 0) * along[k]
                moved[i] = flat.reshape(x.shape)
            return held(moved, stops)

        return lax.map(at, (places, h))

    return near


class Held:
    """A trace run with what `stop_gradient` gives held as it was at other inputs.

    Args:
      jaxpr: the trace.
      run: how to run it.
    """

    def __init__(self, jaxpr: Any, run: Evaluate):
        self.jaxpr, self.run = jaxpr, run
        self._stops = set(map(id, _moving_stops(jaxpr)))
        self.any = bool(self._stops)

    def stops(self, inputs: list[Any]) -> list[list[Any]]:
        """What they give at these inputs, those in loops and branches left out."""
        found: list[list[Any]] = []

        def kept(eqn: Any, values: list[Any], go: Any) -> list[Any]:
            outputs = go(values)
            if id(eqn) in self._stops:
                found.append(outputs)
            return outputs

        if self.any:
            self._ran(inputs, kept)
        return found

    def __call__(self, inputs: list[Any], stops: list[list[Any]]) -> list[Any]:
        """The float outputs at other inputs."""
        rest = iter(stops)

        def replaced(eqn: Any, values: list[Any], go: Any) -> list[Any]:
            return next(rest) if id(eqn) in self._stops else go(values)

        return floats(self._ran(inputs, replaced))

    def _ran(self, inputs: list[Any], around: Any) -> list[Any]:
        def outside_of_loops(eqn: Any, values: list[Any], go: Any) -> list[Any]:
            if eqn.primitive.name in CONTROL_FLOW:
                return self.run.equation(eqn, values)
            return around(eqn, values, go)

        return dataclasses.replace(self.run, around=outside_of_loops)(self.jaxpr, *inputs)
