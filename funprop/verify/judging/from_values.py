"""Where autodiff of the forward pass has no answer, or one that a branch has pinned, values decide.

The norm of a row of zeros, a root under a `where` that is not taken, `where(x == 0, 0, ...)`. Any
slope between the one-sided ones is right; where they are infinite, an infinity of their sign or
any finite number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from funprop.verify.judging.judge import UNITS, Verdict
from funprop.verify.subject import is_floating
from funprop.verify.truth import near
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import EPS32, Instruments
from funprop.verify.truth.samples import Sample

SPECIAL = 8  # elements of a leaf at which a finite truth is looked at too
PINNED = 1e-2  # of a slope's size: so far from it, autodiff's answer is no rounding's

Place = tuple[int, ...]


def settled(
    verdict: Verdict, tools: Instruments, samples: Sequence[Sample], leaf: int, given: bool = True
) -> tuple[Verdict, str, np.ndarray]:
    """The verdict with a truth from values where autodiff's is not finite, or pinned.

    Args:
      verdict: on a leaf at samples, those that share the inputs of the first in front.
      given: whether the inputs are those that were given. At others a gradient of NaN is nobody's
        mistake where autodiff's is NaN too.

    Returns:
      The verdict, a note of what was settled so, and of what could not be judged, and at which
      elements of which samples the truth is that of values.
    """
    changed = np.zeros(verdict.truth.shape, bool)
    here = [n for n, s in enumerate(samples) if s.inputs is samples[0].inputs]
    truth = verdict.truth[here]
    unknown = [_place(p) for p in np.argwhere(~np.isfinite(truth).all(axis=0))]
    looked_at = unknown[:: -(-len(unknown) // near.most_places(tools)) or 1]
    special = _special(tools, samples[0], leaf) if given and not unknown else []
    if not (looked_at or special):
        return verdict, "", changed
    try:
        key = f"sides {leaf} {given}"
        places = looked_at or special
        sides = tools.kept(
            key, samples[0].inputs, lambda: near.at_places(tools, samples[0], leaf, places)
        )
    except NotWideError:
        return verdict, _unjudged(unknown), changed
    verdict = verdict._replace(**{k: np.array(getattr(verdict, k)) for k in _CHANGED})
    notes, left = [], [p for p in unknown if p not in looked_at]
    for k, place in enumerate(places):
        decided: list[tuple[float, float] | None] = [
            _settle(verdict, n, place, _hull(sides, k, samples[n]), tools.eps, given, bool(special))
            for n in here
        ]
        for n, ends in zip(here, decided, strict=True):
            changed[(n, *place)] = ends is not None
        if any(d is None for d in decided):
            left += [] if special else [place]
        elif (ends := decided[0]) and not notes:
            notes.append(_accepted(place, ends))
    return verdict, "; ".join([*notes, *([_unjudged(left)] if left else [])]), changed


_CHANGED = ("truth", "error", "allowed")


def _settle(
    verdict: Verdict,
    n: int,
    place: Place,
    hull: tuple[float, float, float],
    eps: float,
    given: bool,
    only_if_pinned: bool,
) -> tuple[float, float] | None:
    """Change the verdict on one element; the ends of what is accepted, or none if it is not known.

    A pinned truth is changed only where both ends are known, and it lies clearly outside.
    """
    low, high, error = hull
    at = (n, *place)
    got = float(verdict.got[at])
    if np.isnan(low) or np.isnan(high):
        return None
    ends = low, high
    finite = np.isfinite(low) and np.isfinite(high)
    if only_if_pinned:
        truth, size = float(verdict.truth[at]), max(abs(low), abs(high))
        far = max(low - truth, truth - high)
        if not finite or far <= PINNED * max(size, abs(truth)) + 10 * error:
            return None
    if np.isnan(got) and not (given and finite):
        return None
    fits = got in ends or np.isfinite(got)
    if not finite and fits:
        verdict.truth[at], verdict.error[at] = got, 0.0
        return ends
    known = verdict.allowed[np.isfinite(verdict.allowed)]
    slack = float(known.max(initial=0)) + 2 * error
    if not finite:  # an infinity of the other sign, or NaN
        verdict.truth[at] = low if np.isinf(low) else high
        verdict.error[at], verdict.allowed[at] = np.inf, slack
        return ends
    slack += UNITS * max(EPS32, 0 if verdict.exact else eps) * max(abs(low), abs(high))
    nearest = float(np.clip(got, low, high)) if np.isfinite(got) else (low + high) / 2
    verdict.truth[at] = nearest
    verdict.error[at] = abs(got - nearest) if np.isfinite(got) else np.inf
    verdict.allowed[at] = slack
    return ends


def stepless(
    verdict: Verdict, tools: Instruments, samples: Sequence[Sample], leaf: int
) -> tuple[Verdict, str]:
    """The verdict without what is no number where the forward pass makes a step, and a note of it.

    For inputs that nobody gave: autodiff's number there belongs to one side of the step, as that of
    Q in A = QR where A is zero.
    """
    here = [n for n, s in enumerate(samples) if s.inputs is samples[0].inputs]
    bad = ~np.isfinite(verdict.got) & verdict.wrong
    bad[[n for n in range(len(samples)) if n not in here]] = False
    if not bad.any():
        return verdict, ""
    directions = [np.zeros(v.shape) for v in tools.truth(samples[0])]
    directions[leaf] = np.cos(1 + np.arange(bad[0].size)).reshape(bad[0].shape)
    try:
        sides = near.along(tools, samples[0], directions)
    except NotWideError:
        return verdict, ""
    if all(np.isfinite(_hull(sides, 0, samples[n])[:2]).all() for n in here):
        return verdict, ""
    places = [_place(p) for p in np.argwhere(bad.any(0))]
    return verdict._replace(error=np.where(bad, 0.0, verdict.error)), _unjudged(places)


def _hull(sides: near.Sides, k: int, sample: Sample) -> tuple[float, float, float]:
    weights = np.concatenate([d.ravel() for d in sample.dys]) / sample.unit
    low, high, error = sides.hull(weights)
    return float(low[k]), float(high[k]), float(error[k])


def _special(tools: Instruments, sample: Sample, leaf: int) -> list[Place]:
    """Elements that are zero, one, minus one or a number that the forward pass compares with, of an
    input that it compares or takes apart: there a branch may pin what autodiff says."""
    i = tools.subject.differentiable[leaf]
    x = np.asarray(sample.inputs[i])
    if tools.many or not is_floating(x):
        return []
    found = tools.thresholds
    at = np.zeros(x.shape, bool)
    if i in found.split:
        at |= np.isin(x, [1.0, -1.0, *found.numbers])
    if i in found.split_at_zero:
        at |= x == 0
    places = [_place(p) for p in np.argwhere(at)]
    return places[:: -(-len(places) // SPECIAL) or 1]


def _place(index: Any) -> Place:
    return tuple(int(i) for i in index)


def _accepted(place: Place, ends: tuple[float, float]) -> str:
    low, high = ends
    where = f"at {list(place)} values decide, not autodiff"
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{where}: the slope is infinite, and any finite number is accepted"
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return where
    return f"{where}: any slope between the one-sided ones is accepted"


def _unjudged(places: Sequence[Place]) -> str:
    if not places:
        return ""
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"not judged at {list(places[0])}{more}: no slope is known there"
