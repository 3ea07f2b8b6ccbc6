"""Slopes from values alone: what to hold a gradient against where nothing can be differentiated.

Central differences, extrapolated to a step of zero (Ridders, "Accurate computation of F'(x)",
1982; Press et al., Numerical Recipes, section 5.7), with an estimate of their own error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

SHRINK = 1.6  # from one step to the next
STEPS = 10


class Slope(NamedTuple):
    """A directional derivative, and how far it may be off."""

    value: float
    error: float


def slope(
    terms: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    direction: np.ndarray,
    eps: float,
) -> Slope:
    """The slope of `terms(x).sum()` along `direction`.

    Args:
      terms: the terms of a sum, each computed with a relative error of `eps`.
      x, direction: where, and which way.
      eps: the rounding unit of the terms.

    Returns:
      The extrapolated central difference of the smallest estimated error. At a kink, where the
      one-sided differences of a term disagree however small the step, the error covers both.
    """
    size = float(np.max(np.abs(x[direction != 0]), initial=0)) or 1.0
    h = 0.1 * size / (float(np.max(np.abs(direction), initial=0)) or 1.0)
    middle = terms(x)
    rows: list[list[float]] = []
    best = Slope(0.0, np.inf)
    kinks = []
    for _ in range(STEPS if eps > 1e-10 else 2 * STEPS):
        right, left = terms(x + h * direction), terms(x - h * direction)
        rounding = 2 * eps * float(np.sum(np.abs(right) + np.abs(left))) / (2 * h)
        kinks.append(float(np.sum(np.abs(right - 2 * middle + left))) / (2 * h))
        row = [float(np.sum(right - left)) / (2 * h)]
        factor = SHRINK**2
        for previous in rows[-1] if rows else ():
            row.append((row[-1] * factor - previous) / (factor - 1))
            factor *= SHRINK**2
            differences = [abs(row[-1] - row[-2]), abs(row[-1] - previous)]
            error = max(differences) + rounding
            if error < best.error:
                best = Slope(row[-1], error)
        rows.append(row)
        h /= SHRINK
    # One-sided differences disagree by h times the curvature, or, at a kink, by a constant.
    smooth = min(k2 - (k1 - k2) / (SHRINK - 1) for k1, k2 in itertools.pairwise(kinks))
    kink = smooth if smooth > 0.05 * max(kinks) else 0.0
    return Slope(best.value, best.error + kink)


def one_sided(
    terms: Callable[[np.ndarray], np.ndarray], x: np.ndarray, place: tuple[int, ...]
) -> tuple[float, float]:
    """The least and the greatest slope with respect to one element that any choice of one-sided
    derivatives, term by term, gives."""
    h = 1e-6 * (abs(float(x[place])) or float(np.max(np.abs(x), initial=0)) or 1.0)
    middle = terms(x)

    def at(t: float) -> np.ndarray:
        moved = np.array(x)
        moved[place] += t
        return terms(moved) - middle

    right = (4 * at(h) - at(2 * h)) / (2 * h)  # the step's own error taken off: second order
    left = -(4 * at(-h) - at(-2 * h)) / (2 * h)
    return float(np.sum(np.minimum(left, right))), float(np.sum(np.maximum(left, right)))


def taylor_order(steps: Sequence[float], remainders: Sequence[float], floor: float) -> float:
    """The exponent at which remainders fall with the step, over the last above the floor."""
    pairs: list[Any] = [(h, r) for h, r in zip(steps, remainders, strict=True) if r > floor]
    if len(pairs) < 2:
        return float("inf")  # no remainder: the function is linear along the direction
    h, r = np.log(np.array(pairs[-4:])).T
    return float(np.polyfit(h, r, 1)[0])
