"""What is off in a step, and what people do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from funprop.explaining.calls import Call
from funprop.explaining.updates import Update
from funprop.gradients import Gradient

FAR = 1e3  # how much smaller or larger a cotangent may be than at the model's output
SLOW, FAST = 3e-5, 3e-2  # of an update to its weight; about 1e-3 is usual
ROWS = 8  # of fewer, that a unit is 0 says nothing


class Note(NamedTuple):
    """Something that is off.

    Attributes:
      where: the path of a layer, or the name of a leaf of params.
      kind: in a word or two.
      what: in a sentence, with its numbers.
      remedy: what people do about it.
    """

    where: str
    kind: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.remedy}"


def notes_of(
    calls: Sequence[Call], updates: Sequence[Update], gradient: Gradient, chosen: bool
) -> tuple[Note, ...]:
    """All that is off; of updates' sizes only where the optimizer was chosen."""
    return (
        *_not_finite(calls),
        *_units(calls),
        *_along_depth(calls),
        *_zero(updates, float(gradient.weight)),
        *(_sizes(updates) if chosen else ()),
    )


def _not_finite(calls: Sequence[Call]) -> Iterator[Note]:
    for call in calls:
        arrays = (call.x, call.y, call.dy, call.dx, *call.gradients.values())
        if call.whole and any(a is not None and a.nonfinite for a in arrays):
            yield Note(
                call.path,
                "not finite",
                "here are numbers that are infinite or NaN",
                "find_nonfinite says which was first, and what made it",
            )
            return


def _units(calls: Sequence[Call]) -> Iterator[Note]:
    for call in calls:
        if call.dead and call.examples >= ROWS:
            yield Note(
                call.path,
                "dead units",
                f"{call.dead:.0%} of the units give 0 for all {call.examples:,} rows, so nothing "
                "flows back through them",
                "A smaller learning rate, He initialisation, a normalisation in front, or "
                "leaky_relu or gelu",
            )
        if call.flat > 0.5:
            yield Note(
                call.path,
                "saturated",
                f"{call.flat:.0%} of the numbers pass on less than 2% of their cotangent",
                "Smaller weights or scaled inputs in front, a normalisation, or another activation",
            )


def _along_depth(calls: Sequence[Call]) -> Iterator[Note]:
    """Backward from the model's output: where the cotangent has first become far smaller or larger
    than it was there."""
    back = [c for c in reversed(calls) if c.whole and c.dy is not None and c.dx is not None]
    last = next((c.dy.norm for c in back[1:] if c.dy is not None and c.dy.norm), None)
    if last is None:
        return
    for kind, off, remedy in (
        (
            "vanishing",
            lambda share: 0 < share < 1 / FAR,
            "Residual connections, a normalisation, He or Glorot initialisation, or activations "
            "that do not saturate",
        ),
        (
            "exploding",
            lambda share: share > FAR,
            "A smaller scale of the initial weights, a normalisation, or clipping of the gradient",
        ),
    ):
        for call in back:
            assert call.dx is not None
            if off(call.dx.norm / last):
                what = f"the cotangent is {call.dx.norm / last:.1e} times that at the output"
                yield Note(call.path, f"{kind} cotangent", what, remedy)
                break


def _zero(updates: Sequence[Update], weight: float) -> Iterator[Note]:
    if not weight:
        yield Note(
            "batch",
            "zero gradient",
            "no term of it has weight, so nothing is trained by it",
            "See its weights, and whether it is empty",
        )
        return
    for update in updates:
        if update.gradient is not None and not update.gradient.norm:
            yield Note(
                update.name,
                "zero gradient",
                "the gradient is all zero, so this is not trained by this batch",
                "See whether its output is used, its units are dead, or a weight behind it is zero",
            )


def _sizes(updates: Sequence[Update]) -> Iterator[Note]:
    for update in updates:
        if not update.trained or update.role not in ("weight", "table") or not update.weight.norm:
            continue
        if 0 < update.ratio < SLOW or update.ratio > FAST:
            which, do = ("small", "larger") if update.ratio < SLOW else ("large", "smaller")
            yield Note(
                update.name,
                f"{which} update",
                f"the update is {update.ratio:.1e} of the weight, where about 1e-3 is usual",
                f"A {do} learning rate; early in training, and of small weights, it may be meant",
            )
