"""The same update whatever a batch is cut into, and on however many devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from funprop.verify.training.batches import Examples, unequal
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.closeness import Difference, differences
from funprop.verify.training.drawing import drawn
from funprop.verify.training.report import StepCheck, percent
from funprop.verify.training.running import Steps, Traced


def microbatches(case: Case) -> Iterator[StepCheck]:
    """Cut into 1, 2 or 4 parts, a batch gives the same update."""
    make = case.said["microbatches"]
    if make is None:
        raise NotAsked("give microbatches=, n -> the update that cuts a batch into n parts")
    rows = list(_whatever(case, "microbatches", make, (1, 2, 4), "parts"))
    yield from rows or _masks(case, make)


def _masks(case: Case, make: Callable[[int], Any]) -> Iterator[StepCheck]:
    """Each part must draw its own numbers: as many in all as the whole batch does."""
    if not case.draws:
        return
    counts = []
    for n in (1, 2):
        steps = case.steps.of(make(n))
        traced = steps.traced(case.here, case.examples.batch)
        if not isinstance(traced, Traced):
            return
        found = drawn(steps, traced, case.here, case.examples.batch, 0)
        counts.append(sum(draw.size for draw in found))
    if counts[1] <= 0.75 * counts[0]:
        yield StepCheck(
            "microbatches",
            f"cut in two, a batch draws {counts[1]} random numbers, as a whole {counts[0]}: all "
            "parts have the same dropout mask",
        )


def devices(case: Case) -> Iterator[StepCheck]:
    """On one device or many, the update is the same beyond rounding."""
    many = jax.device_count()
    if many < 2:
        raise NotAsked(
            "there is one device (8 of a CPU: XLA_FLAGS=--xla_force_host_platform_device_count=8)"
        )
    make = case.said["devices"]
    if make is not None:
        yield from _whatever(case, "devices", make, (1, 2, 4, 8), "devices", most=many)
        return
    n = max(k for k in range(1, many + 1) if case.examples.n % k == 0)
    if n < 2:
        raise NotAsked(f"{case.examples.n} examples cannot be shared out to {many} devices")
    mesh = Mesh(jax.devices()[:n], ("batch",))

    def law(examples: Examples) -> list[Difference]:
        spec = PartitionSpec(*(None,) * examples.axis, "batch")
        shared = examples.mapped(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)))
        everywhere = NamedSharding(mesh, PartitionSpec())
        arrays = [jax.device_put(leaf, everywhere) for leaf in case.here]
        want, got = case.run(examples.batch), case.run(shared, arrays)
        return differences(
            got, want, case.here, case.noise(examples.batch), case.layout.paths, case.all_places()
        )

    yield from case.broken(
        "devices", law, lambda found: f"on {n} devices {_differs(found)}", least=n
    )


def _whatever(
    case: Case,
    name: str,
    make: Callable[[int], Any],
    numbers: tuple[int, ...],
    what: str,
    most: int = 1 << 30,
) -> Iterator[StepCheck]:
    steps: dict[int, Steps] = {}
    asked = 0
    for n in numbers:
        if n > most or case.examples.n % n:
            continue
        steps[n] = case.steps.of(make(n))

        def law(examples: Examples, n: int = n) -> list[Difference]:
            batch = unequal(examples, case.said["mask"]).batch
            want = case.run(batch)
            got = case.on(steps[n], batch)
            return differences(
                got, want, case.here, case.noise(batch), case.layout.paths, case.all_places()
            )

        def sentence(found: list[Difference], n: int = n) -> str:
            return f"in {n} {what} {_differs(found)}"

        asked += 1
        rows = case.broken(name, law, sentence, least=n)
        if rows:
            yield rows[0]
            return
    if not asked:
        raise NotAsked(f"{case.examples.n} examples cannot be cut into {what}")


def _differs(found: list[Difference]) -> str:
    return f"{found[0].path} differs by {percent(found[0].error)} from the update as it was given"
