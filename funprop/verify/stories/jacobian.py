"""Stories of the map from cotangents to the gradient, whatever the forward pass is made of.

A backward pass applies the transpose of the Jacobian. Of few outputs every row of it can be had.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from funprop.verify.stories.case import Case, Told
from funprop.verify.stories.places import in_words, plain, same_columns
from funprop.verify.truth.samples import Sample

MOST = 64  # numbers of the outputs, or these stories are not tried


def not_transposed(case: Case) -> Told | None:
    """The Jacobian times the cotangent, which its transpose should be multiplied with."""
    n = case.verdict.truth[0].size
    rows = _rows(case)
    if rows is None or rows[0].shape != (n, n) or n < 2:
        return None
    found = [
        jacobian @ _flat(s.dys) / s.unit for jacobian, s in zip(rows, case.samples, strict=True)
    ]
    if case.close(np.stack(found).reshape(case.verdict.truth.shape)):
        return Told("transposed", "the derivative is multiplied with dy, and not its transpose")
    return None


def cotangent_by_place(case: Case) -> Told | None:
    """The cotangent with a factor of its own at each place along an axis, or of each output."""
    rows = _rows(case)
    if rows is None:
        return None
    shapes = [spec.shape for spec in case.tools.dys]
    outputs = np.concatenate([np.full(int(np.prod(s)), i) for i, s in enumerate(shapes)])
    if len(shapes) > 1 and (found := _fitted(case, rows, outputs)) is not None:
        lost = [str(i) for i in np.flatnonzero(found == 0)]
        if set(found) == {0.0, 1.0}:
            noun = "output" if len(lost) == 1 else "outputs"
            return Told("missing term", f"the cotangent of {noun} {', '.join(lost)} is not counted")
    if len(shapes) == 1:
        for axis, n in enumerate(shapes[0]):
            index = np.arange(n).reshape(-1, *[1] * (len(shapes[0]) - axis - 1))
            places = np.broadcast_to(index, shapes[0]).ravel()
            if (found := _fitted(case, rows, places)) is not None:
                return Told(*in_words(found, axis, "the cotangent", "missing term"))
    return None


def _fitted(case: Case, rows: list[np.ndarray], groups: np.ndarray) -> np.ndarray | None:
    """The factor of each group of the outputs' numbers with which the gradient is as found."""
    n = int(groups.max()) + 1
    own, got = case.own or len(rows), case.verdict.got
    member = groups == np.arange(n)[:, None]
    parts = [
        (member * _flat(s.dys)) @ jacobian / s.unit
        for jacobian, s in zip(rows, case.samples, strict=True)
    ]
    matrix = np.concatenate(parts[:own], axis=1).T
    if n < 2 or len(matrix) < 2 * n or np.linalg.matrix_rank(matrix) < n:
        return None
    found, *_ = np.linalg.lstsq(matrix, got[:own].ravel(), rcond=None)
    found = plain(found)
    gradient = np.stack([found @ part for part in parts]).reshape(got.shape)
    return found if np.ptp(found) and case.close(gradient) else None


def cotangent_elsewhere(case: Case) -> Told | None:
    """The gradient of the right cotangents in other places."""
    rows = _rows(case)
    if rows is None or len(rows[0]) < 4:
        return None
    s = case.samples[0]
    got = case.tools.kept("got rows", s.inputs, lambda: _jacobians(case, s, case.tools.exact))[
        case.leaf
    ]
    order = same_columns(got.T, rows[0].T)
    if order is None:
        return None
    found = [
        _flat(s.dys) @ jacobian[order] / s.unit
        for jacobian, s in zip(rows, case.samples, strict=True)
    ]
    if not case.close(np.stack(found).reshape(case.verdict.truth.shape)):
        return None
    i = int(np.flatnonzero(order != np.arange(len(order)))[0])
    shape = case.tools.dys[0].shape if len(case.tools.dys) == 1 else (len(order),)
    here, there = ([int(k) for k in np.unravel_index(j, shape)] for j in (i, int(order[i])))
    return Told("permuted", f"the cotangent at {here} is taken for that at {there}, and so on")


def pairs(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """The leaf's Jacobian by the backward pass and by the truth, wherever the inputs are others.

    None where they are too large, or more than half of the truth is not zero.
    """
    rows = _rows(case)
    if rows is None or np.mean(rows[0] != 0) > 0.5:
        return []
    tools, found = case.tools, {}
    for s, truth in zip(case.samples, rows, strict=True):
        if id(s.inputs) not in found:
            got = tools.kept("got rows", s.inputs, lambda s=s: _jacobians(case, s, tools.exact))
            size = float(np.max(np.abs(truth), initial=0))
            both = (np.where(np.abs(m) > 1e-9 * size, m, 0) for m in (got[case.leaf], truth))
            found[id(s.inputs)] = tuple(both)
    return list(found.values())


def _rows(case: Case) -> list[np.ndarray] | None:
    """At each sample the leaf's Jacobian, [number of the outputs, number of the leaf]."""
    n = sum(spec.size for spec in case.tools.dys)
    finite = np.isfinite(case.verdict.truth).all() and np.isfinite(case.verdict.got).all()
    exact = case.verdict.exact and case.tools.subject.free_cotangent
    if not exact or not finite or not 1 < n <= MOST or case.own is None:
        return None
    tools = case.tools
    return [
        tools.kept("rows", s.inputs, lambda s=s: _jacobians(case, s, tools.truth))[case.leaf]
        for s in case.samples
    ]


def _jacobians(
    case: Case, sample: Sample, gradient: Callable[[Sample], list[np.ndarray]]
) -> list[np.ndarray]:
    """Of every leaf, from the gradients under a cotangent of one for each number in turn."""
    rows = []
    sizes = [spec.size for spec in case.tools.dys]
    for one in np.eye(sum(sizes)):
        parts = np.split(one, np.cumsum(sizes)[:-1])
        dys = [p.reshape(spec.shape) for p, spec in zip(parts, case.tools.dys, strict=True)]
        rows.append([g.ravel() for g in gradient(sample._replace(dys=dys))])
    return [np.stack(leaf) for leaf in zip(*rows, strict=True)]


def _flat(dys: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(d) for d in dys])
