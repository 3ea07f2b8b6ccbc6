"""The collectives of a compiled program, each as often as its loop runs."""

import math
import re
from typing import NamedTuple

BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    r'.*op_name="([^"]*)"'
)
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One instruction: the bytes of each array that it gives on a device, and how often it runs."""

    kind: str
    name: str
    sizes: tuple[int, ...]
    times: int


def collectives(text: str) -> list[Collective]:
    """All of an HLO module."""
    lines: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            current = found[2]
            entry = current if found[1] else entry
        lines.setdefault(current, []).append(line)
    given: list[Collective] = []

    def visit(computation: str, times: int) -> None:
        for line in lines.get(computation, ()):
            if found := COLLECTIVE.search(line):
                sizes = tuple(
                    BYTES[kind] * math.prod(map(int, filter(None, shape.split(","))))
                    for kind, shape in ARRAY.findall(found[1])
                )
                given.append(Collective(found[2], found[3], sizes, times))
            elif found := CALLED.search(line):
                trips = TRIPS.search(line)
                if " while(" in line and not trips:
                    raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
                visit(found[1], times * (int(trips[1]) if trips else 1))

    visit(entry, 1)
    return given


def sent(one: Collective, n: int) -> float:
    """Bytes that a device sends for a collective of `n`, by the ring that moves the fewest.

    Source: Thakur et al., "Optimization of Collective Communication Operations in MPICH" (2005).
    """
    part = (n - 1) / n
    each = {
        "all-gather": part,
        "all-reduce": 2 * part,
        "reduce-scatter": n - 1,
        "all-to-all": part,
        "collective-permute": 1,
    }
    return one.times * each[one.kind] * sum(one.sizes)
