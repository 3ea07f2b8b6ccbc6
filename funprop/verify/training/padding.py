"""What stands in masked places, and how many there are, has no say."""

from __future__ import annotations

from collections.abc import Iterator

from funprop.verify.training.batches import Examples, filled, unequal, with_masked
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.closeness import Difference
from funprop.verify.training.report import StepCheck, percent


def padding(case: Case) -> Iterator[StepCheck]:
    """What stands in masked places, and how many there are, changes nothing."""
    mask = case.said["mask"]
    if mask is None:
        raise NotAsked("say which places are real: mask=, batch -> array, zero where padding is")

    def fill(examples: Examples) -> list[Difference]:
        examples = unequal(examples, mask)
        other = filled(examples.batch, mask, case.seed)
        return [] if other is None else case.apart(examples.batch, other, case.all_places())

    rows = case.broken(
        "padding",
        fill,
        lambda found: "what stands in masked places has a say: " + _into(found),
        least=4,
    )
    yield from rows

    def more(examples: Examples) -> list[Difference]:
        other = with_masked(examples, mask)
        return [] if other is None else case.apart(examples.batch, other, case.learned())

    asked = with_masked(case.examples, mask) is not None
    if not rows and asked:
        yield from case.broken(
            "padding",
            more,
            lambda found: (
                "masked examples are counted: with as many masked ones behind, " + _into(found)
            ),
            least=1,
        )
    elif not rows and filled(case.examples.batch, mask, case.seed) is None:
        raise NotAsked("the batch has no masked places, and mask= is not one of its leaves")


def _into(found: list[Difference]) -> str:
    worst = found[0]
    return f"{worst.path} differs by {percent(worst.error)}"
