"""Stories of the numbers themselves: a factor, a sign, zero, NaN, another leaf's, lost digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from funprop.verify.stories.case import BLOCK, Case, Places, Told
from funprop.verify.truth.evaluate import NotWideError


def not_finite(case: Case) -> Told | None:
    """NaN or infinity where the derivative is finite."""
    v = case.verdict.at_first(case.own or len(case.samples))
    bad = ~np.isfinite(v.got)
    if not bad.any() or not np.any(bad := bad & v.wrong):
        return None
    sample, *place = (int(i) for i in np.argwhere(bad)[0])
    value = v.got[(sample, *place)]
    leaf = case.samples[sample].inputs[case.place]
    at = f", where {case.short} is {leaf[tuple(place)]:.4g}" if np.ndim(leaf) else ""
    return Told("NaN", f"{value} at {place}{at}")


def zero(case: Case) -> Told | None:
    """Nothing arrives."""
    return Told("zero", "zero, and should not be") if not np.any(case.verdict.got) else None


def ignores_cotangent(case: Case) -> Told | None:
    """The same gradient whatever the cotangent."""
    units = np.array([s.unit for s in case.samples])
    same = [i for i, s in enumerate(case.samples) if s.inputs is case.samples[0].inputs]
    if len(same) < 2 or not case.tools.subject.free_cotangent:
        return None
    raw = case.verdict.got * units.reshape(-1, *[1] * (case.verdict.got.ndim - 1))
    first, *rest = (raw[i] for i in same)
    if all(np.allclose(first, other, rtol=1e-4, atol=0) for other in rest):
        return Told("ignores the cotangent", "the same whatever the cotangent")
    return None


NOT_LINEAR = Told("not linear", "not linear in the cotangent")


def nonlinear(case: Case) -> Told | None:
    """Not linear in the cotangent: clipped, squared, normalised."""
    if not case.tools.subject.free_cotangent:
        return None
    sample = case.samples[0]
    try:
        once = case.tools.exact(sample)[case.leaf]
        twice = case.tools.exact(sample._replace(dys=[2 * d for d in sample.dys]))[case.leaf]
        large = case.tools.exact(sample._replace(dys=[-1e3 * d for d in sample.dys]))[case.leaf]
    except NotWideError:
        return None
    size = np.max(np.abs(twice), initial=0)
    if np.allclose(twice, 2 * once, rtol=1e-4, atol=1e-6 * size) and np.allclose(
        large, -1e3 * once, rtol=1e-4, atol=1e-3 * size
    ):
        return None
    return NOT_LINEAR


def factor(case: Case) -> Told | None:
    """Off by a factor: a number, or one of the inputs."""
    v = case.verdict
    got, truth = v.got.ravel(), v.truth.ravel()
    known = np.isfinite(truth) & np.isfinite(got)
    if not known.all():
        got, truth = got[known], truth[known]
    norm = _dot(truth, truth)
    if not norm:
        return None
    c = _dot(got, truth) / norm
    if abs(c) > 1e-9 and abs(c - 1) > 1e-4 and case.fits(lambda at: c * v.truth[at]):
        if abs(c + 1) < 1e-4:
            return Told("sign", "the sign is turned")
        name = _named(c, case)
        return Told("factor", f"{'-' if c < 0 else ''}{name} times what it should be")
    return _by_an_input(case)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product in float64; of large arrays a part at a time, which needs no memory."""
    parts = (slice(i, i + BLOCK) for i in range(0, a.size, BLOCK))
    return sum(float(np.sum(a[part] * b[part], dtype=np.float64)) for part in parts)


def _named(c: float, case: Case) -> str:
    """`64 (the size of an axis)` for a factor that has a meaning here."""
    size = abs(c)
    for name, value in (("2", 2.0), ("1/2", 0.5)):
        if math.isclose(size, value, rel_tol=1e-4):
            return name
    specs = [*case.tools.outputs, *case.tools.subject.args]
    counts: dict[int, str] = {}
    for spec in specs:
        for axis, n in enumerate(spec.shape):
            counts.setdefault(n, f"the size of axis {axis} of {list(spec.shape)}")
        counts.setdefault(math.prod(spec.shape), f"the size of {list(spec.shape)}")
    for n, meaning in counts.items():
        if n < 2:
            continue
        for name, value in (
            (f"{n}", float(n)),
            (f"1/{n}", 1 / n),
            (f"sqrt({n})", math.sqrt(n)),
            (f"1/sqrt({n})", 1 / math.sqrt(n)),
        ):
            if math.isclose(size, value, rel_tol=1e-4):
                hint = {f"{n}": ", a sum for a mean", f"1/{n}": ", a mean for a sum"}
                return f"{name} ({n} is {meaning}{hint.get(name, '')})"
    return f"{size:.6g}"


def _by_an_input(case: Case) -> Told | None:
    for name, arrays in _arguments(case):
        for power, words in ((1, "multiplied by"), (-1, "divided by")):
            if _fits(case, arrays, power):
                return Told("factor", f"{words} {name} once too often")
    return None


def _fits(case: Case, arrays: list[Any], power: int) -> bool:
    truth = case.verdict.truth
    try:
        parts = [np.broadcast_to(np.asarray(a), truth.shape[1:]) for a in arrays]

        def scales(at: Places) -> np.ndarray:
            return np.stack([np.asarray(p[at[1:]], np.float64) ** power for p in parts])

        fits = case.fits(lambda at: scales(at) * truth[at])
        return fits and bool(np.isfinite(scales(())).all() and np.ptp(scales(())))
    except (ValueError, TypeError, ZeroDivisionError):
        return False


def _arguments(case: Case) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Inputs, then outputs, of every sample."""
    for i in range(len(case.tools.subject.paths)):
        yield case.tools.subject.called(i), [s.inputs[i] for s in case.samples]
    for n in range(len(case.tools.dys)):
        yield "the output", [case.tools.output(s)[n] for s in case.samples]


def swapped(case: Case) -> Told | None:
    """The gradient of another input."""
    for i, other in enumerate(case.truths):
        if i != case.leaf and case.close(other):
            return Told("swapped", f"it is the gradient of {case.tools.subject.leaf(i)}")
    return None


def precision(case: Case) -> Told | None:
    """Right in exact arithmetic: digits are lost on the way."""
    v = case.verdict
    if v.exact or not case.mathematics:
        return None
    lost = v.relative(v.error)
    name = ", as in 16 bits" if lost > 1e-4 else ", as in float32" if lost > 1e-10 else ""
    return Told(
        "precision",
        f"right in exact arithmetic, but {lost:.1g} off as it runs: digits are lost{name}",
    )
