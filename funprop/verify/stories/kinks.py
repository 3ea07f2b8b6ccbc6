"""The story of a kink: what is right on both sides of it, and not at it."""

from __future__ import annotations

import numpy as np

from funprop.verify.judging.kinks import slopes
from funprop.verify.stories.case import Case, Told

LOOKED_AT = 8  # wrong elements, of all


def at_kink(case: Case) -> Told | None:
    """Wrong at kinks alone: relu at zero, ties in a maximum, the norm of zeros."""
    v = case.verdict.at_first(case.own or len(case.samples))
    places = np.argwhere(v.wrong & np.isfinite(v.got))
    if not len(places):
        return None
    looked_at = [v.worst, *map(tuple, places[:: -(-len(places) // LOOKED_AT)])]
    found = [_slopes(case, v.truth, *map(int, place)) for place in looked_at]
    if any(ends is None for ends in found):
        return None
    (low, high), got = found[0] or (0, 0), v.got[v.worst]
    slack = 1e-6 * (abs(low) + abs(high))
    if low - slack <= got <= high + slack:
        return Told("kink", "numbers that are tied must share what arrives, and do not")
    return Told("kink", f"not between the slopes on both sides of a kink, {low:.4g} and {high:.4g}")


def _slopes(case: Case, truth: np.ndarray, n: int, *place: int) -> tuple[float, float] | None:
    tools, sample = case.tools, case.samples[n]
    known = np.isfinite(tools.truth(sample)[case.leaf][place])
    if known and not tools.may_have_kinks:
        return None
    return slopes(tools, sample, case.leaf, truth[n], place)
