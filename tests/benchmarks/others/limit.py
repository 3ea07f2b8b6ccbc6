"""A limit to the time of one call."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class TooLong(BaseException):
    """No `Exception`, so that nothing that tries a function takes it for the function's own."""


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise `TooLong` once the body has run for that long (and a compilation in it has ended)."""

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
