"""Stories of places: a factor of its own at each along an axis, or right numbers in other places.

Factors and places are read off where the gradient was found wrong, and must be those at the other
inputs too: so they are not told where they depend on values.
"""

from __future__ import annotations

import numpy as np

from funprop.verify.stories.case import Case, Told
from funprop.verify.stories.regions import listed

PLAIN = 1e-4  # as near to a whole number a factor is that number


def zero_by_place(case: Case) -> Told | None:
    """Zero at some places along an axis, and right at the others."""
    return _by_place(case, zeros=True)


def factor_by_place(case: Case) -> Told | None:
    """Another factor at each place along an axis."""
    return _by_place(case, zeros=False)


def _by_place(case: Case, zeros: bool) -> Told | None:
    v = case.verdict
    for axis in range(1, v.truth.ndim):
        if case.own is None or v.truth.shape[axis] < 2:
            continue
        found = factors(v.got[: case.own], v.truth[: case.own], axis)
        if zeros and not np.isin(found, (0.0, 1.0)).all():
            continue
        shape = [1] * v.truth.ndim
        shape[axis] = -1
        if np.ptp(found) and _varies(v.truth) and case.close(v.truth * found.reshape(shape)):
            return Told(*in_words(found, axis - 1, "it", "region"))
    return None


def _varies(truth: np.ndarray) -> bool:
    """Whether it is another at other samples, and not by one number: of one and the same any other
    gradient is so many times each place's."""
    flat = truth.reshape(len(truth), -1)
    return bool(np.linalg.matrix_rank(np.nan_to_num(flat), rtol=1e-6) > 1)


def factor_by_inputs(case: Case) -> Told | None:
    """One factor, but another at other inputs."""
    v = case.verdict
    if case.own is None or v.truth[0].size < 4:
        return None
    groups: dict[int, list[int]] = {}
    for i, s in enumerate(case.samples):
        groups.setdefault(id(s.inputs), []).append(i)
    one = np.ones(len(case.samples))
    for alike in groups.values():
        got, truth = v.got[alike].reshape(1, -1), v.truth[alike].reshape(1, -1)
        one[alike] = factors(got, truth, 0)
    off = np.minimum(np.abs(one), np.abs(one - 1))
    if np.any(off < PLAIN) or not case.close(v.truth * one.reshape(-1, *[1] * (v.truth.ndim - 1))):
        return None
    return Told("factor", f"{one[0]:.4g} times what it should be, at other inputs other times")


def factors(got: np.ndarray, truth: np.ndarray, axis: int) -> np.ndarray:
    """The factor at each place along an axis that fits best; one where nothing should come."""
    others = tuple(a for a in range(truth.ndim) if a != axis)
    known = np.isfinite(truth) & np.isfinite(got)
    got, truth = np.where(known, got, 0), np.where(known, truth, 0)
    squares = np.sum(truth * truth, others)
    return plain(np.where(squares > 0, np.sum(got * truth, others) / squares, 1.0))


def plain(numbers: np.ndarray) -> np.ndarray:
    """Numbers of which those that are nearly whole are whole."""
    whole = np.round(numbers)
    return np.where(np.abs(numbers - whole) < PLAIN, whole, numbers) + 0.0  # and no -0


def in_words(factors: np.ndarray, axis: int, what: str, kind: str) -> tuple[str, str]:
    """The kind, which is given if some are zero, and the sentence."""
    off = np.flatnonzero(factors != 1)
    where = f"at {listed(off)} along axis {axis}"
    few = [f"{f:.4g}" for f in factors[off]]
    if set(few) == {"0"}:
        verb = "" if what == "it" else f"{what} is "
        return kind, f"{verb}zero {where}"
    if set(few) == {"-1"}:
        return "sign of a term", f"{where} the sign of {what} is turned"
    numbers = few[0] if len(set(few)) == 1 else ", ".join(few[:6]) + (", ..." * (len(few) > 6))
    times = "times what it should be" if what == "it" else "times as large"
    return (kind if "0" in few else "factor"), f"{where} {what} is {numbers} {times}"


def elsewhere(case: Case) -> Told | None:
    """The right numbers, each in another place."""
    v = case.verdict
    if case.own is None or not 3 < v.truth[0].size <= 4096:
        return None
    flat = v.truth.reshape(len(v.truth), -1)
    order = same_columns(v.got[: case.own].reshape(case.own, -1), flat[: case.own])
    if order is None or not case.close(flat[:, order].reshape(v.truth.shape)):
        return None
    return Told("permuted", f"right numbers in other places: {_first(order, v.truth.shape[1:])}")


def same_columns(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The order in which the columns of `b` are those of `a`; `None` if they are others."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    size = float(np.max(np.abs(b), initial=0)) or 1.0
    sorted_a, sorted_b = (np.lexsort(np.round(m / size, 6)) for m in (a, b))
    if not np.allclose(a[:, sorted_a], b[:, sorted_b], rtol=1e-5, atol=1e-6 * size):
        return None
    order = np.empty(len(sorted_a), int)
    order[sorted_a] = sorted_b
    return order


def _first(order: np.ndarray, shape: tuple[int, ...]) -> str:
    """The first element that is in another place."""
    i = int(np.flatnonzero(order != np.arange(len(order)))[0])
    here, there = ([int(k) for k in np.unravel_index(j, shape)] for j in (i, int(order[i])))
    return f"{here} has that of {there}"
