"""Which tests are slow: measured, and kept in slow.txt; others are marked where they stand.

What a newcomer runs shall take five minutes on two cores. So the tests that take the
most processor time are marked `slow`, until what is left takes `LEFT` seconds of it.
`python -m pytest --record-slow` measures all that bear no mark of their own, and writes the list.
"""

import os
from pathlib import Path

import pytest

LIST = Path(__file__).parent / "slow.txt"
LEFT = 370.0  # seconds of processor time, where no program was compiled before

began = pytest.StashKey[float]()
times: dict[str, float] = {}  # of those that ran, in the process that collects what workers report


def mark(items):
    listed = set(LIST.read_text().splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)


def begin(item):
    item.stash[began] = _processor_time()


def end(item):
    item.user_properties.append(("processor", _processor_time() - item.stash[began]))


def note(report):
    told = dict(report.user_properties)
    if report.when == "call" and "processor" in told:  # no doctest, which no conftest hears of
        times[report.nodeid] = told["processor"]


def record():
    left = sum(times.values())
    listed = []
    for name in sorted(times, key=lambda name: -times[name]):
        if left <= LEFT:
            break
        listed.append(name)
        left -= times[name]
    LIST.write_text("".join(f"{name}\n" for name in sorted(listed)))


def _processor_time():
    """Of this process and of those that it started, and that ended."""
    return sum(os.times()[:4])
