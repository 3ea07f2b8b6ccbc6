"""The gradient on its way: what arrives at each place of the forward pass, then at the leaf.

A backward pass that does one thing wrong sends a wrong cotangent on from one place, and the rest is
right. What it finds is then the gradient and what a *change* of the cotangent there adds to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.stories import graph
from funprop.verify.stories.case import Case, Told
from funprop.verify.subject import floats, is_floating

CHANGES = 3000  # more are not tried
_BROADCASTS = ("add", "sub", "mul", "div", "max", "min", "pow")  # one-sized axes and scalars
ROOM = 4 * graph.NUMBERS  # numbers at once, of all changes that are tried


class Place(NamedTuple):
    """Where a float stands in the forward pass: an input, a use of a value, an equation's output.

    Attributes:
      where: it stands; `is_use`: whether it is the operand of an equation.
      values, cotangents: one array a sample.
      alive: whether the leaf's gradient may come through it.
    """

    where: str
    is_use: bool
    values: list[np.ndarray]
    cotangents: list[np.ndarray]
    alive: bool


class Step(NamedTuple):
    """An equation: its operands and its outputs are numbers of places."""

    where: str
    primitive: str
    params: dict[str, Any]
    operands: list[int]
    outputs: list[int]


class Change(NamedTuple):
    """Another cotangent at a place: `sample -> array`.

    Attributes:
      told: the story, if all of the gradient comes through there, and if some of it does.
    """

    place: int
    told: tuple[Told, Told]
    cotangent: Callable[[int], np.ndarray]


def always(kind: str, sentence: str) -> tuple[Told, Told]:
    """The same story, whatever comes through the place."""
    return Told(kind, sentence), Told(kind, sentence)


class Flow(NamedTuple):
    """Every place and step; `pulled` gives what arrives at the leaf.

    Attributes:
      pulled: `(places, their cotangents, flat and padded, sample) -> gradients`.
    """

    case: Case
    places: list[Place]
    steps: list[Step]
    pulled: Callable[[np.ndarray, np.ndarray, int], np.ndarray]

    def alive(self) -> list[int]:
        """The places that the leaf's gradient comes through."""
        return [i for i, place in enumerate(self.places) if place.alive]

    def first_that_fits(self, changes: Iterable[Change]) -> Told | None:
        """The story of the first change that gives what was found."""
        places = self.places
        alive = self.alive()
        total = sum(places[i].values[0].size for i in alive)
        limit = min(CHANGES, ROOM // max(total, 1))
        tried = []
        for change in itertools.islice(changes, limit):
            new = change.cotangent(0)
            if np.isfinite(new).all():
                tried.append((change, new - places[change.place].cotangents[0]))
        if not tried:
            return None
        first = self.case.at_first(1)
        truth = self.case.verdict.truth
        added = self._arriving([(c.place, difference) for c, difference in tried], 0)
        for (change, _), extra in zip(tried, added, strict=True):
            if not first.close(truth[:1] + extra[None]) or not self._fits(change):
                continue
            place = places[change.place]
            through = self._arriving([(change.place, place.cotangents[0])], 0)
            return change.told[0 if first.close(through, truth[:1]) else 1]
        return None

    def _fits(self, change: Change) -> bool:
        cotangents = self.places[change.place].cotangents
        extra = [
            self._arriving([(change.place, change.cotangent(s) - cotangents[s])], s)[0]
            for s in range(len(cotangents))
        ]
        return self.case.close(self.case.verdict.truth + np.stack(extra))

    def _arriving(self, sent: list[tuple[int, np.ndarray]], sample: int) -> np.ndarray:
        """What arrives at the leaf of each cotangent, in units of the sample."""
        width = max(self.places[i].values[0].size for i in self.alive())
        flat = np.stack([np.pad(d.ravel(), (0, width - d.size)) for _, d in sent])
        return self.pulled(np.array([i for i, _ in sent]), flat, sample)


class _Passes(NamedTuple):
    """The forward pass with every place of it in sight, the same for every leaf.

    Attributes:
      run: `(inputs, added=None) -> the outputs, and the value at every place`.
      every: `(inputs, dys) -> the cotangents at every place, and the values`.
      names: of the places; `steps`: the equations.
    """

    run: Callable[..., tuple[list[Any], list[Any]]]
    every: Callable[..., tuple[list[Any], list[Any]]]
    names: list[tuple[str, bool]]
    steps: list[Step]


def flow(case: Case) -> Flow | None:
    """The gradient on its way; `None` where the forward pass cannot be taken apart."""
    tools, samples = case.tools, case.samples
    try:
        with jax.enable_x64(True):
            passes = tools.kept("program of places", tools, lambda: _passes(case))
            if passes is None:
                return None
            found = [
                tools.kept("places", s, lambda s=s: passes.every(s.inputs, s.dys)) for s in samples
            ]
            other = passes.every(case.with_other_leaf(), samples[0].dys)[1]
    except Exception:  # a part of the forward pass that cannot be run so: no story of its parts
        return None
    units = [s.unit for s in samples]
    places = []
    for i, (where, is_use) in enumerate(passes.names):
        values = [np.asarray(v[i]) for _, v in found]
        cotangents = [np.asarray(c[i]) / u for (c, _), u in zip(found, units, strict=True)]
        moved = not np.array_equal(values[0], np.asarray(other[i]), equal_nan=True)
        alive = moved and bool(np.any(cotangents[0])) and bool(np.isfinite(cotangents[0]).all())
        places.append(Place(where, is_use, values, cotangents, alive))
    return Flow(case, places, list(passes.steps), _puller(case, places, passes.run))


def _passes(case: Case) -> _Passes | None:
    """The forward pass of all leaves; `None` where its places hold too many numbers."""
    names: list[tuple[str, bool]] = []
    steps: list[Step] = []
    subject = case.tools.subject

    def run(inputs: list[Any], added: list[Any] | None = None) -> tuple[list[Any], list[Any]]:
        """The outputs, and the value at every place, to which `added` is added."""
        names.clear()
        steps.clear()
        values: list[Any] = []

        def at(value: Any, where: str, is_use: bool = False) -> Any:
            value = value if added is None else value + added[len(values)]
            names.append((where, is_use))
            values.append(value)
            return value

        def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            if graph.is_whole(eqn):
                return run(inputs)
            where, changed = graph.described(eqn), list(inputs)
            if eqn.primitive.name in _BROADCASTS:  # so that it is seen before it is summed
                shape = np.broadcast_shapes(*(v.shape for v in inputs))
                for i, value in graph.operands(inputs):
                    if value.shape != shape:
                        changed[i] = jnp.broadcast_to(at(value, where, True), shape)
            start = len(values)
            for i, value in graph.operands(changed):
                changed[i] = at(value, where, True)
            middle = len(values)
            outputs = [at(y, where) if is_floating(y) else y for y in run(changed)]
            operands, ends = list(range(start, middle)), list(range(middle, len(values)))
            steps.append(Step(where, eqn.primitive.name, eqn.params, operands, ends))
            return outputs

        named = zip(inputs, subject.paths, strict=True)
        inputs = [at(v, path or "an input") if is_floating(v) else v for v, path in named]
        return floats(graph.evaluate(around)(case.tools.wide_plain, *inputs)), values

    def passing(inputs: list[Any], dys: list[Any]) -> Any:
        def total(added: list[Any]) -> Any:
            ys, values = run(inputs, added)
            return sum(jnp.sum(y * d) for y, d in zip(ys, dys, strict=True)), values

        return jax.grad(total, has_aux=True)([jnp.zeros(spec.shape) for spec in specs])

    inputs = [jnp.asarray(v) for v in case.samples[0].inputs]
    specs = jax.eval_shape(lambda inputs: run(inputs)[1], inputs)
    if sum(spec.size for spec in specs) > graph.NUMBERS // 10:
        return None
    return _Passes(run, case.tools.jit(passing), names, steps)


def _puller(case: Case, places: list[Place], run: Callable[..., Any]) -> Callable[..., np.ndarray]:
    leaf = case.place

    def pull(which: Any, flat: Any, inputs: list[Any]) -> Any:
        def values(value: Any) -> list[Any]:
            found = run([*inputs[:leaf], value, *inputs[leaf + 1 :]])[1]
            return [v for v, place in zip(found, places, strict=True) if place.alive]

        at, back = jax.vjp(values, inputs[leaf])
        numbers = [i for i, place in enumerate(places) if place.alive]
        sent = [
            jnp.where(which == i, flat[: v.size].reshape(v.shape), 0)
            for i, v in zip(numbers, at, strict=True)
        ]
        return back(sent)[0]

    every = case.tools.jit(jax.vmap(pull, (0, 0, None)))
    most = 0

    def pulled(which: np.ndarray, flat: np.ndarray, sample: int) -> np.ndarray:
        nonlocal most
        n, most = len(which), max(most, len(which))  # what was compiled takes fewer, too
        which, flat = np.resize(which, most), np.resize(flat, (most, flat.shape[1]))
        with jax.enable_x64(True):
            return np.asarray(every(which, flat, case.samples[sample].inputs))[:n]

    return pulled
