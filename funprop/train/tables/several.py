"""Several targets at once: a loss that is the sum of one for each, and metrics of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from funprop.layer import Layer, layer
from funprop.trees import Sum


def loss_of_each(losses: Sequence[Layer]) -> Layer:
    """The sum of losses, each of its own outputs and targets, which come as tuples.

    The weight is that of the first: a term is a row, and has a part for each target.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> both = loss_of_each([fp.mean_squared(), fp.mean_absolute()])
      >>> zeros, ones = jnp.zeros(2), jnp.ones(2)
      >>> loss, kept = both.forward((), ((zeros, zeros), (2 * ones, 3 * ones)))
      >>> float(loss.total), float(loss.weight)
      (14.0, 2.0)
      >>> both.backward((), kept, Sum(1.0, 0.0))[1][0][1].tolist()
      [-1.0, -1.0]
    """

    def forward(params: tuple[()], x: Any) -> tuple[Sum, Any]:
        outputs, targets, *weights = x
        each = [
            loss.forward((), (y, t, *weights))
            for loss, y, t in zip(losses, outputs, targets, strict=True)
        ]
        total = sum(found.total for found, _ in each)
        return Sum(total, each[0][0].weight), tuple(kept for _, kept in each)

    def backward(params: tuple[()], kept: Any, dy: Any) -> tuple[tuple[()], Any]:
        dtotal, dweight = dy
        each = [
            loss.backward((), part, Sum(dtotal, dweight if i == 0 else 0 * dweight))[1]
            for i, (loss, part) in enumerate(zip(losses, kept, strict=True))
        ]
        doutputs, dtargets, *dweights = zip(*each, strict=True)
        return (), (doutputs, dtargets, *(_total(part) for part in dweights))

    return layer(forward=forward, backward=backward, name="loss_of_each")


def _total(parts: Sequence[Any]) -> Any:
    """Of cotangents; `None` for what is no number."""
    return None if parts[0] is None else sum(parts)


def metric_of(metric: Callable[..., Sum], i: int) -> Callable[..., Sum]:
    """A metric of target `i`."""

    def of_one(outputs: Any, targets: Any, weights: Any = None) -> Sum:
        return metric(outputs[i], targets[i], weights)

    return of_one
