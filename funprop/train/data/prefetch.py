"""One thread that is ahead of who uses what it makes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
AHEAD = 1  # items that wait; one more is being made, and one is in use


def ahead(items: Iterator[T]) -> Generator[T]:
    """The same items, made by a thread of their own while those before are used.

    What the thread raises is raised here, in the place of the item. Closed, exhausted or left by an
    exception, the iterator ends its thread, which finishes the item that it is at.

    Example:
      >>> list(ahead(iter(range(3))))
      [0, 1, 2]
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(AHEAD)
    stop = threading.Event()

    def work() -> None:
        error = None
        try:
            for item in items:
                waiting.put((item, None))
                if stop.is_set():
                    return
        except BaseException as raised:
            error = raised
        waiting.put((None, error or StopIteration()))

    thread = threading.Thread(target=work, name="funprop: data", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType]
            del item  # two blocks are in memory, not three
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting for a free place, or be about to
            try:
                waiting.get_nowait()
            except queue.Empty:
                thread.join(0.001)
