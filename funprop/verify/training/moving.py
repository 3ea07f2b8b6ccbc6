"""Params move, frozen ones do not, and all keep their shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from funprop.verify.training.case import UPDATES, Case, NotAsked
from funprop.verify.training.layout import same_bits, wide
from funprop.verify.training.report import StepCheck


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
    still = [i for i in case.layout.trained if not moved_at(case, i)]
    if not still:
        return
    names = names_of(case, still)
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
    moved = [i for i in case.layout.frozen if moved_at(case, i)]
    if not moved:
        return
    shrinks = all(_shrinks(case, i) for i in moved)
    cause = "shrinks, as weight decay does" if shrinks else "moves"
    said = f"{names_of(case, moved)} is frozen and {cause}"
    yield StepCheck("frozen", said, leaf=case.layout.paths[moved[0]])


def _shrinks(case: Case, i: int) -> bool:
    """Whether every update takes the same share of every element."""
    old, new = wide(case.path[0][i]), wide(case.path[1][i])
    there = np.abs(old) > 0
    if not there.any():
        return False
    share = new[there] / old[there]
    return bool((share < 1).all() and np.ptp(share) < 1e-3 * (1 - share.mean()) + 1e-5)


def moved_at(case: Case, i: int) -> bool:
    return any(not same_bits(case.path[0][i], arrays[i]) for arrays in case.path[1:])


def names_of(case: Case, places: Sequence[int]) -> str:
    names = [case.layout.paths[i] for i in places]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
