"""Which rows are held out: some at random, the last ones, or whole groups."""

from __future__ import annotations

from typing import Any

import numpy as np

HELD_OUT = 0.2
SPLIT_SEED = 0  # never the run's, so that runs compare


def at_random(
    labels: Any | None, n: int, share: float = HELD_OUT, seed: int = SPLIT_SEED
) -> tuple[Any, Any]:
    """Rows to train on and rows held out, of `n`: of each class its share, never all of it.

    Raises:
      ValueError: no class has two.

    Example:
      >>> labels = np.array([0] * 8 + [1] * 4)
      >>> train, test = at_random(labels, 12, share=0.25)
      >>> labels[test].tolist()
      [0, 0, 1]
    """
    order = np.random.default_rng(seed).permutation(n)
    if labels is None:
        cut = min(max(1, round(n * share)), n - 1)
        return np.sort(order[cut:]), np.sort(order[:cut])
    shuffled = labels[order]
    # The place of each row among those of its class, as a share: the first ones are held out.
    place = np.empty(n)
    for label in np.unique(labels):
        rows = np.flatnonzero(shuffled == label)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        place[rows[-1]] = 1.0
    held_out = np.zeros(n, bool)
    held_out[order[place < share]] = True
    if not held_out.any():
        if place.min() == 1.0:
            raise ValueError("there must be a class of two examples or more, to hold one out")
        held_out[order[np.argmin(place)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def by_time(times: Any, name: str, share: float = HELD_OUT) -> tuple[Any, Any]:
    """The last ones are held out; rows of one time stay together.

    Raises:
      ValueError: a time is missing, or all are the same.

    Example:
      >>> by_time(np.array([3.0, 1.0, 2.0, 4.0]), "when", share=0.25)[1].tolist()
      [3]
    """
    if not np.isfinite(times).all():
        raise ValueError(f"column {name!r} must have a time in every row to hold out by it")
    first = np.sort(times)[len(times) - max(1, round(len(times) * share))]
    held_out = times >= first
    if held_out.all():
        held_out = times > first
    if not held_out.any():
        raise ValueError(f"column {name!r} must have more than one time to hold out by it")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def by_group(groups: Any, name: str, share: float = HELD_OUT) -> tuple[Any, Any]:
    """Whole groups are held out, drawn at random until they are the share of the rows.

    Raises:
      ValueError: there is one group alone.

    Example:
      >>> train, test = by_group(np.array(["a", "a", "b", "b", "c", "c"]), "who", share=0.3)
      >>> test.tolist()
      [4, 5]
    """
    names, number = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"column {name!r} must have more than one group to hold out by it")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(names))
    reached = np.cumsum(np.bincount(number)[order])
    count = int(np.argmin(np.abs(reached[:-1] - share * len(number)))) + 1
    held_out = np.isin(number, order[:count])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
