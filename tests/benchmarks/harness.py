"""How the benchmarks measure: A B A B in one process, and the ratio pair by pair."""

import datetime
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax


class Ratio(NamedTuple):
    """The ratio of two times over many pairs: its median and its quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} (quartiles {self.low:.3f} to {self.high:.3f})"


def ratio(
    ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int, calls: int = 1
) -> tuple[Ratio, Ratio]:
    """Time of `ours` over that of `theirs`; and, for the noise, of `theirs` over itself.

    Each sample is `calls` calls and a wait for the last one's result. The two alternate, so that
    each finds the caches as the other left them; one of `ours` is held against the mean of its two
    neighbours.
    """

    def seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(calls - 1):
            run()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    for run in (ours, theirs):
        seconds(run)  # compiles, warms up
    their, our = [seconds(theirs)], []
    for _ in range(pairs):
        our.append(seconds(ours))
        their.append(seconds(theirs))
    before, after = np.array(their[:-1]), np.array(their[1:])

    def summed(ratios: Any) -> Ratio:
        low, median, high = np.percentile(ratios, [25, 50, 75])
        return Ratio(float(median), float(low), float(high))

    return summed(2 * np.array(our) / (before + after)), summed(after / before)


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Of all cores together, user and system: what a busy machine disturbs less than the clock."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    start = spent()
    jax.block_until_ready(run())
    return spent() - start


class Pair(NamedTuple):
    """Ours and the expert's, each a call that makes one update; and their compiled programs."""

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    compiled: tuple[Any, Any]


def paired(ours: tuple[Any, Any], theirs: tuple[Any, Any], batch: Any) -> Pair:
    """Two of `(update, state)`, to be updated on one batch again and again."""

    def again(update: Any, state: Any) -> Callable[[], Any]:
        def run() -> Any:
            nonlocal state
            state, told = update(state, batch)
            return told

        return run

    compiled = [update.lower(state, batch).compile() for update, state in (ours, theirs)]
    return Pair(again(*ours), again(*theirs), (compiled[0], compiled[1]))


def temporary(jitted: Any, *args: Any) -> int:
    """Bytes that the compiled function holds beside its arguments and outputs."""
    return jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes


def flops(jitted: Any, *args: Any) -> int:
    """Floating-point operations of the compiled function, as XLA counts them."""
    return int(jitted.lower(*args).compile().cost_analysis()["flops"])


def header() -> None:
    """Print what this was measured on."""
    device = jax.devices()[0]
    print(
        f"{datetime.date.today()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{device.platform} ({device.device_kind}), Python {platform.python_version()}, "
        f"jax {jax.__version__}, optax {optax.__version__}"
    )
