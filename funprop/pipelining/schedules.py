"""Schedules that the field knows, each from the order of a stage's slots."""

from __future__ import annotations

from collections.abc import Callable

from funprop.pipelining.schedule import Row, Schedule, Slot
from funprop.values import whole_number


def gpipe(stages: int, microbatches: int) -> Schedule:
    """All forward passes, then all backward passes. Simple, and keeps every microbatch.

    Idle: `3 (stages - 1)` units a stage.

    Source: Huang et al., arXiv:1811.06965.

    Raises:
      ValueError: a number is not positive.

    Example:
      >>> print(gpipe(2, 3))
      F0 F1 F2 .  .  .  B0 W0 B1 W1 B2 W2
      .  F0 F1 F2 B0 W0 B1 W1 B2 W2 .  .
      >>> gpipe(2, 3).kept
      (3, 3)
    """
    return _made(gpipe.__name__, stages, microbatches, lambda stage, n: n, whole=True)


def one_f_one_b(stages: int, microbatches: int) -> Schedule:
    """A forward pass and a backward pass in turn, from the moment that the last stage begins.

    Idle: `3 (stages - 1)` units a stage, as `gpipe`; but the first stage keeps at most `stages`
    microbatches, and each behind it one fewer. A backward pass is whole: both halves, one after
    the other, before the stage in front begins its own.

    Source: Narayanan et al., arXiv:1806.03377 (PipeDream), with a flush as in arXiv:2006.09503.

    Raises:
      ValueError: a number is not positive.

    Example:
      >>> one_f_one_b(4, 8).idle, one_f_one_b(4, 8).kept
      ((9, 9, 9, 9), (4, 3, 2, 1))
    """
    return _made(
        one_f_one_b.__name__, stages, microbatches, lambda stage, n: stages - stage, whole=True
    )


def zero_bubble(stages: int, microbatches: int) -> Schedule:
    """`one_f_one_b` with the backward pass in two halves: the stage in front goes on after the
    first, and the second fills what would be idle. ZB-H1 of the paper.

    Idle: `stages - 1` units a stage, a third of `one_f_one_b`'s, if there are at least `stages`
    microbatches; with fewer, one more for each that is missing. Each stage keeps at most `stages`
    microbatches, which is the most that any stage of `one_f_one_b` does.

    Source: Qi et al., arXiv:2401.10241.

    Raises:
      ValueError: a number is not positive.

    Example:
      >>> print(zero_bubble(3, 4))
      F0 F1 F2 .  .  B0 W0 F3 B1 W1 B2 W2 B3 W3
      .  F0 F1 .  B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
      .  .  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3
      >>> zero_bubble(3, 4).idle, zero_bubble(3, 4).kept
      ((2, 2, 2), (3, 3, 3))
    """
    return _made(
        zero_bubble.__name__, stages, microbatches, lambda stage, n: stages - stage, whole=False
    )


def _made(
    name: str, stages: int, microbatches: int, ahead: Callable[[int, int], int], *, whole: bool
) -> Schedule:
    """The schedule in which each stage takes its slots in order, each as early as may be.

    Args:
      name: of the maker.
      stages, microbatches: how many.
      ahead: `(stage, microbatches) -> n`: how many more `F` than `B` there may be.
      whole: whether `W` is right behind `B`, and the stage in front waits for both. If not, stage
        `s` does its first `W` after `s` more `B` than that, so that it has them for later.
    """
    stages = whole_number(stages, "stages", 1)
    microbatches = whole_number(microbatches, "microbatches", 1)
    orders = [
        _order(microbatches, ahead(stage, microbatches), 0 if whole else stage)
        for stage in range(stages)
    ]
    return Schedule(_in_time(orders, "W" if whole else "B"), name)


def _order(microbatches: int, ahead: int, behind: int) -> list[Slot]:
    order: list[Slot] = []
    done = 0
    for i in range(microbatches):
        while done < min(i + ahead, microbatches):
            order.append(Slot("F", done))
            done += 1
        order.append(Slot("B", i))
        if i >= behind:
            order.append(Slot("W", i - behind))
    rest = range(max(microbatches - behind, 0), microbatches)
    return [*order, *(Slot("W", i) for i in rest)]


def _in_time(orders: list[list[Slot]], awaited: str) -> tuple[Row, ...]:
    """Rows in which every slot is as early as it can be; a `B` after `awaited` of the stage behind.

    Each unit of time looks at what was done before it.
    """
    stages = len(orders)
    rows: list[list[Slot | None]] = [[] for _ in orders]
    done: set[tuple[str, int, int]] = set()
    while any(orders):
        ready: list[Slot | None] = []
        for stage, order in enumerate(orders):
            slot = order[0] if order else None
            if slot is not None:
                needed = {"F": ("F", stage - 1), "B": (awaited, stage + 1), "W": ("B", stage)}
                kind, other = needed[slot.kind]
                if other in range(stages) and (kind, slot.microbatch, other) not in done:
                    slot = None
            ready.append(slot)
        for stage, slot in enumerate(ready):
            rows[stage].append(slot)
            if slot is not None:
                orders[stage].pop(0)
                done.add((slot.kind, slot.microbatch, stage))
    return tuple(map(tuple, rows))
