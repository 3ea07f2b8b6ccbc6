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
    """A directional derivative, how far it may be off, and whether there is a kink."""

    value: float
    error: float
    kink: bool = False


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
    return Slope(best.value, best.error + kink, kink > best.error)


SIDED = 14  # steps of a one-sided slope, each half of the one before
FIRST = 2.0**-8  # the first, in units of what is moved
SURE = 1e-3  # a slope is known where its error is below this share of it
SETTLES = 0.9  # the ratio of one to the one before, of a series whose sum can be told
DIVERGES = 0.95  # differences of quotients that fall slower than so are those of no limit


class Limit(NamedTuple):
    """Slopes from one side, and how far they may be off.

    Attributes:
      value: infinite where the quotients grow without bound, NaN where they have no limit.
      error: zero of what is infinite, infinite of what is NaN.
    """

    value: np.ndarray
    error: np.ndarray


def steps(size: float) -> np.ndarray:
    """The steps, to one side, at which `limit` takes values."""
    return FIRST * size * 0.5 ** np.arange(SIDED)


def limit(middle: np.ndarray, values: np.ndarray, h: np.ndarray, eps: float) -> Limit:
    """The limits of `(values - middle) / h`, extrapolated to a step of zero as Ridders does.

    Args:
      middle: [...], what is had at a step of zero.
      values: [steps, ...], at each of the steps.
      h: [steps], each half of the one before, negative to the left; or [steps, n] of n moves, which
        are the first axis of `middle`.
      eps: the rounding unit of the values.
    """
    shaped = h.reshape(*h.shape, *[1] * (1 + middle.ndim - h.ndim))
    quotients = (values - middle) / shaped
    rounding = 2 * eps * (np.abs(values) + np.abs(middle)) / np.abs(shaped)
    best, error = np.full(middle.shape, np.nan), np.full(middle.shape, np.inf)
    previous: list[np.ndarray] = []
    for quotient, rounded in zip(quotients, rounding, strict=True):
        row = [quotient]
        for k, before in enumerate(previous[:5]):
            row.append(row[-1] + (row[-1] - before) / (2 ** (k + 1) - 1))
            off = np.maximum(np.abs(row[-1] - row[-2]), np.abs(row[-1] - before)) + 4 * rounded
            better = off < error  # of NaN it is not
            best, error = np.where(better, row[-1], best), np.where(better, off, error)
        previous = row
    size = np.nanmax(np.where(np.isfinite(quotients), np.abs(quotients), 0), axis=0)
    least = SURE * np.where(np.abs(best) > SURE * size, np.abs(best), size)
    known = error <= np.maximum(least, 8 * np.nan_to_num(rounding[-1]))
    rises, settles, left = _tails(quotients, rounding)
    known &= rises == 0
    slow = settles & ~known  # as the quotients of a power between one and two
    best, error = np.where(slow, quotients[-1] + left, best), np.where(slow, np.abs(left), error)
    known |= slow
    value = np.where(known, best, np.where(rises != 0, np.copysign(np.inf, rises), np.nan))
    return Limit(value, np.where(known, error, np.where(rises != 0, 0.0, np.inf)))


def _tails(quotients: np.ndarray, rounding: np.ndarray) -> tuple[np.ndarray, ...]:
    """The sign of quotients that grow as a root's, a logarithm's or a jump's do, else zero; whether
    they settle as a geometric series does; and how far they then are from their limit."""
    change = np.diff(quotients, axis=0)[-5:]
    clear = np.abs(change) > 30 * (rounding[1:] + rounding[:-1])[-5:]
    same = ((np.sign(change[1:]) == np.sign(change[:-1])) & clear[1:] & clear[:-1]).all(axis=0)
    ratios = np.abs(change[1:]) / np.where(change[:-1] == 0, np.inf, np.abs(change[:-1]))
    grows = same & (ratios >= DIVERGES).all(axis=0)
    settles = same & (ratios < SETTLES).all(axis=0)
    settles &= np.ptp(ratios, axis=0) < 0.1
    rest = ratios[-1] / np.where(settles, 1 - ratios[-1], 1)
    return np.where(grows, np.sign(change[-1]), 0.0), settles, change[-1] * rest


def taylor_order(steps: Sequence[float], remainders: Sequence[float], floor: float) -> float:
    """The exponent at which remainders fall with the step, over the last above the floor."""
    pairs: list[Any] = [(h, r) for h, r in zip(steps, remainders, strict=True) if r > floor]
    if len(pairs) < 2:
        return float("inf")  # no remainder: the function is linear along the direction
    h, r = np.log(np.array(pairs[-4:])).T
    return float(np.polyfit(h, r, 1)[0])
