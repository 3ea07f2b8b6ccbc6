"""Stories of which outputs an element feeds: some are not counted, or others are.

Where most of a Jacobian is zero (a maximum, a sort, a scatter) its pattern says what a backward
pass does wrong: it sends a cotangent to another place than the forward pass took from.
"""

from __future__ import annotations

import numpy as np

from funprop.verify.stories.case import Case, Told
from funprop.verify.stories.jacobian import pairs


def links(case: Case) -> Told | None:
    """Right where both have a number, and one has none where the other has."""
    found = pairs(case)
    if not found or all(_is_diagonal(m) for pair in found for m in pair):
        return None  # of what does the same to every number, the numbers say more
    kinds = [_kind(got, truth) for got, truth in found]
    wrong = [kind for kind in kinds if kind != "right"]
    if not wrong or len(set(wrong)) > 1 or wrong[0] == "other":
        return None
    got, truth = next(p for p, kind in zip(found, kinds, strict=True) if kind != "right")
    if wrong[0] == "missing":
        if all(kind == "right" or _one_is_kept(*p) for p, kind in zip(found, kinds, strict=True)):
            sentence = "of the outputs that take from one place only one is counted"
            return Told("overwritten", f"{sentence}: {_lost(case, got, truth)}")
        return Told("missing term", _lost(case, got, truth))
    output, place = np.argwhere((got != 0) & (truth == 0))[0]
    there, here = _output(case, output), _place(case, place)
    if wrong[0] == "more":
        sentence = f"what comes to {there} goes to {here} too, from which it takes nothing"
    else:
        sentence = f"what comes to {there} goes to {here}, from which it takes nothing"
    return Told("region", sentence)


def _kind(got: np.ndarray, truth: np.ndarray) -> str:
    """What is wrong with which places are linked: `right`, `missing`, `more`, `moved`, `other`."""
    missing, more = (got == 0) & (truth != 0), (got != 0) & (truth == 0)
    both = (got != 0) & (truth != 0)
    size = float(np.max(np.abs(truth), initial=0))
    if not np.allclose(got[both], truth[both], rtol=1e-5, atol=1e-6 * size):
        return "other"
    if more.any():
        return "moved" if missing.any() else "more"
    return "missing" if missing.any() else "right"


def _is_diagonal(links: np.ndarray) -> bool:
    square = links.shape[0] == links.shape[1]
    return square and not np.any(links[~np.eye(len(links), dtype=bool)])


def _one_is_kept(got: np.ndarray, truth: np.ndarray) -> bool:
    """Whether of all outputs that an element feeds just one is kept, where it feeds several."""
    fed = (truth != 0).sum(0)
    return bool((fed > 1).any()) and np.array_equal((got != 0).sum(0), np.minimum(fed, 1))


def _lost(case: Case, got: np.ndarray, truth: np.ndarray) -> str:
    output, place = np.argwhere((got == 0) & (truth != 0))[0]
    return f"what {_output(case, output)} takes from {_place(case, place)} is not counted"


def _output(case: Case, number: int) -> str:
    specs = case.tools.dys
    for i, spec in enumerate(specs):
        if number < spec.size:
            at = [int(k) for k in np.unravel_index(number, spec.shape)]
            name = "the output" if len(specs) == 1 else f"output {i}"
            return f"{name} at {at}" if at else name
        number -= spec.size
    raise AssertionError("no such output")


def _place(case: Case, number: int) -> str:
    at = [int(k) for k in np.unravel_index(number, case.verdict.truth.shape[1:])]
    return f"{case.short} at {at}"
