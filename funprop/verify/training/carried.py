"""What goes on from update to update: counts advance, moments are carried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float
from funprop.verify.training.case import UPDATES, Case, NotAsked
from funprop.verify.training.layout import same_bits, wide
from funprop.verify.training.moving import moved_at, names_of
from funprop.verify.training.report import StepCheck

COUNTS = ("count", "step", "iteration", "iterations", "global_step", "step_count", "num_steps")
KEPT = ("last", "prev", "grad", "update")  # what is stored to be looked at, and not gone on with


def carried(case: Case) -> Iterator[StepCheck]:
    """Counts go on, moments are filled, and what they hold is gone on with."""
    if not any(moved_at(case, i) for i in case.layout.trained):
        raise NotAsked("no param moves")
    said = [*_counts(case), *_empty(case)]
    yield from said or _without_influence(case)


def _counts(case: Case) -> Iterator[StepCheck]:
    for i, path in enumerate(case.layout.paths):
        name = path.rpartition("/")[2].lower()
        leaf = case.path[0][i]
        if name not in COUNTS or np.shape(leaf) or is_float(leaf):
            continue
        values = [int(arrays[i]) for arrays in case.path]
        if len(set(values[1:])) == 1:
            what = "is not advanced" if values[0] == values[1] else "starts again at each update"
            yield StepCheck(
                "carried",
                f"{path} is {values[-1]} after {UPDATES} updates, and {values[1]} after one: the "
                f"count {what}, and with it schedules and bias corrections",
                leaf=path,
            )


def _empty(case: Case) -> Iterator[StepCheck]:
    for i in case.layout.moments(case.path[0]):
        param = _param_of(case, i)
        if param is None or not moved_at(case, param):
            continue
        if all(not np.any(wide(arrays[i])) for arrays in case.path):
            said = f"{case.layout.paths[i]} stays zero: the new optimizer state is not carried"
            yield StepCheck("carried", said, leaf=case.layout.paths[i])


def _param_of(case: Case, i: int) -> int | None:
    """The param that a moment belongs to: of the same shape, of the longest like end of path."""
    mine = case.layout.paths[i].split("/")
    best: dict[int, int] = {}
    for p in case.layout.trained:
        if np.shape(case.here[p]) == np.shape(case.here[i]):
            ends = zip(reversed(mine), reversed(case.layout.paths[p].split("/")), strict=False)
            alike = [a == b for a, b in ends]
            best[p] = alike.index(False) if False in alike else len(alike)
    top = max(best.values(), default=0)
    chosen = [p for p, length in best.items() if length == top]
    return chosen[0] if len(chosen) == 1 and top else None


def _without_influence(case: Case) -> Iterator[StepCheck]:
    """A moment that nothing of the next state depends on is reset, or left behind."""
    moments = [
        i
        for i in case.layout.moments(case.here)
        if np.any(wide(case.here[i])) and not _kept_only(case.layout.paths[i])
    ]
    silent = set(moments)
    for arrays in case.path[1:5]:
        if not silent:
            return
        base = case.run(case.examples.batch, arrays)
        other = case.run(case.examples.batch, _larger(arrays, sorted(silent)))
        silent = {i for i in silent if same_bits(base.arrays[i], other.arrays[i])}
        for i in sorted(silent):
            one = case.run(case.examples.batch, _larger(arrays, [i]))
            if not all(map(same_bits, one.arrays, base.arrays)):
                silent.discard(i)
    if silent:
        path = case.layout.paths[min(silent)]
        said = (
            f"the next state does not depend on {names_of(case, sorted(silent))}: it is reset at "
            "each update, not carried"
        )
        yield StepCheck("carried", said, leaf=path)


def _kept_only(path: str) -> bool:
    return any(word in part.lower() for part in path.split("/") for word in KEPT)


def _larger(arrays: Sequence[Any], places: Sequence[int]) -> list[Any]:
    new = list(arrays)
    for i in places:
        new[i] = (jnp.asarray(new[i]) * 1.5).astype(new[i].dtype)
    return new
