"""While the `funprop` command imports what it needs, Ctrl-C ends it in one line.

The package is imported before the command's first line runs, and that takes a second or two.
Nothing happens here where the package is imported by anything else.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

# What a process ends with after Ctrl-C, and where a scheduler ended it, as shells say it.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
MODULES = ("funprop", "funprop.cli")


def _is_the_command() -> bool:
    words = sys.orig_argv
    if "-m" in words:
        return words[words.index("-m") + 1 :][:1] in ([name] for name in MODULES)
    script = sys.argv[0] if sys.argv else ""
    # Processes that the command starts have its arguments, but were not started by this script.
    return script in words and Path(script).stem == "funprop"


def _end(*_: Any) -> None:
    # Not by an exception: an import under way may turn it into another one.
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def started() -> None:
    """From here on Ctrl-C is a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts_come_again()


def interrupts_come_again() -> None:
    """Where an interrupt is raised in what Python only prints and goes on from (a callback of the
    collection of garbage or of a weak reference), it comes again a moment later."""
    sys.unraisablehook = _again


def _again(unraisable: Any) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = getattr(unraisable.exc_value, "number", signal.SIGINT)
    threading.Timer(0.01, _thread.interrupt_main, (number,)).start()


if (
    _is_the_command()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # an ignored one stays so
):
    signal.signal(signal.SIGINT, _end)
