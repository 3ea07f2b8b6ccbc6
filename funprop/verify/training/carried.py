"""What goes on from update to update: params move, frozen ones do not, moments are carried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float
from funprop.verify.training.case import UPDATES, Case, NotAsked
from funprop.verify.training.layout import same_bits, wide
from funprop.verify.training.report import StepCheck, percent

COUNTS = ("count", "step", "iteration", "iterations", "global_step", "step_count", "num_steps")
KEPT = ("last", "prev", "grad", "update")  # what is stored to be looked at, and not gone on with


def state(case: Case) -> Iterator[StepCheck]:
    """The new state is of the dtypes and shapes of the old one."""
    old, new = case.path[:2]
    for path, a, b in zip(case.layout.paths, old, new, strict=True):
        if (np.shape(a), a.dtype) != (np.shape(b), getattr(b, "dtype", None)):
            was, now = (f"{x.dtype}{list(np.shape(x))}" for x in (a, jnp.asarray(b)))
            said = f"{path} comes back as {now} and was {was}: each such change compiles anew"
            yield StepCheck("state", said, leaf=path)


def moves(case: Case) -> Iterator[StepCheck]:
    """Every param that is trained moves."""
    still = [i for i in case.layout.trained if not _moved(case, i)]
    if not still:
        return
    names = _names(case, still)
    if len(still) == len(case.layout.trained):
        said = f"no param moved in {UPDATES} updates: the old params come back"
    else:
        verb = "does not move" if len(still) == 1 else "do not move"
        said = (
            f"{names} {verb} in {UPDATES} updates: no gradient reaches it, or its update is lost "
            "(say frozen= if that is meant)"
        )
    yield StepCheck("moves", said, leaf=case.layout.paths[still[0]])


def frozen(case: Case) -> Iterator[StepCheck]:
    """Frozen params stay as they are, to the bit."""
    if not case.layout.frozen:
        raise NotAsked("say which params must not move: frozen=")
    moved = [i for i in case.layout.frozen if _moved(case, i)]
    if not moved:
        return
    shrinks = all(_shrinks(case, i) for i in moved)
    cause = "shrinks, as weight decay does" if shrinks else "moves"
    said = f"{_names(case, moved)} is frozen and {cause}"
    yield StepCheck("frozen", said, leaf=case.layout.paths[moved[0]])


def _shrinks(case: Case, i: int) -> bool:
    """Whether every update takes the same share of every element."""
    old, new = wide(case.path[0][i]), wide(case.path[1][i])
    there = np.abs(old) > 0
    if not there.any():
        return False
    share = new[there] / old[there]
    return bool((share < 1).all() and np.ptp(share) < 1e-3 * (1 - share.mean()) + 1e-5)


def carried(case: Case) -> Iterator[StepCheck]:
    """Counts go on, moments are filled, and what they hold is gone on with."""
    if not any(_moved(case, i) for i in case.layout.trained):
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
        if param is None or not _moved(case, param):
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
            f"the next state does not depend on {_names(case, sorted(silent))}: it is reset at "
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


def average(case: Case) -> Iterator[StepCheck]:
    """An average of params lies between the params that it averages."""
    get = case.said["average"]
    if get is None:
        raise NotAsked("say where the average of the params is: average=, state -> params")
    made = jax.tree.leaves(get(case.layout.state(case.path[-1])))
    made = [leaf for leaf in made if hasattr(leaf, "dtype") and is_float(leaf)]
    params = list(case.layout.params)
    if len(made) != len(params):
        params = list(case.layout.trained)
    if len(made) != len(params):
        raise NotAsked(f"average= gives {len(made)} leaves, there are {len(params)} params")
    for i, leaf in zip(params, made, strict=True):
        seen = np.stack([wide(arrays[i]) for arrays in case.path])
        low, high, value = seen.min(0), seen.max(0), wide(leaf)
        eps = max(float(jnp.finfo(x.dtype).eps) for x in (leaf, case.here[i]))
        slack = 16 * eps * np.abs(seen).max(0)
        out = np.maximum(low - slack - value, value - high - slack)
        if (out > 0).any():
            k = np.unravel_index(np.argmax(out), out.shape)
            share = float(value[k] / seen[-1][k]) if seen[-1][k] else 0.0
            near = 0 < share < 1 and np.abs(value).sum() < np.abs(low + high).sum() / 2
            cause = (
                f", at {percent(share)} of them: it started at zero and is not corrected for that"
                if near
                else ""
            )
            said = f"the average of {case.layout.paths[i]} lies outside of all that it averages"
            yield StepCheck("average", said + cause, leaf=case.layout.paths[i])
            return


def precision(case: Case) -> Iterator[StepCheck]:
    """Params in a narrow dtype do not swallow their updates."""
    narrow = [i for i in case.layout.trained if jnp.finfo(case.here[i].dtype).bits < 32]
    if not narrow:
        raise NotAsked("no param is narrower than float32")
    arrays = [a.astype(jnp.float32) if i in narrow else a for i, a in enumerate(case.here)]
    try:
        free = case.steps.fresh().quiet(arrays, case.examples.batch)
    except Exception as error:  # whatever a step of somebody raises
        reason = str(error).strip().split("\n")[0][:80]
        raise NotAsked(f"the step does not take params in float32: {reason}") from None
    new = case.run(case.examples.batch)
    for i in narrow:
        want = wide(free.arrays[i]) - wide(case.here[i])
        got = wide(new.arrays[i]) - wide(case.here[i])
        small = np.abs(want) < float(jnp.finfo(case.here[i].dtype).eps) / 4 * np.abs(
            wide(case.here[i])
        )
        lost = (want != 0) & (got == 0) & small
        if np.mean(lost) > 0.5:
            yield StepCheck(
                "precision",
                f"{percent(float(np.mean(lost)))} of {case.layout.paths[i]} does not change: "
                f"updates are below half a unit in the last place of {case.here[i].dtype}; keep "
                "params in float32, or round at random",
                leaf=case.layout.paths[i],
            )
            return


def _moved(case: Case, i: int) -> bool:
    return any(not same_bits(case.path[0][i], arrays[i]) for arrays in case.path[1:])


def _names(case: Case, places: Sequence[int]) -> str:
    names = [case.layout.paths[i] for i in places]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
