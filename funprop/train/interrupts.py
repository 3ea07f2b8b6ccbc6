"""Signals to stop as a wish, which is heeded when there is something to return."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED, TERMINATED = "interrupted", "terminated"
WORDS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
CODES = {word: 128 + number for number, word in WORDS.items()}  # as shells say it


class Stopped(SystemExit):
    """A signal has ended a run, that can be gone on with: the process ends with the code for it.

    Args:
      word: `"interrupted"` or `"terminated"`.
    """

    def __init__(self, word: str) -> None:
        super().__init__(CODES[word])


@contextmanager
def interrupts(terminating: bool = False) -> Iterator[Callable[[], str]]:
    """Within, the first Ctrl-C is only noted; the function given tells whether there was one.

    Args:
      terminating: whether SIGTERM, by which schedulers end what runs, is noted too.

    Yields:
      What tells: `"interrupted"` or `"terminated"` after a signal, `""` before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield str  # only the main thread may handle signals
        return
    seen: list[str] = []

    def note(number: int, _: Any) -> None:
        seen.append(WORDS[signal.Signals(number)])
        signal.signal(number, before[signal.Signals(number)])

    wanted = (signal.SIGINT, signal.SIGTERM) if terminating else (signal.SIGINT,)
    found = {number: signal.getsignal(number) for number in wanted}
    # What is ignored stays so, as for `nohup`; and what is in hands that are not Python's.
    before: dict[int, Any] = {n: f for n, f in found.items() if f not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: seen[0] if seen else ""
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)
