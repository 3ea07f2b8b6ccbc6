"""Laws of a batch: in another order, every example twice, one example short."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from funprop.verify.training.batches import Examples, masked_whole, unequal
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.closeness import Difference
from funprop.verify.training.layout import same_bits, wide
from funprop.verify.training.report import StepCheck, percent


def order(case: Case) -> Iterator[StepCheck]:
    """Examples in another order give the same update and the same metrics."""
    _several(case, 2)

    def law(examples: Examples) -> list[Difference]:
        examples = unequal(examples, case.said["mask"])
        return case.apart(examples.batch, examples.turned(case.seed), case.all_places())

    yield from case.broken("order", law, lambda found: _order_sentence(case, found))


def short(case: Case) -> Iterator[StepCheck]:
    """A last batch that is one example short is used whole."""
    _several(case, 3)

    def law(examples: Examples) -> list[Difference]:
        fewer = examples.part(examples.n - 1)
        return case.apart(fewer.batch, fewer.turned(case.seed), case.all_places())

    n = case.examples.n - 1
    yield from case.broken(
        "short",
        law,
        lambda found: f"of a batch of {n} examples " + _order_sentence(case, found, n),
        least=3,
    )


def _order_sentence(case: Case, found: list[Difference], n: int | None = None) -> str:
    examples = case.examples if n is None else case.examples.part(n)
    silent = without_a_say(case, examples)
    if silent:
        few = 2 * len(silent) <= examples.n
        last = silent == list(range(examples.n - len(silent), examples.n))
        cause = ": what does not divide is left out" if few and last else ""
        return f"{_named(silent, examples.n)} no say{cause}"
    if all(d.path.startswith("metric ") for d in found):
        return f"{found[0].path} depends on the order of the examples: parts are weighted alike"
    return (
        "the update depends on the order of the examples: means of means, something done to each "
        "part before they are averaged, or targets that belong to other examples"
    )


def _named(places: list[int], n: int) -> str:
    """`example 3 of 8 has`, `examples 2, 3, 4 and 4 more of 8 have`."""
    if len(places) == 1:
        return f"example {places[0] + 1} of {n} has"
    few = places if len(places) <= 4 else places[:3]
    more = f" and {len(places) - len(few)} more" if len(places) > len(few) else ""
    return f"examples {', '.join(str(i + 1) for i in few)}{more} of {n} have"


def without_a_say(case: Case, examples: Examples) -> list[int]:
    """Which examples, but for masked ones, change nothing where another stands in their place."""
    n = examples.n
    masked = masked_whole(examples, case.said["mask"])
    base = case.run(examples.batch)
    silent = []
    for i in range(n) if n <= 32 else (0, n // 2, n - 2, n - 1):
        if i in masked:
            continue
        rows = np.arange(n)
        rows[i] = (i + 1) % n
        other = examples.taken(rows)
        alike = all(
            same_bits(a, b)
            for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(examples.batch), strict=True)
            if hasattr(a, "dtype")
        )
        if not alike and all(map(same_bits, case.run(other).arrays, base.arrays)):
            silent.append(i)
    return silent if len(silent) < n - len(masked) else []


def twice(case: Case) -> Iterator[StepCheck]:
    """A batch with every example twice gives the update of the batch, as its loss is a mean."""
    _several(case, 1)
    if case.said["reduction"] == "sum":
        raise NotAsked("the loss was said to be a sum over examples")

    def law(examples: Examples) -> list[Difference]:
        examples = unequal(examples, case.said["mask"])
        places = case.learned()
        return case.apart(examples.batch, examples.twice(), places, metrics=False)

    def sentence(found: list[Difference]) -> str:
        if _doubles(case):
            return (
                "the gradient doubles where every example is there twice: the loss is summed, not "
                'averaged (say reduction="sum" if that is meant)'
            )
        return (
            f"the update differs by {percent(found[0].error)} where every example is there twice: "
            "parts of a batch are not weighted by their number of examples"
        )

    yield from case.broken("twice", law, sentence, least=1)


def _doubles(case: Case) -> bool:
    """Whether the gradient doubles with the batch: the moments that are made of it alone, or the
    change of the params where there are none."""
    arrays = list(case.here)
    moments = case.layout.moments(arrays)
    for i in moments:
        arrays[i] = np.zeros(np.shape(arrays[i]), arrays[i].dtype)
    one = case.run(case.examples.batch, arrays)
    two = case.run(case.examples.twice(), arrays)
    for i in moments or case.layout.params:
        a, b = (wide(new.arrays[i]) - wide(arrays[i]) for new in (one, two))
        k = int(np.argmax(np.abs(a))) if a.size else 0
        if a.any() and abs(b.reshape(-1)[k] / a.reshape(-1)[k] - 2) < 1e-3:
            return True
    return False


def _several(case: Case, least: int) -> None:
    if case.examples.n < least:
        raise NotAsked(f"the batch has {case.examples.n} examples along axis {case.examples.axis}")
