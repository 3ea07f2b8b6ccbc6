"""When is a network adequately trained? A rule reads the history and answers with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from funprop.checks import described
from funprop.values import real_number, whole_number

# Numbers; of a population, under `members`, a dict of a list a metric too.
Row = dict[str, Any]
Rule = Callable[[Sequence[Row]], str | None]


def at_least(metric: str, target: float) -> Rule:
    """Stop once `metric` is `target` or more.

    Raises:
      TypeError: `metric` is no name, or `target` no number.

    Example:
      >>> at_least("accuracy", 0.9)([{"accuracy": 0.95}])
      'accuracy reached 0.9'
    """
    reached = _metric(metric), real_number(target, "target")
    return lambda history: _told(*reached) if _last(history, metric) >= reached[1] else None


def at_most(metric: str, target: float) -> Rule:
    """Stop once `metric` is `target` or less.

    Raises:
      TypeError: `metric` is no name, or `target` no number.

    Example:
      >>> at_most("loss", 0.1)([{"loss": 0.5}]) is None
      True
    """
    reached = _metric(metric), real_number(target, "target")
    return lambda history: _told(*reached) if _last(history, metric) <= reached[1] else None


def patience(metric: str, epochs: int, best: Callable[..., float] = min) -> Rule:
    """Stop when the best value of `metric` is `epochs` epochs old. NaN is worse than any other.

    Args:
      metric: which entry of the history.
      epochs: how long to wait for a better one, at least 1.
      best: `min` for a loss, `max` for an accuracy.

    Raises:
      TypeError: `metric` is no name, `epochs` no integer, or `best` no function.
      ValueError: `epochs` is not positive.

    Example:
      >>> patience("loss", 2)([{"loss": 0.1}, {"loss": 0.3}, {"loss": 0.2}])
      'loss no better for 2 epochs'
    """
    metric, epochs = _metric(metric), whole_number(epochs, "epochs", 1)
    if not callable(best):
        raise TypeError(f"best must be a function, min or max, got {described(best)}")

    def rule(history: Sequence[Row]) -> str | None:
        _last(history, metric)
        values = [row[metric] for row in history]
        numbers = [value for value in values if not math.isnan(value)]
        best_at = values.index(best(numbers)) if numbers else 0
        # A row may tell of a part of an epoch (`measure_every`).
        at = [row.get("epoch", i) for i, row in enumerate(history)]
        waited = round(at[-1] - at[best_at], 6)
        return f"{metric} no better for {epochs} epochs" if waited >= epochs else None

    return rule


def _metric(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"metric must be the name of one, got {described(name)}")
    return name


def _told(metric: str, target: float) -> str:
    return f"{metric} reached {target:g}"


def _last(history: Sequence[Row], metric: str) -> float:
    if metric not in history[-1]:
        raise ValueError(f"stop wants the metric {metric!r}, got {', '.join(history[-1])}")
    return history[-1][metric]
