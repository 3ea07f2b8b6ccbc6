"""Every call of every layer of one gradient, with what went forward and what came back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from funprop.explaining.stats import Stats, stats, stats_of
from funprop.formula import Formula
from funprop.gradients import Gradient, backprop
from funprop.inspect.saturated import passes_little
from funprop.inspect.visits import Trail
from funprop.layer import Layer
from funprop.nonfinite.watch import Seen, watched_run
from funprop.params.selection import by_name

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Call(NamedTuple):
    """One call of one layer, forward and backward.

    Attributes:
      path: where in the model, with the copy: `blocks[2]/attention/norm`.
      layer: which.
      trail: from the root, `(child, which call)`.
      formula: what the layer computes; `None` where its author has not said.
      x, y: what went forward.
      dy, dx: what came back, of the sum over the batch; `None` where there is none.
      gradients: of the layer's own params in this call, by the name of each leaf.
      flows: of a node: how its parts hang together (see `_flows`).
      dead: the share of units that are 0 for all examples, though their inputs are not.
      flat: of an elementwise layer, the share of numbers that pass on less than 2% of their
        cotangent, and are not cut off at 0.
      examples: how many rows `dead` was told from.
    """

    path: str
    layer: Layer
    trail: Trail
    formula: Formula | None
    x: Stats | None
    y: Stats | None
    dy: Stats | None
    dx: Stats | None
    gradients: dict[str, Stats]
    flows: str
    dead: float
    flat: float
    examples: int

    @property
    def whole(self) -> bool:
        """Whether nothing is seen inside: a leaf of the model."""
        return not self.flows


def calls_of(
    objective: Layer, params: PyTree, batch: PyTree, key: Any
) -> tuple[Gradient, tuple[Call, ...]]:
    """The gradient, run layer by layer, and every call, in the order in which they began."""
    forward: dict[Trail, tuple[Seen, Any, Any]] = {}
    backward: dict[Trail, tuple[Any, Any, Any]] = {}

    def noted(seen: Seen, params: Any, given: Any, gives: Any, gradients: Any) -> None:
        if seen.during == "forward":
            forward[seen.trail] = seen, given, gives
        else:
            backward[seen.trail] = given, gives, gradients

    gradient, _ = watched_run(backprop(objective), objective, params, batch, key, None, noted=noted)
    inside: dict[Trail, list[Trail]] = {trail: [] for trail in forward}
    for trail in sorted(forward):
        if trail[:-1] in inside:
            inside[trail[:-1]].append(trail)
    calls = []
    for trail in sorted(forward):
        seen, x, y = forward[trail]
        dy, dx, dparams = backward.get(trail, (None, None, None))
        parts = [forward[part][1:] for part in inside[trail]]
        leaves = {} if parts else by_name(dparams)
        names = {name or "params": stats(leaf) for name, leaf in leaves.items()}
        formula = seen.layer.formula
        alike = formula is not None and formula.elementwise and not parts
        dead, flat, rows = _units(x, y, dy, dx) if alike else (0.0, 0.0, 0)
        told = (stats_of(x), stats_of(y), stats_of(dy), stats_of(dx))
        own = (names, _flows(seen.layer, x, y, parts), dead, flat, rows)
        calls.append(Call(seen.path, seen.layer, trail, formula, *told, *own))
    return gradient, tuple(calls)


def _flows(layer: Layer, x: Any, y: Any, parts: list[tuple[Any, Any]]) -> str:
    """How the parts of a node hang together, by which arrays are the same: `chain`; `branches`, all
    of the same input; `skip`, one whose input is added to its output; `copies`, one after the
    other; `shared`; or `around`, anything else. Nothing of a layer without parts."""
    if not parts:
        return ""
    if layer.copies is not None:
        return "copies"
    if layer.shares:
        return "shared"
    if len(parts) > 1:
        return "branches" if all(_same(given, x) for given, _ in parts) else "chain"
    if _same(parts[0][1], y):
        return "chain"
    alike = [getattr(leaf, "shape", None) for leaf in jax.tree.leaves((x, y))]
    return "skip" if len(alike) == 2 and alike[0] == alike[1] else "around"


def _same(a: Any, b: Any) -> bool:
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(one is other for one, other in zip(a, b, strict=True))


def _units(x: Any, y: Any, dy: Any, dx: Any) -> tuple[float, float, int]:
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    if x.ndim < 2 or x.shape != y.shape:
        return 0.0, 0.0, 0
    axes = tuple(range(x.ndim - 1))
    silent = (y == 0).all(axes) & (x != 0).any(axes)
    flat = 0.0
    if dx is not None and dy is not None:
        dx, dy = np.asarray(dx, np.float64), np.asarray(dy, np.float64)
        little, counts = passes_little(y, dy, dx)
        flat = float(little.sum() / counts.sum()) if counts.any() else 0.0
    return float(silent.mean()), flat, int(np.prod(x.shape[:-1]))
