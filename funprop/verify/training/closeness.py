"""When are two updates the same? When they are as close as rounding leaves them.

Nobody says how exact a step is; it is measured. The same step is run on inputs that are rounded a
little otherwise, by one unit of the narrowest floats that it computes with, and how much each
number of the new state varies by that is what rounding may make of it, within a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from funprop.verify.training.layout import is_key, of_tree, wide
from funprop.verify.training.running import Result, is_real

# Two updates may be this many times as far apart as rounding the inputs moves one ...
FACTOR = 8.0
# ... and this many units in the last place, of the size that the update has there, beside.
UNITS = 16.0
TURNS = 3  # how often inputs are rounded otherwise


class Noise(NamedTuple):
    """How much rounding moves the changes that an update makes.

    Attributes:
      arrays: for each array of the state, elementwise; `None` for what is not floating.
      metrics: by path.
      eps: the rounding unit of the narrowest floats that the step computes with.
    """

    arrays: list[np.ndarray | None]
    metrics: dict[str, float]
    eps: float


class Difference(NamedTuple):
    """Of two results, a leaf that is further apart than rounding explains.

    Attributes:
      path: of the leaf.
      error, allowed: relative to the largest change that an update makes there.
    """

    path: str
    error: float
    allowed: float


def rounded(leaf: Any, eps: float, rng: np.random.Generator) -> Any:
    """The leaf with each number off by a unit, up or down; whole numbers stay, as they may be
    masks, counts or labels."""
    if not is_real(leaf):
        return leaf
    exact = wide(leaf)
    if np.array_equal(exact, np.round(exact)):
        return leaf
    eps = max(eps, float(jnp.finfo(leaf.dtype).eps))
    off = exact * (1 + eps * rng.choice([-1.0, 1.0], exact.shape))
    return jnp.asarray(off).astype(leaf.dtype)


def noise(
    run: Callable[[Sequence[Any], Any], Result],
    arrays: Sequence[Any],
    batch: Any,
    eps: float,
    seed: int = 0,
) -> Noise:
    """How much an update varies where what it is given is rounded otherwise."""
    rng = np.random.default_rng(seed)
    layout = of_tree(batch)
    base = run(arrays, batch)
    moved: list[Any] = [np.zeros(np.shape(a)) if is_real(a) else None for a in arrays]
    metrics = {k: 0.0 for k, v in base.metrics.items() if np.ndim(v) == 0}
    for _ in range(TURNS):
        near = [rounded(leaf, eps, rng) for leaf in arrays]
        leaves = [rounded(leaf, eps, rng) for leaf in layout.arrays(batch)]
        other = run(near, layout.state(leaves))
        for i, most in enumerate(moved):
            if most is not None:
                one = wide(base.arrays[i]) - wide(arrays[i])
                two = wide(other.arrays[i]) - wide(near[i])
                moved[i] = np.fmax(most, np.abs(one - two))
        for name in metrics:
            gap = abs(float(base.metrics[name]) - float(other.metrics[name]))
            metrics[name] = float(np.fmax(metrics[name], gap))
    return Noise(moved, metrics, eps)


def allowance(
    moved: np.ndarray, change: np.ndarray, value: np.ndarray, eps: float, own: float
) -> Any:
    """What is allowed, elementwise: by what rounding moves the element and, on average, its leaf;
    by the size of the change; and by the leaf's own rounding `own` where it is stored."""
    finite = np.nan_to_num(moved, nan=0.0, posinf=0.0)
    typical = float(np.sqrt(np.mean(finite**2))) if moved.size else 0.0
    largest = np.abs(np.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0)).max(initial=0)
    return FACTOR * (moved + typical) + UNITS * eps * largest + 2 * own * np.abs(value)


def differences(
    got: Result,
    want: Result,
    old: Sequence[Any],
    found: Noise,
    paths: Sequence[str],
    places: Iterable[int],
    metrics: bool = True,
) -> list[Difference]:
    """Where two results are further apart than rounding explains, the worst first.

    Args:
      got, want: new states of the same old one.
      old: the old state's arrays.
      found: how much rounding moves them.
      paths: of the arrays.
      places: which arrays are compared; keys never are.
      metrics: whether scalar metrics are.
    """
    wrong = []
    for i in places:
        if is_key(want.arrays[i]) or np.shape(want.arrays[i]) != np.shape(got.arrays[i]):
            continue
        a, b, moved = wide(got.arrays[i]), wide(want.arrays[i]), found.arrays[i]
        change = b - wide(old[i])
        if moved is None:
            allowed, size = np.zeros(b.shape), 1.0
        else:
            own = float(jnp.finfo(got.arrays[i].dtype).eps)
            allowed = allowance(moved, change, b, found.eps, own)
            size = float(np.abs(change[np.isfinite(change)]).max(initial=0))
        wrong += _apart(paths[i], a, b, allowed, size)
    for name, most in found.metrics.items() if metrics else ():
        if name in got.metrics and name in want.metrics:
            a, b = wide(got.metrics[name]), wide(want.metrics[name])
            allowed = FACTOR * most + UNITS * found.eps * np.abs(b)
            wrong += _apart(f"metric {name}", a, b, np.asarray(allowed), float(np.abs(b)))
    return sorted(wrong, key=lambda d: -d.error / (d.allowed or 1e-300))


def _apart(
    path: str, a: np.ndarray, b: np.ndarray, allowed: np.ndarray, size: float
) -> list[Difference]:
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(
            same, 0.0, np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), np.inf)
        )
    if not (error > allowed).any():
        return []
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    size = size or float(np.abs(a).max(initial=0)) or 1.0
    return [Difference(path, float(error[worst]) / size, float(allowed[worst]) / size)]
