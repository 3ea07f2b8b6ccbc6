"""When is a network adequately trained? A rule reads the history and answers with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from funprop.train.arguments import whole_number

Row = dict[str, float]
Rule = Callable[[Sequence[Row]], str | None]


def at_least(metric: str, target: float) -> Rule:
    """Stop once `metric` is `target` or more.

    Example:
      >>> at_least("accuracy", 0.9)([{"accuracy": 0.95}])
      'accuracy reached 0.9'
    """
    return lambda history: (
        f"{metric} reached {target:g}" if _last(history, metric) >= target else None
    )


def at_most(metric: str, target: float) -> Rule:
    """Stop once `metric` is `target` or less.

    Example:
      >>> at_most("loss", 0.1)([{"loss": 0.5}]) is None
      True
    """
    return lambda history: (
        f"{metric} reached {target:g}" if _last(history, metric) <= target else None
    )


def patience(metric: str, epochs: int, best: Callable[..., float] = min) -> Rule:
    """Stop when the best value of `metric` is `epochs` epochs old. NaN is worse than any other.

    Args:
      metric: which entry of the history.
      epochs: how long to wait for a better one, at least 1.
      best: `min` for a loss, `max` for an accuracy.

    Raises:
      TypeError: `epochs` is no integer.
      ValueError: `epochs` is not positive.

    Example:
      >>> patience("loss", 2)([{"loss": 0.1}, {"loss": 0.3}, {"loss": 0.2}])
      'loss no better for 2 epochs'
    """
    epochs = whole_number(epochs, "epochs", 1)

    def rule(history: Sequence[Row]) -> str | None:
        _last(history, metric)
        values = [row[metric] for row in history]
        numbers = [value for value in values if not math.isnan(value)]
        best_at = values.index(best(numbers)) if numbers else 0
        waited = len(values) - 1 - best_at
        return f"{metric} no better for {epochs} epochs" if waited >= epochs else None

    return rule


def _last(history: Sequence[Row], metric: str) -> float:
    if metric not in history[-1]:
        raise ValueError(f"stop wants the metric {metric!r}, got {', '.join(history[-1])}")
    return history[-1][metric]
