"""Stories of the numbers themselves: a factor, a sign, zero, NaN, another leaf's, lost digits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from funprop.verify.stories.case import Case, Told
from funprop.verify.truth.evaluate import NotWideError


def not_finite(case: Case) -> Told | None:
    """NaN or infinity where the derivative is finite."""
    v = case.verdict.at_first(case.own or len(case.samples))
    bad = ~np.isfinite(v.got) & v.wrong
    if not bad.any():
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
    return Told("not linear", "not linear in the cotangent")


def factor(case: Case) -> Told | None:
    """Off by a factor: a number, or one of the inputs."""
    v = case.verdict
    got, truth = v.got.ravel(), v.truth.ravel()
    known = np.isfinite(truth) & np.isfinite(got)
    norm = float(np.sum(truth[known] ** 2))
    if not norm:
        return None
    c = float(np.sum(got[known] * truth[known]) / norm)
    if case.close(c * v.truth) and abs(c) > 1e-9 and abs(c - 1) > 1e-4:
        if abs(c + 1) < 1e-4:
            return Told("sign", "the sign is turned")
        name = _named(c, case)
        return Told("factor", f"{'-' if c < 0 else ''}{name} times what it should be")
    return _by_an_input(case)


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
    v = case.verdict
    for name, arrays in _arguments(case):
        for power, words in ((1, "multiplied by"), (-1, "divided by")):
            try:
                scales = np.stack(
                    [
                        np.broadcast_to(np.asarray(a, np.float64) ** power, t.shape)
                        for a, t in zip(arrays, v.truth, strict=True)
                    ]
                )
            except (ValueError, TypeError, ZeroDivisionError):
                continue
            if np.isfinite(scales).all() and np.ptp(scales) and case.close(scales * v.truth):
                return Told("factor", f"{words} {name} once too often")
    return None


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
