"""The forward pass as a graph of equations that a story may point at or change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.stories.case import Case
from funprop.verify.subject import floats, is_floating
from funprop.verify.truth import internals
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.samples import Sample

NUMBERS = 2_000_000  # at once, of all variants of the forward pass that a story tries


Key = tuple[int, int]  # of an equation, or -1, and of its output: the same in every turn of a scan


class Value(NamedTuple):
    """A number that the forward pass computes: where, and what it is at each sample."""

    key: Key
    name: str
    arrays: list[np.ndarray]


# What people write, for what JAX calls otherwise inside.
WRITTEN = {
    "select_n": "where", "dot_general": "dot", "integer_pow": "**", "pow": "**", "gather": "[]",
    "dynamic_slice": "[]", "scatter": "at[].set", "scatter-add": "at[].add",
    "scatter_add": "at[].add", "reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min",
    "reduce_prod": "prod", "logistic": "sigmoid", "convert_element_type": "astype",
    "broadcast_in_dim": "broadcast_to", "conv_general_dilated": "conv",
}  # fmt: skip


def described(eqn: Any) -> str:
    """The equation as a user would look for it: `` `mul` at norms.py:13 ``."""
    name, source = internals.equation_name(eqn), internals.equation_source(eqn)
    name = WRITTEN.get(name, name).lstrip("_")
    return f"`{name}` at {source}" if source else f"`{name}`"


def is_whole(eqn: Any) -> bool:
    """Whether the equation only runs others, which are seen on their own."""
    return eqn.primitive.name in ("scan", "while", "cond", "shard_map") or internals.only_calls(eqn)


def operands(inputs: list[Any]) -> Iterator[tuple[int, Any]]:
    """The operands that a gradient may come through: floats that are not literals."""
    for i, value in enumerate(inputs):
        if isinstance(value, jax.Array) and is_floating(value):
            yield i, value


def evaluate(around: Callable[..., list[Any]]) -> Evaluate:
    """The forward pass in float64, scans step by step, `around` called for every equation."""
    return Evaluate(wide=True, unroll=True, around=around)


def variants_affordable(case: Case, n: int) -> bool:
    """Whether `n` variants of the forward pass at once stay within `NUMBERS`."""
    sample = case.samples[0]
    numbers = sum(np.size(v) for v in (*sample.inputs, *sample.dys))
    return n > 0 and n * numbers <= NUMBERS


def gradients(
    case: Case, what: str, run: Callable[..., list[Any]], *variants: np.ndarray
) -> np.ndarray:
    """The leaf's gradient of many variants of the forward pass.

    Of all leaves that are wrong it is had at once: most of the time is compiling.

    Args:
      what: names `run`, which is the same for every leaf.
      run: `(variant, inputs) -> outputs` of the forward pass in that variant.
      *variants: arrays, one variant in each place of their leading axis.

    Returns:
      `[variant, sample, *leaf]`, divided by each sample's unit.
    """
    tools, leaves = case.tools, case.together
    places = [tools.subject.differentiable[k] for k in leaves]

    def gradient(variant: Any, inputs: list[Any], dys: list[Any]) -> Any:
        def total(values: list[Any]) -> Any:
            changed = dict(zip(places, values, strict=True))
            ys = floats(run(variant, [changed.get(i, v) for i, v in enumerate(inputs)]))
            return sum(jnp.sum(y * d) for y, d in zip(ys, dys, strict=True))

        return jax.grad(total)([inputs[i] for i in places])

    def program() -> Callable[..., Any]:
        one_by_one = _one_by_one(gradient) if _factors(case) else None
        return tools.jit(one_by_one or jax.vmap(gradient, (0, None, None)))

    every = tools.kept(f"program of {what} {leaves}", tools, program)
    same = f"{what} {leaves} {hash(b''.join(np.asarray(v).tobytes() for v in variants))}"
    with jax.enable_x64(True):

        def at(s: Sample) -> list[np.ndarray]:
            return [np.asarray(g) / s.unit for g in every(variants, s.inputs, s.dys)]

        found = [
            at(s) if len(leaves) == 1 else tools.kept(same, s, lambda s=s: at(s))
            for s in case.samples
        ]
    return np.stack([parts[leaves.index(case.leaf)] for parts in found], axis=1)


# XLA on CPUs waits for ever in programs that hold many batched factorisations, for work that no
# thread of its pool has (jaxlib 0.10.2; no option of the compiler ends it).
_FACTORISATIONS = ("lu", "cholesky", "eigh", "svd", "qr", "eig", "schur", "custom_linear_solve")


def _factors(case: Case) -> bool:
    return any(
        e.primitive.name in _FACTORISATIONS for e in internals.equations(case.tools.wide_plain)
    )


def _one_by_one(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """As a vmap over the first argument, one after the other."""
    return lambda variants, *rest: jax.lax.map(lambda v: gradient(v, *rest), variants)


def values(case: Case) -> list[Value]:
    """Every float that the forward pass computes: its inputs first, then outputs of equations.

    Empty where the forward pass cannot be taken apart, or has too many steps.
    """
    tools = case.tools
    if case.long:
        return []
    names, every = tools.kept("program of values", tools, lambda: _computing(case))
    try:
        with jax.enable_x64(True):
            found = [
                tools.kept("values", s, lambda s=s: [np.asarray(v) for v in every(s.inputs)])
                for s in case.samples
            ]
    except Exception:  # a part of the forward pass that cannot be run in float64
        return []
    return [
        Value(key, name, list(arrays))
        for (key, name), arrays in zip(names, zip(*found, strict=True), strict=True)
    ]


def _computing(case: Case) -> tuple[list[tuple[Key, str]], Callable[..., list[Any]]]:
    """A program for every float that the forward pass computes; their names, once it has run."""
    names: list[tuple[Key, str]] = []

    def run(inputs: list[Any]) -> list[Any]:
        found = computed(case, inputs)
        names[:] = [(key, name) for key, name, _ in found]
        return [value for *_, value in found]

    return names, case.tools.jit(run)


def computed(case: Case, inputs: list[Any]) -> list[tuple[Key, str, Any]]:
    """Keys, names and values of the floats that the forward pass computes, in one order."""
    paths = case.tools.subject.paths
    found = [
        ((-1, i), path or f"input {i}", v)
        for i, (path, v) in enumerate(zip(paths, inputs, strict=True))
        if is_floating(v)
    ]

    def note(eqn: Any, ran: Run, inputs: list[Any], run: Any) -> list[Any]:
        outputs = run(inputs)
        found.extend(
            ((ran.equation, i), described(eqn), v) for i, v in enumerate(outputs) if is_floating(v)
        )
        return outputs

    walked(case, inputs, note)
    return found


class Run(NamedTuple):
    """An equation as it is run, in one turn of the scans that it stands in.

    Attributes:
      equation: its number, the same in every turn; `turn`: how often it was run before.
      first: the number of its first operand, the same in every turn.
    """

    equation: int
    turn: int
    first: int


def walked(case: Case, inputs: list[Any], visit: Callable[..., list[Any]]) -> list[Any]:
    """Run the forward pass, `visit(equation, ran, inputs, run)` in the place of each equation."""
    seen: dict[tuple[int, ...], Run] = {}
    calls: list[int] = []  # that the equation stands in: calls may share what they call
    operands_before = 0

    def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
        nonlocal operands_before
        at = (*calls, id(eqn))
        ran = seen.get(at)
        if ran is None:
            ran = Run(len(seen), 0, operands_before)
            operands_before += len(inputs)
        seen[at] = ran._replace(turn=ran.turn + 1)

        def within(inputs: list[Any]) -> list[Any]:
            calls.append(id(eqn))
            try:
                return run(inputs)
            finally:
                calls.pop()

        return visit(eqn, ran, inputs, within)

    return evaluate(around)(case.tools.wide_plain, *inputs)
