"""One run by many processes of this host, started here."""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any

from funprop.starting import TERMINATED, interrupts_come_again
from funprop.train.interrupts import WORDS, Stopped
from funprop.train.processes import HOST, joined

A_MOMENT = 0.2  # seconds in which a system notes that a process has been killed
TIDYING = 20.0  # seconds in which all that are interrupted take away what they began
UNTIL_KILLED = 60  # seconds; a launcher that lives needs a moment
SIGNALS = {signal.SIGINT, signal.SIGTERM}


def launch(n: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Run `function(*args, **kwargs)` in `n` processes of this host that are one run of JAX.

    Where one ends badly the others are killed: they would wait for it forever. The first Ctrl-C is
    passed on to all of them, the second kills them.

    Args:
      n: how many processes; where there are accelerators, each has one.
      function: importable by its name, as are its arguments.
      *args, **kwargs: of the function.

    Raises:
      ValueError: a process raised one, or what else a wrong argument comes to; its message.
      ChildProcessError: a process ended in another way; says which, and how.
      Stopped: a signal ended them, with all that was reached written.
      KeyboardInterrupt: Ctrl-C ended them.
    """
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    # Pickled here, to be unpickled when the process has joined: importing the function's module may
    # start JAX, which would then be one of its own.
    work = pickle.dumps((function, args, kwargs))
    address, pipes = f"{HOST}:{port}", [context.Pipe() for _ in range(n)]
    running = [
        context.Process(target=_run, args=(address, n, i, work, pipes[i][1]), daemon=True)
        for i in range(n)
    ]
    try:
        # They inherit that signals are blocked, and keep it so: a terminal sends it to the launcher
        # and to them, a person or a scheduler may send it to the launcher alone, and they shall
        # hear of it once, from here.
        resource_tracker.ensure_running()  # where it starts, it lets signals in again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for process in running:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with _terminating():
            _wait(running, [end for end, _ in pipes])
    finally:
        # The first, which is JAX's coordinator, as the last: the others would complain of its end.
        for process in reversed(running):
            if process.is_alive():
                process.kill()  # JAX keeps SIGTERM for itself
        for process in running:
            if process.pid is not None:
                process.join()


def _wait(running: list[Any], pipes: list[Any]) -> None:
    """Until all have ended well. The first signal is theirs, who heed it together."""
    waiting, number = dict(enumerate(running)), 0
    while waiting:
        try:
            ends = [process.sentinel for process in waiting.values()]
            connection.wait(ends + [pipes[i] for i in waiting])
        except KeyboardInterrupt as signalled:
            if number:
                raise
            number = signal.SIGTERM if isinstance(signalled, _Terminated) else signal.SIGINT
            for i in waiting:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    pipes[i].send_bytes(str(int(number)).encode())
        told = _told(waiting, pipes)
        codes = _ended(waiting)
        # Where one was killed, what others say of it is no reason.
        if told and min(codes.values(), default=0) >= 0:
            raise ValueError(next(filter(None, told))) if any(told) else KeyboardInterrupt
        # One that was killed has a code below zero; others may have failed for the lack of it.
        for i in sorted(codes, key=lambda i: codes[i]):
            if codes[i] and not number:
                raise ChildProcessError(f"process {i} of {len(running)} ended with code {codes[i]}")
            if codes[i] and codes[i] != 128 + number:
                raise KeyboardInterrupt
            del waiting[i]
    if number and any(process.exitcode for process in running):
        raise Stopped(WORDS[number])


def _told(waiting: dict[int, Any], pipes: list[Any]) -> list[str]:
    """What processes say of why they cannot go on; nothing of an interrupt.

    The others are given a moment to say so too, or for the system to note that they were killed;
    those that are interrupted, time to take away what they began.
    """
    told = _heard(waiting, pipes)
    end = time.monotonic() + (A_MOMENT if any(told.values()) else TIDYING)
    while (
        told and time.monotonic() < end and told.keys() | _ended(waiting).keys() != waiting.keys()
    ):
        time.sleep(A_MOMENT / 10)
        told |= _heard(waiting, pipes)
    return list(told.values())


def _heard(waiting: dict[int, Any], pipes: list[Any]) -> dict[int, str]:
    heard = {}
    for i in waiting:
        with contextlib.suppress(EOFError, OSError):  # it has ended
            if pipes[i].poll():
                heard[i] = pipes[i].recv()
    return heard


def _ended(processes: dict[int, Any]) -> dict[int, int]:
    """The exit codes of those that have ended."""
    return {i: process.exitcode for i, process in processes.items() if not process.is_alive()}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as Ctrl-C is."""

    number = signal.SIGTERM


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    def note(*_: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(address: str, n: int, i: int, work: bytes, pipe: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))  # but within fit
    interrupts_come_again()

    def unpickled() -> None:
        function, args, kwargs = pickle.loads(work)
        function(*args, **kwargs)

    def tell(error: BaseException) -> int:
        pipe.send("" if isinstance(error, KeyboardInterrupt) else str(error))
        # The others stop waiting for one that ends; but of JAX's coordinator they would complain.
        if i == 0:
            time.sleep(UNTIL_KILLED)
        return 1  # an interrupted one too: 130 is the code of a run that can be gone on with

    try:
        threading.Thread(target=_heed, args=(pipe,), daemon=True).start()
        joined(unpickled, address, n, i, tell)
    except KeyboardInterrupt:  # it was waiting here already
        os._exit(1)


def _heed(pipe: Any) -> None:
    """What the launcher passes on is as the signal is."""
    with contextlib.suppress(EOFError):
        while number := pipe.recv_bytes():
            _thread.interrupt_main(signal.Signals(int(number)))


def _end_with_parent() -> None:
    """However the launcher ends, by SIGKILL too, its processes do not stay behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
