"""Stories of a reduction along another axis: a softmax over the batch, statistics over everything.

The forward pass is run with a sum or a maximum taken along other axes. Its result keeps its rank
with ones in the place of these axes, so that what is elementwise after it takes it as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.stories import graph
from funprop.verify.stories.case import Case, Told
from funprop.verify.subject import floats, is_floating

VARIANTS = 8  # more are not tried: each is compiled

_REDUCE = {
    "reduce_sum": jnp.sum,
    "reduce_max": jnp.max,
    "reduce_min": jnp.min,
    "reduce_prod": jnp.prod,
}
_RESHAPES = (
    "broadcast_in_dim",
    "reshape",
    "expand_dims",
    "squeeze",
    "copy",
    "convert_element_type",
)
_ELEMENTWISE = (
    "add", "sub", "mul", "div", "max", "min", "neg", "exp", "exp2", "log", "log1p", "sqrt", "rsqrt",
    "square", "integer_pow", "pow", "tanh", "logistic", "abs", "sign", "stop_gradient", "is_finite",
    "select_n", "eq", "ne", "gt", "ge", "lt", "le", "and", "or", "not", "expm1",
)  # fmt: skip


class Axes(NamedTuple):
    """Reductions of one shape along some axes, and the axes that are taken in their place.

    Attributes:
      averaged: whether sums are scaled to keep what divides them a count.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    instead: tuple[int, ...]
    averaged: bool

    @property
    def told(self) -> Told:
        """The story."""
        is_whole = len(self.instead) == len(self.shape)
        over = "everything" if is_whole else f"axis {self.instead[0]}"
        names = ", ".join(map(str, self.axes))
        sentence = f"what is reduced over axis {names} of {list(self.shape)} is so over {over}"
        return Told("leak" if is_whole else "wrong axis", sentence)


class _MisfitError(Exception):
    """A value of another shape arrives where only the traced one fits."""


def reduced_otherwise(case: Case) -> Told | None:
    """The gradient with reductions along other axes."""
    try:
        with jax.enable_x64(True):
            fitting = _fitting(case)
            if not fitting:
                return None
            leaves = case.together  # of all at once: most of the time is compiling
            name, own = f"reduced otherwise {leaves}", leaves.index(case.leaf)
            places = [case.tools.subject.differentiable[k] for k in leaves]
            every = case.tools.kept(
                f"program of what is {name}",
                case.tools,
                lambda: case.tools.jit(
                    lambda inputs, dys: [_gradients(case, v, places, inputs, dys) for v in fitting]
                ),
            )
            per_sample = [
                [g[own] for g in case.tools.kept(name, s, lambda s=s: every(s.inputs, s.dys))]
                for s in case.samples
            ]
    except Exception:  # a part of the forward pass that cannot be run so
        return None
    for variant, found in zip(fitting, zip(*per_sample, strict=True), strict=True):
        scaled = [np.asarray(g) / s.unit for g, s in zip(found, case.samples, strict=True)]
        if case.close(np.stack(scaled)):
            return variant.told
    return None


def _variants(case: Case) -> Iterator[Axes]:
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], None] = {}

    def note(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
        if eqn.primitive.name in _REDUCE and inputs[0].ndim > 1:
            seen[inputs[0].shape, tuple(eqn.params["axes"])] = None
        return run(inputs)

    run = graph.evaluate(note)
    jax.eval_shape(lambda *inputs: run(case.tools.wide_plain, *inputs), *case.samples[0].inputs)
    for (shape, axes), averaged in itertools.product(seen, (False, True)):
        others = [(a,) for a in range(len(shape)) if (a,) != axes]
        for instead in (*others, tuple(range(len(shape)))):
            if instead != axes and math.prod(shape[a] for a in instead) > 1:
                yield Axes(shape, axes, instead, averaged)


def _fitting(case: Case) -> list[Axes]:
    """The first few with which the forward pass runs."""

    def fitting() -> list[Axes]:
        return list(itertools.islice((v for v in _variants(case) if _runs(case, v)), VARIANTS))

    return case.tools.kept("reductions that fit", case.tools, fitting)


def _runs(case: Case, variant: Axes) -> bool:
    """Whether the forward pass runs so, to outputs of the shapes that it should have."""
    try:
        ys = jax.eval_shape(lambda inputs: _run(case, variant, inputs), case.samples[0].inputs)
    except (_MisfitError, TypeError, ValueError):
        return False
    return [y.shape for y in floats(ys)] == [d.shape for d in case.samples[0].dys]


def _gradients(
    case: Case, variant: Axes, places: list[int], inputs: list[Any], dys: list[Any]
) -> list[Any]:
    def total(leaves: list[Any]) -> Any:
        changed = dict(zip(places, leaves, strict=True))
        ys = _run(case, variant, [changed.get(i, v) for i, v in enumerate(inputs)])
        return sum(jnp.sum(y * d) for y, d in zip(floats(ys), dys, strict=True))

    return jax.grad(total)([inputs[i] for i in places])


def values_otherwise(case: Case) -> list[tuple[Axes, dict[graph.Key, list[np.ndarray]]]]:
    """What the forward pass computes with each of the reductions along other axes, by sample."""

    def every(inputs: list[Any], variants: list[Axes]) -> list[dict[graph.Key, Any]]:
        found: list[dict[graph.Key, Any]] = []
        for variant in variants:
            values: dict[graph.Key, Any] = {}
            _run(case, variant, inputs, values)
            found.append(values)
        return found

    try:
        with jax.enable_x64(True):
            fitting = _fitting(case)
            if not fitting:
                return []
            tools, name = case.tools, "values reduced otherwise"
            run = tools.kept(
                f"program of {name}",
                tools,
                lambda: tools.jit(lambda inputs: every(inputs, fitting)),
            )
            found = [
                tools.kept(name, s, lambda s=s: jax.tree.map(np.asarray, run(s.inputs)))
                for s in case.samples
            ]
    except Exception:  # a part of the forward pass that cannot be run so
        return []
    return [
        (variant, {key: [values[key] for values in per_sample] for key in per_sample[0]})
        for variant, per_sample in zip(fitting, zip(*found, strict=True), strict=True)
    ]


def _run(
    case: Case, variant: Axes, inputs: list[Any], values: dict[graph.Key, Any] | None = None
) -> list[Any]:
    """The outputs of a variant of the forward pass; what it computes is put in `values`."""

    def visit(eqn: Any, ran: graph.Run, inputs: list[Any], run: Any) -> list[Any]:
        outputs = _ran(variant, eqn, inputs, run)
        if values is not None and not graph.is_whole(eqn):
            values.update(((ran.equation, i), y) for i, y in enumerate(outputs) if is_floating(y))
        return outputs

    return graph.walked(case, inputs, visit)


def _ran(variant: Axes, eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
    name = eqn.primitive.name
    traced = [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    if graph.is_whole(eqn):
        return run(inputs)
    if all(np.shape(v) == shape for v, shape in zip(inputs, traced, strict=True)):
        of_shape = name in _REDUCE and inputs[0].shape == variant.shape
        if of_shape and tuple(eqn.params["axes"]) == variant.axes:
            return [_reduced(name, variant, inputs[0])]
        return run(inputs)
    if name in _RESHAPES:
        return inputs[:1]
    if name not in _ELEMENTWISE:
        raise _MisfitError
    shape = np.broadcast_shapes(*map(np.shape, inputs))
    return run([jnp.broadcast_to(v, shape) for v in inputs])


def _reduced(name: str, variant: Axes, value: Any) -> Any:
    found = _REDUCE[name](value, axis=variant.instead, keepdims=True)
    if name == "reduce_sum" and variant.averaged:
        counts = [math.prod(value.shape[a] for a in axes) for axes in variant[1:3]]
        found = found * (counts[0] / counts[1])
    return found
