"""Standard output that a run outlives: `| head -1`, a closed terminal, a locale without accents."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


class Lasting:
    """A text stream that, once it cannot be written to, swallows what it is given.

    Attributes:
      problem: why not, where it is no reader that had seen enough.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.problem: OSError | None = None
        self.ended = False

    def write(self, text: str) -> int:
        if not self.ended:
            try:
                self.stream.write(text)
            except OSError as error:
                self._end(error)
        return len(text)

    def flush(self) -> None:
        if not self.ended:
            try:
                self.stream.flush()
            except OSError as error:
                self._end(error)

    def _end(self, error: OSError) -> None:
        self.ended = True
        if not isinstance(error, BrokenPipeError):
            self.problem = OSError(error.errno, error.strerror, "standard output")
        # What is buffered has nowhere to go, and Python would try once more at its end.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def lasting_output() -> Lasting:
    """Make this process's standard output one that a run outlives; what its encoding does not have
    is written as `?`."""
    if sys.stdout is None:  # closed by who started this
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # as long as the process
    if not isinstance(sys.stdout, Lasting):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        sys.stdout = Lasting(sys.stdout)
    return sys.stdout
