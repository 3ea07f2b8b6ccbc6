"""One run by many processes: on one host, started here; on a cluster, started by its scheduler."""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from funprop.starting import INTERRUPTED, TERMINATED
from funprop.train.interrupts import WORDS, Stopped
from funprop.train.output import lasting_output

if TYPE_CHECKING:
    from funprop.typing import PyTree

HOST = "127.0.0.1"
# A process that is silent for so long has died, and JAX ends the others.
HEARTBEAT_SECONDS = 10
A_MOMENT = 0.2  # seconds in which a system notes that a process has been killed
LONGEST_WORDS = 8192  # bytes
SIGNALS = {signal.SIGINT, signal.SIGTERM}
# What ends a process with a sentence; anything else is a mistake of ours, with a traceback.
TOLD = (ValueError, TypeError, ModuleNotFoundError, FloatingPointError, OSError, KeyboardInterrupt)


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
    problems = context.SimpleQueue()
    # Pickled here, to be unpickled when the process has joined: importing the function's module may
    # start JAX, which would then be one of its own.
    work = pickle.dumps((function, args, kwargs))
    address, interrupts = f"{HOST}:{port}", [context.Pipe(duplex=False) for _ in range(n)]
    running = [
        context.Process(
            target=_run, args=(address, n, i, work, problems, interrupts[i][0]), daemon=True
        )
        for i in range(n)
    ]
    try:
        # They inherit that signals are blocked, and keep it so: a terminal sends it to the launcher
        # and to them, a person or a scheduler may send it to the launcher alone, and they shall
        # hear of it once, from here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for process in running:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with _terminating():
            _wait(running, problems, [end for _, end in interrupts])
    finally:
        for process in running:
            if process.is_alive():
                process.kill()  # JAX keeps SIGTERM for itself
        for process in running:
            if process.pid is not None:
                process.join()


def _wait(running: list[Any], problems: Any, interrupts: list[Any]) -> None:
    """Until all have ended well. The first signal is theirs, who heed it together."""
    waiting, number = dict(enumerate(running)), 0
    while waiting:
        try:
            connection.wait([process.sentinel for process in waiting.values()])
        except KeyboardInterrupt as signalled:
            if number:
                raise
            number = signal.SIGTERM if isinstance(signalled, _Terminated) else signal.SIGINT
            for i in waiting:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    interrupts[i].send_bytes(str(int(number)).encode())
        codes = _ended(waiting)
        if any(codes.values()) and not problems.empty():
            # Where one was killed, what others say of it is no reason.
            time.sleep(A_MOMENT)
            codes = _ended(waiting)
            if min(codes.values()) >= 0:
                raise ValueError(problems.get())
        # One that was killed has a code below zero; others may have failed for the lack of it.
        for i in sorted(codes, key=lambda i: codes[i]):
            if codes[i] and not number:
                raise ChildProcessError(f"process {i} of {len(running)} ended with code {codes[i]}")
            if codes[i] and codes[i] != 128 + number:
                raise KeyboardInterrupt
            del waiting[i]
    if number and any(process.exitcode for process in running):
        raise Stopped(WORDS[number])


def _ended(processes: dict[int, Any]) -> dict[int, int]:
    """The exit codes of those that have ended."""
    return {i: process.exitcode for i, process in processes.items() if not process.is_alive()}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as Ctrl-C is."""


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


def _run(address: str, n: int, i: int, work: bytes, problems: Any, interrupts: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))  # but within fit

    def unpickled() -> None:
        function, args, kwargs = pickle.loads(work)
        function(*args, **kwargs)

    def tell(error: BaseException) -> int:
        if not isinstance(error, KeyboardInterrupt):
            problems.put(str(error))
        return 1  # an interrupted one too: 130 is the code of a run that can be gone on with

    try:
        threading.Thread(target=_heed, args=(interrupts,), daemon=True).start()
        joined(unpickled, address, n, i, tell)
    except KeyboardInterrupt:  # it was waiting here already
        os._exit(1)


def _heed(interrupts: Any) -> None:
    """What the launcher passes on is as the signal is."""
    with contextlib.suppress(EOFError):
        while number := interrupts.recv_bytes():
            _thread.interrupt_main(signal.Signals(int(number)))


def _tell(error: BaseException) -> int:
    """Say what ended this process, and what code it shall end with."""
    if isinstance(error, KeyboardInterrupt):
        print(WORDS[signal.SIGINT], file=sys.stderr)
        return INTERRUPTED
    print(f"error: {error}", file=sys.stderr)
    return 1


def joined(
    function: Callable[[], Any],
    address: str | None = None,
    n: int | None = None,
    i: int | None = None,
    tell: Callable[[BaseException], int] = _tell,
) -> None:
    """Call `function` in this process as one of a run, found as `join` finds it.

    Where it raises, this process ends at once. Otherwise JAX's farewell, which waits for all the
    others, would wait for those that wait for this one.
    """
    code = 1
    try:
        join(address, n, i)
        function()
    except TOLD as error:
        code = tell(error)
    except Stopped as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    else:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """However the launcher ends, by SIGKILL too, its processes do not stay behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def join(address: str | None = None, n: int | None = None, i: int | None = None) -> None:
    """Make this process one of a run; all but the first print nothing from here on.

    Without arguments JAX asks the scheduler: SLURM, Open MPI, Kubernetes and TPU pods.
    """
    # SIGTERM is heeded by fit; JAX would take it for itself.
    jax.config.update("jax_enable_preemption_service", False)
    # Nobody elsewhere need reach the coordinator of processes of this host.
    own = address is not None and address.rpartition(":")[0] == HOST
    try:
        jax.distributed.initialize(
            address,
            n,
            i,
            local_device_ids=None if i is None else [i],
            coordinator_bind_address=address if own else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        if address is not None:
            raise
        raise ValueError(f"JAX has found no scheduler that started this: {error}") from None
    lasting_output()
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # as long as the process


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def check_same(data: PyTree, settings: dict[str, Any]) -> None:
    """Raise a `ValueError` in all processes where not all have the same data and settings."""
    if jax.process_count() == 1:
        return
    settings = {**settings, "jax": jax.__version__, "numpy": np.__version__}
    parts = {"data": hashlib.sha256(), "settings": hashlib.sha256()}
    for leaf in jax.tree.leaves(data):
        parts["data"].update(f"{leaf.dtype}{leaf.shape}".encode())
        parts["data"].update(np.ascontiguousarray(leaf).tobytes())
    parts["settings"].update(json.dumps(settings, sort_keys=True, default=str).encode())
    for what, part in parts.items():
        of_all = multihost_utils.process_allgather(np.frombuffer(part.digest(), np.uint8))
        for i, of_one in enumerate(of_all):
            if (of_one != of_all[0]).any():
                raise ValueError(f"process {i} has other {what} than process 0")


def anywhere(flag: bool) -> bool:
    """Whether `flag` holds in any process; all of them must ask, and get the same answer."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def of_first(number: int) -> int:
    """The number that the first process has; all of them must ask."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.asarray(number, np.int32)))


def words_of_first(words: str) -> str:
    """The words that the first process has; all of them must ask."""
    if jax.process_count() == 1:
        return words
    told = np.zeros(LONGEST_WORDS, np.uint8)
    encoded = words.encode(errors="surrogateescape")[:LONGEST_WORDS]
    told[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    heard = np.asarray(multihost_utils.broadcast_one_to_all(told), np.uint8)
    return heard.tobytes().rstrip(b"\0").decode(errors="surrogateescape")
