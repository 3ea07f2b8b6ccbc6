"""Ctrl-C as a wish, which is heeded when there is something to return."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C is only noted; the function given tells whether there was one."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (
        *(signal.SIG_IGN, None),  # left ignored, as for `nohup`; or in hands that are not Python's
    ):
        yield lambda: False  # only the main thread may handle signals
        return
    seen = False

    def note(*_: Any) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)
