"""Why is a gradient wrong? The likely stories, each tried against the truth.

A story is told only where it fits every element at every sample: with random cotangents and inputs
it hardly does so by chance.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from funprop.verify.case import Case, Told
from funprop.verify.instruments import Sample
from funprop.verify.jaxprs import NotWide
from funprop.verify.terms import stale, term


def told(case: Case) -> Told | None:
    """The first story that fits; `None` where none does."""
    for story in STORIES:
        with np.errstate(all="ignore"):
            if found := story(case):
                return found
    return None


# --------------------------------------------------------------------- of the numbers themselves


def not_finite(case: Case) -> Told | None:
    """NaN or infinity where the derivative is finite."""
    v = case.verdict
    bad = ~np.isfinite(v.got) & v.wrong
    if not bad.any():
        return None
    sample, *place = (int(i) for i in np.argwhere(bad)[0])
    value = v.got[(sample, *place)]
    leaf = case.samples[sample].inputs[case.place]
    at = f", where {_short(case)} is {leaf[tuple(place)]:.4g}" if np.ndim(leaf) else ""
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
        large = case.tools.exact(sample._replace(dys=[1e3 * d for d in sample.dys]))[case.leaf]
    except NotWide:
        return None
    size = np.max(np.abs(twice), initial=0)
    if np.allclose(twice, 2 * once, rtol=1e-4, atol=1e-6 * size) and np.allclose(
        large, 1e3 * once, rtol=1e-4, atol=1e-3 * size
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
    if case.close(c * v.truth) and abs(c) > 1e-9:
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
    for i, path in enumerate(case.tools.subject.paths):
        for power, sentence in ((1, "multiplied by"), (-1, "divided by")):
            try:
                scales = np.stack(
                    [
                        np.broadcast_to(np.asarray(s.inputs[i], np.float64) ** power, v.truth[n].shape)
                        for n, s in enumerate(case.samples)
                    ]
                )
            except (ValueError, TypeError, ZeroDivisionError):
                continue
            if np.isfinite(scales).all() and np.ptp(scales) and case.close(scales * v.truth):
                return Told("factor", f"{sentence} {path or 'an input'} once too often")
    return None


def swapped(case: Case) -> Told | None:
    """The gradient of another input."""
    for i, other in enumerate(case.truths):
        if i != case.leaf and case.close(other):
            return Told("swapped", f"it is the gradient of {case.tools.subject.leaf(i)}")
    return None


def transposed(case: Case) -> Told | None:
    """The right numbers, transposed or in another order of axes."""
    truth = case.verdict.truth
    axes = range(1, truth.ndim)
    for order in itertools.permutations(axes):
        if order == tuple(axes) or truth.ndim > 5:
            continue
        moved = np.transpose(truth, (0, *order))
        if case.close(moved.reshape(truth.shape)):
            return Told("transposed", "transposed")
    for axis in axes:
        if case.close(np.flip(truth, axis)):
            return Told("reversed", f"reversed along axis {axis - 1}")
    return None


def shifted(case: Case) -> Told | None:
    """The right numbers, one place off along an axis; or made from cotangents that are."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        for step in (1, -1):
            if any(case.close(moved) for moved in _rolls(truth, step, axis)):
                return Told("shifted", f"shifted by one along axis {axis - 1}")
    return None


def _rolls(array: np.ndarray, step: int, axis: int) -> Iterator[np.ndarray]:
    rolled = np.roll(array, step, axis)
    yield rolled
    filled = np.array(rolled)
    edge = [slice(None)] * array.ndim
    edge[axis] = slice(0, 1) if step > 0 else slice(-1, None)
    filled[tuple(edge)] = 0
    yield filled


def reduced(case: Case) -> Told | None:
    """Summed or averaged along an axis of its own."""
    truth = case.verdict.truth
    for axis in range(1, truth.ndim):
        for name, value in (
            ("summed", np.sum(truth, axis, keepdims=True)),
            ("averaged", np.mean(truth, axis, keepdims=True)),
        ):
            if truth.shape[axis] > 1 and case.close(np.broadcast_to(value, truth.shape)):
                return Told("wrong axis", f"{name} over axis {axis - 1}, which it should keep")
    return None


def precision(case: Case) -> Told | None:
    """Right in exact arithmetic: digits are lost on the way."""
    v = case.verdict
    if v.exact or not case.mathematics:
        return None
    lost = v.relative(v.error)
    name = "bfloat16" if lost > 1e-4 else "float32" if lost > 1e-10 else "the working precision"
    return Told(
        "precision", f"right in exact arithmetic, but {lost:.1g} off as it runs: digits are lost"
        + (f", as by computing in {name}" if name != "the working precision" else "")
    )


# ---------------------------------------------------------------------------- of certain elements


def region(case: Case) -> Told | None:
    """Wrong at certain elements, right at the others."""
    v = case.verdict
    known = np.isfinite(v.truth)
    matters = known & (np.abs(v.truth) + np.abs(np.nan_to_num(v.got)) > 1e-3 * v.size)
    wrong = v.wrong & matters
    if not wrong.any() or (wrong == matters).all():
        return None
    best: tuple[float, str] = (0.0, "")
    for name, where in _regions(case):
        where = where & matters
        if not where.any() or (wrong & ~where).any() or (where == matters).all():
            continue
        share = float(wrong.sum() / where.sum())
        if share > best[0] + 1e-9:
            best = (share, name)
    return Told("region", f"wrong only {best[1]}") if best[0] > 0.6 else None


def _regions(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    v = case.verdict
    shape = v.truth.shape
    for axis in range(1, len(shape)):
        index = np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1))
        n = shape[axis] - 1
        if n:
            yield f"at the last place along axis {axis - 1}", np.broadcast_to(index == n, shape)
            yield f"at the first place along axis {axis - 1}", np.broadcast_to(index == 0, shape)
            ends = (index == 0) | (index == n)
            yield f"at the borders along axis {axis - 1}", np.broadcast_to(ends, shape)
    values = _stack([s.inputs[case.place] for s in case.samples], shape)
    if values is not None:
        name = _short(case)
        yield from _by_value(name, values)
    for i, path in enumerate(case.tools.subject.paths):
        if i == case.place:
            continue
        other = _stack([s.inputs[i] for s in case.samples], shape)
        if other is None:
            continue
        whole = not np.issubdtype(np.asarray(case.samples[0].inputs[i]).dtype, np.floating)
        if whole or len(np.unique(other)) <= 2:
            for value in np.unique(other)[:8]:
                yield f"where {path} is {value:g}", other == value
        else:
            yield from _by_value(path, other)
    for i, y in enumerate(zip(*(case.tools.output(s) for s in case.samples), strict=True)):
        output = _stack(list(y), shape)
        if output is not None:
            yield from _by_value(f"output {i}" if len(case.tools.dys) > 1 else "the output", output)
    if len(shape) >= 3 and shape[-1] == shape[-2]:
        lower = np.tril(np.ones(shape[-2:], bool))
        for name, where in (
            ("on the diagonal", np.eye(shape[-1], dtype=bool)),
            ("above the diagonal", ~lower),
            ("below the diagonal", np.tril(lower, -1)),
        ):
            yield name, np.broadcast_to(where, shape)
    for i, rows in _repeated(case):
        if rows.shape[1] == shape[1]:
            where = np.broadcast_to(rows.reshape(*rows.shape, *[1] * (len(shape) - 2)), shape)
            yield f"at rows that {case.tools.subject.paths[i]} names more than once", where


def _by_value(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield f"where {name} is 0", values == 0
    yield f"where {name} is negative", values < 0
    yield f"where {name} is positive", values > 0
    for bound in (0.5, 1.0, 2.0, 3.0, 6.0):
        yield f"where {name} is below {-bound:g} or above {bound:g}", np.abs(values) > bound
        yield f"where {name} is between {-bound:g} and {bound:g}", np.abs(values) < bound
        yield f"where {name} is above {bound:g}", values > bound
        yield f"where {name} is below {-bound:g}", values < -bound


def _stack(values: list[Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """Values of every sample over the elements of the leaf, leading axes first."""
    try:
        arrays = [np.asarray(v).astype(np.float64) for v in values]
    except (TypeError, ValueError):
        return None
    own = arrays[0].shape
    if not own or own != shape[1 : 1 + len(own)]:
        return None
    return np.stack(
        [np.broadcast_to(a.reshape(*own, *[1] * (len(shape) - 1 - len(own))), shape[1:]) for a in arrays]
    )


def _repeated(case: Case) -> Iterator[tuple[int, np.ndarray]]:
    """For each integer input, which rows of the leaf it names more than once."""
    rows = case.verdict.truth.shape[1] if case.verdict.truth.ndim > 1 else 0
    for i, leaf in enumerate(case.samples[0].inputs):
        if not isinstance(leaf, np.ndarray) or not np.issubdtype(leaf.dtype, np.integer) or not leaf.size:
            continue
        if rows and 0 <= leaf.min() and leaf.max() < rows:
            counts = [np.bincount(s.inputs[i].ravel(), minlength=rows) for s in case.samples]
            yield i, np.stack(counts) > 1


def overwritten(case: Case) -> Told | None:
    """Of several contributions to a row only one is kept."""
    for i, _ in _repeated(case):
        for name, reverse in (("last", True), ("first", False)):
            samples = []
            for s in case.samples:
                index = s.inputs[i]
                flat = index.ravel()[::-1] if reverse else index.ravel()
                kept = np.zeros(flat.size, bool)
                kept[np.unique(flat, return_index=True)[1]] = True
                kept = (kept[::-1] if reverse else kept).reshape(index.shape)
                dys = [
                    d * kept.reshape(*kept.shape, *[1] * (d.ndim - kept.ndim))
                    if d.shape[: kept.ndim] == kept.shape
                    else d
                    for d in s.dys
                ]
                samples.append(s._replace(dys=dys))
            truth = case.truth_at(samples)
            if truth is not None and case.close(truth):
                path = case.tools.subject.paths[i]
                return Told(
                    "overwritten",
                    f"of the contributions to a row that {path} names more than once only the "
                    f"{name} is kept",
                )
    return None


# ------------------------------------------------------------------------------- of another point


def at_other_inputs(case: Case) -> Told | None:
    """The gradient at another point: an input or the cotangent transposed, shifted or replaced."""
    subject = case.tools.subject
    for i, change, name, kind in _changes(case):
        samples = [s._replace(inputs=_put(s.inputs, i, change(s.inputs[i]))) for s in case.samples]
        truth = case.truth_at(samples)
        if truth is not None and case.close(truth):
            return Told(kind, f"it is the gradient with {subject.paths[i] or 'an input'} {name}")
    for i, spec in enumerate(case.tools.dys):
        for axis in range(len(spec.shape)):
            for step in (1, -1):
                moved = _moved_dys(case, i, functools.partial(_rolled, step=step, axis=axis))
                if any(truth is not None and case.close(truth) for truth in moved):
                    return Told("shifted", f"the cotangent is shifted by one along axis {axis}")
        for order in itertools.permutations(range(len(spec.shape))):
            permuted = tuple(spec.shape[a] for a in order)
            if permuted != spec.shape or list(order) == sorted(order) or len(order) > 4:
                continue
            for truth in _moved_dys(case, i, lambda d, order=order: [np.transpose(d, order)]):
                if truth is not None and case.close(truth):
                    return Told("wrong axis", "the cotangent is used transposed, or summed over the wrong axis")
    return None


def _changes(case: Case) -> Iterator[tuple[int, Callable[[Any], Any], str, str]]:
    leaves = case.samples[0].inputs
    outputs = case.tools.output(case.samples[0])
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, np.ndarray) or not np.issubdtype(leaf.dtype, np.floating):
            continue
        if leaf.ndim >= 2 and leaf.shape[-1] == leaf.shape[-2] > 1:
            yield i, lambda v: np.swapaxes(v, -1, -2), "transposed", "transposed"
        for axis in range(leaf.ndim):
            if leaf.shape[axis] > 1:
                for step in (1, -1):
                    for which in (0, 1):
                        yield (
                            i,
                            lambda v, s=step, a=axis, w=which: _rolled(v, s, a)[w],
                            f"shifted by one along axis {axis}",
                            "shifted",
                        )
        yield i, lambda v: np.zeros_like(v), "set to zero", "stale"
        yield i, lambda v: np.ones_like(v), "set to one", "stale"
        if any(y.shape == leaf.shape for y in outputs):
            yield i, functools.partial(_output_for, case, i), "replaced by the output", "stale"


def _output_for(case: Case, i: int, value: Any) -> Any:
    sample = next(s for s in case.samples if s.inputs[i] is value)
    return next(y for y in case.tools.output(sample) if y.shape == value.shape)


def _rolled(value: np.ndarray, step: int, axis: int) -> list[np.ndarray]:
    return list(_rolls(value, step, axis))


def _moved_dys(case: Case, i: int, moves: Callable[[Any], list[Any]]) -> Iterator[Any]:
    for which in range(len(moves(case.samples[0].dys[i]))):
        samples = [s._replace(dys=_put(s.dys, i, moves(s.dys[i])[which])) for s in case.samples]
        yield case.truth_at(samples)


def _put(values: list[Any], i: int, value: Any) -> list[Any]:
    return [*values[:i], value, *values[i + 1 :]]


def coupled(case: Case) -> Told | None:
    """Elements mixed along an axis along which the forward pass mixes none."""
    if not case.tools.subject.free_cotangent:
        return None
    sample = case.samples[0]
    for i, dy in enumerate(sample.dys):
        for axis in range(min(dy.ndim, 4)):
            n = dy.shape[axis]
            if n < 2:
                continue
            only = [np.zeros_like(d) for d in sample.dys]
            first = [slice(None)] * dy.ndim
            first[axis] = slice(0, 1)
            only[i][tuple(first)] = dy[tuple(first)]
            try:
                one = sample._replace(dys=only)
                got, truth = case.tools.exact(one)[case.leaf], case.tools.truth(one)[case.leaf]
            except NotWide:
                return None
            axes = [a for a in range(truth.ndim) if truth.shape[a] == n]
            for a in axes:
                others = [slice(None)] * truth.ndim
                others[a] = slice(1, None)
                leaked = np.abs(got[tuple(others)])
                if np.any(truth[tuple(others)]) or not np.any(leaked > 1e-6 * case.verdict.size):
                    continue
                if _mixes_as_truth(case, one, a, got, truth):
                    what = "examples leak into each other" if a == 0 else "elements leak into each other"
                    return Told("leak", f"{what} along axis {a}, along which forward mixes nothing")
                return Told("wrong axis", f"it sums along axis {a}, along which forward mixes nothing")
    return None


def _mixes_as_truth(case: Case, one: Sample, axis: int, got: np.ndarray, truth: np.ndarray) -> bool:
    """Whether, along the other axes, it mixes what the forward pass mixes."""
    spot = [np.zeros_like(d) for d in one.dys]
    for d, s in zip(one.dys, spot, strict=True):
        if d.size and np.any(d):
            s.flat[0] = d.flat[0]
    try:
        alone = one._replace(dys=spot)
        got, truth = case.tools.exact(alone)[case.leaf], case.tools.truth(alone)[case.leaf]
    except NotWide:
        return True
    return bool(np.all((got != 0) | (truth == 0)))


def _short(case: Case) -> str:
    path = case.tools.subject.paths[case.place]
    name = path.rpartition(": ")[2].rpartition("/")[2]
    return "x" if name == "dx" else name or "it"


STORIES: tuple[Callable[[Case], Told | None], ...] = (
    not_finite,
    zero,
    ignores_cotangent,
    nonlinear,
    precision,
    factor,
    swapped,
    transposed,
    shifted,
    reduced,
    overwritten,
    region,
    at_other_inputs,
    term,
    stale,
    coupled,
)
