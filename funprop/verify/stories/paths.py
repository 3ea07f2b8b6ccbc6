"""Stories of the forward pass's paths: a term of the gradient is missing, doubled or turned.

The gradient is a sum over the paths through the forward pass. With a number at every edge of its
graph by which the gradient there is multiplied, one at every edge gives the gradient, and a zero
at one edge what is left without the paths through it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.stories import graph
from funprop.verify.stories.case import Case, Told

EDGES = 600  # more are not tried
IN_PAIRS = 60  # so many of the edges are tried two by two


class Edge(NamedTuple):
    """Where the gradient comes through: an operand of an equation.

    Attributes:
      where: the equation; `primitive`: what it does.
      is_use: whether the operand is the leaf itself.
      part: what the gradient loses without it, at every sample.
    """

    where: str
    primitive: str
    is_use: bool
    part: np.ndarray


def whole_term(case: Case) -> Told | None:
    """One term of the gradient missing, doubled or of the wrong sign: no number is fitted."""
    found = _one_term(case, _edges(case))
    return None if found is None or found.kind == _KINDS[-1] else found


def term(case: Case) -> Told | None:
    """One term, or two, of the gradient with a factor, missing, or alone."""
    edges = _edges(case)
    best = _one_term(case, edges)
    if best and best.kind != _KINDS[-1]:
        return best
    for edge in edges:
        if case.close(edge.part):
            return _alone(case, edges, edge)
    return best or _two_terms(case, edges)


def _one_term(case: Case, edges: list[Edge]) -> Told | None:
    v = case.verdict
    off = v.got - v.truth
    best: Told | None = None
    for edge in sorted(edges, key=lambda edge: -float(np.sum(edge.part * edge.part))):
        k = float(np.sum(off * edge.part) / np.sum(edge.part * edge.part))
        if abs(k) > 1e-6 and case.close(v.truth + k * edge.part):
            told = _told_of(edge, k)
            if best is None or _KINDS.index(told.kind) < _KINDS.index(best.kind):
                best = told
    return _as_overwritten(case, edges, best) if best else None


def _alone(case: Case, edges: list[Edge], edge: Edge) -> Told:
    """Of many terms one is counted: the last of a weight's uses, or what skips a layer."""
    kind = "overwritten" if _is_shared(case, edges) else "missing term"
    return Told(kind, f"only what comes through {edge.where} is counted")


def _is_shared(case: Case, edges: list[Edge]) -> bool:
    """Whether the leaf is a weight that is used more than once."""
    uses = [edge for edge in edges if edge.is_use]
    rows = case.verdict.truth.shape[1:2]  # a weight has no axis of examples
    is_weight = not any(y.shape[:1] == rows for y in case.tools.outputs)
    return is_weight and len(uses) > 1 and all(e.primitive in _OF_WEIGHTS for e in uses)


def _as_overwritten(case: Case, edges: list[Edge], told: Told) -> Told:
    """A shared weight's use that is missing: gradients of uses must be added."""
    uses = [edge for edge in edges if edge.is_use]
    missing = [edge for edge in uses if case.close(case.verdict.truth - edge.part)]
    if told.kind != "missing term" or not missing or not _is_shared(case, edges):
        return told
    where = missing[0].where
    return Told(
        "overwritten", f"of {len(uses)} uses of {case.short} that at {where} is not counted"
    )


# What is done to a weight that is shared; a skip, or a factor of a product, is no such use.
_OF_WEIGHTS = ("dot_general", "conv_general_dilated", "gather", "transpose", "broadcast_in_dim")


_KINDS = ("missing term", "counted twice", "sign of a term", "factor of a term")


def _told_of(edge: Edge, k: float) -> Told:
    """Of an edge whose part of the gradient is found `1 + k` times."""
    where = edge.where
    if abs(k + 1) < 1e-3:
        return Told("missing term", f"what comes through {where} is missing")
    if abs(k - 1) < 1e-3:
        return Told("counted twice", f"what comes through {where} is counted twice")
    if abs(k + 2) < 1e-3:
        return Told("sign of a term", f"the sign of what comes through {where} is turned")
    sentence = f"what comes through {where} is {1 + k:.4g} times what it should be"
    return Told("factor of a term", sentence)


def _two_terms(case: Case, edges: list[Edge]) -> Told | None:
    v = case.verdict
    pairs = list(itertools.combinations(edges[:IN_PAIRS], 2))
    for (here, *_, first), (there, *_, second) in pairs:
        if case.close(v.truth - first - second):
            return Told("missing term", f"what comes through {here} and {there} is missing")
    if not pairs or v.truth.size < 8:  # two free numbers fit too few by chance
        return None
    off = (v.got - v.truth).ravel()
    any_mistake = _in_every_term(edges)
    for (here, *_, first), (there, *_, second) in pairs:
        pair = np.stack([first.ravel(), second.ravel()])
        k, *_ = np.linalg.lstsq(pair.T, off, rcond=None)
        if case.close(v.truth + (k @ pair).reshape(v.truth.shape)):
            if not _is_plain(1 + k) and _spans(pair, any_mistake):
                continue
            kind = "missing term" if np.min(np.abs(k + 1)) < 1e-3 else "factor of a term"
            one, two = (f"{round(1 + c, 9):.4g} times" for c in k)
            sentence = f"what comes through {here} is {one}, and through {there} {two}"
            return Told(kind, f"{sentence} what it should be")
    return None


def _in_every_term(edges: list[Edge]) -> np.ndarray:
    """What a mistake adds that has another factor at each edge."""
    factors = np.random.default_rng(0).standard_normal(len(edges))
    return factors @ np.stack([edge.part.ravel() for edge in edges])


def _spans(pair: np.ndarray, off: np.ndarray) -> bool:
    """Whether two terms with odd factors give `off` too: then they give any mistake."""
    k, *_ = np.linalg.lstsq(pair.T, off, rcond=None)
    return float(np.max(np.abs(off - k @ pair))) < 1e-6 * float(np.max(np.abs(off)))


def _is_plain(counts: np.ndarray) -> bool:
    """Whether one number is fitted, or none: one factor for both, or one taken for the other."""
    low, high = sorted(counts)
    return abs(high - low) < 1e-3 or abs(low) + abs(high - 2) < 1e-3


def _edges(case: Case) -> list[Edge]:
    return case.tools.kept("edges", case, lambda: _found(case))


def _found(case: Case) -> list[Edge]:
    """Every edge that the gradient comes through, those that others repeat left out.

    Of a scan, the edge in every turn at once comes before each on its own.
    """
    found: list[tuple[str, str, bool]] = []  # of every edge what `Edge` has of it
    same: dict[tuple[int, int], list[int]] = {}  # the edge in every turn
    given: list[Any] = []

    def run(scales: Any, inputs: list[Any]) -> list[Any]:
        """With the gradient at edge i multiplied by `scales[0][i]`; without, they are named."""
        count = itertools.count()
        given[:] = [inputs[case.place]]

        def visit(eqn: Any, ran: graph.Run, inputs: list[Any], run: Any) -> list[Any]:
            changed = list(inputs)
            for i, value in () if graph.is_whole(eqn) else graph.operands(inputs):
                n = next(count)
                if scales is None:
                    found.append((graph.described(eqn), eqn.primitive.name, value is given[0]))
                    same.setdefault((ran.equation, i), []).append(n)
                else:
                    kept = lax.stop_gradient(value)
                    if eqn.primitive.name in _EXTREMES:  # it may start from minus infinity
                        value = jnp.where(jnp.isfinite(kept), value, 0)
                    moving = value - lax.stop_gradient(value)
                    changed[i] = kept + scales[0][n] * moving
            return run(changed)

        return graph.walked(case, inputs, visit)

    try:
        with jax.enable_x64(True):
            inputs = [jnp.asarray(v) for v in case.samples[0].inputs]
            jax.eval_shape(lambda *inputs: run(None, list(inputs)), *inputs)
        groups = [turns for turns in same.values() if len(turns) > 1]
        groups += [[i] for i in range(len(found))]
        if len(groups) > EDGES or not graph.variants_affordable(case, len(groups)):
            return []
        scales = np.ones((1 + len(groups), len(found)))
        for row, edges in zip(scales[1:], groups, strict=True):
            row[edges] = 0
        shifts = [i for i, (_, primitive, _) in enumerate(found) if primitive in _EXTREMES]
        still = np.array(scales)
        still[:, shifts] = 0
        variants = np.concatenate([scales, still]) if shifts else scales
        parts = _parts(case, graph.gradients(case, "edges", run, variants), len(scales))
    except Exception:  # a part of the forward pass that cannot be run so: no story of its parts
        return []
    several = zip(itertools.cycle(groups), parts, strict=False)
    edges = [Edge(*found[edges[0]], part) for edges, part in several]
    return list(_distinct(edges, case.verdict.size))


# A softmax takes its maximum off: what comes through it is nothing in all, so rules leave it out.
_EXTREMES = ("reduce_max", "reduce_min", "scatter-max", "scatter-min")


def _parts(case: Case, gradients: np.ndarray, n: int) -> list[np.ndarray]:
    """What each edge adds; where extremes add nothing, also beside gradients that hold them still.

    Args:
      gradients: with all edges, and without each; then, if there are any, the same with the
        extremes held still.
      n: how many of the gradients are the first.
    """
    whole, *without = gradients[:n]
    parts = [whole - w for w in without]
    if len(gradients) > n and np.allclose(gradients[n], whole, atol=1e-9 * case.verdict.size):
        parts += [whole - w for w in gradients[n + 1 :]]
    return parts


def _distinct(edges: Iterable[Edge], size: float) -> Iterator[Edge]:
    seen: list[np.ndarray] = []
    for edge in edges:
        part = edge.part
        if not np.isfinite(part).all() or not np.any(np.abs(part) > 1e-9 * size):
            continue
        if any(np.allclose(part, other, rtol=1e-7, atol=1e-10 * size) for other in seen):
            continue
        seen.append(part)
        yield edge
