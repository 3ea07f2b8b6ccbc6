"""One run by many processes: on one host, started here; on a cluster, started by its scheduler."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

if TYPE_CHECKING:
    from jaxtyping import PyTree

HOST = "127.0.0.1"
# A process that is silent for so long has died, and JAX ends the others.
HEARTBEAT_SECONDS = 10


def launch(n: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Run `function(*args, **kwargs)` in `n` processes of this host that are one run of JAX.

    Where one ends badly the others are killed: they would wait for it forever.

    Args:
      n: how many processes; where there are accelerators, each has one.
      function: importable by its name, as are its arguments.
      *args, **kwargs: of the function.

    Raises:
      ValueError: a process raised one, or what else a wrong argument comes to; its message.
      ChildProcessError: a process ended in another way; says which, and how.
    """
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    problems = context.SimpleQueue()
    # Pickled here, to be unpickled when the process has joined: importing the function's module may
    # start JAX, which would then be one of its own.
    work = pickle.dumps((function, args, kwargs))
    running = [
        context.Process(target=_run, args=(f"{HOST}:{port}", n, i, work, problems), daemon=True)
        for i in range(n)
    ]
    try:
        for process in running:
            process.start()
        _wait(running, problems)
    finally:
        for process in running:
            if process.is_alive():
                process.kill()  # JAX keeps SIGTERM for itself
        for process in running:
            if process.pid is not None:
                process.join()


def _wait(running: list[Any], problems: Any) -> None:
    """Until all have ended well. The first Ctrl-C is theirs, who heed it together."""
    waiting, interrupted = dict(enumerate(running)), False
    while waiting:
        try:
            connection.wait([process.sentinel for process in waiting.values()])
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
        codes = {i: process.exitcode for i, process in waiting.items() if not process.is_alive()}
        if any(codes.values()) and not problems.empty():
            raise ValueError(problems.get())
        # One that was killed has a code below zero; others may have failed for the lack of it.
        for i in sorted(codes, key=lambda i: codes[i]):
            if codes[i]:
                raise ChildProcessError(f"process {i} of {len(running)} ended with code {codes[i]}")
            del waiting[i]


def _run(address: str, n: int, i: int, work: bytes, problems: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        join(address, n, i)
        function, args, kwargs = pickle.loads(work)
        function(*args, **kwargs)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        problems.put(str(error))
        sys.stdout.flush()
        os._exit(1)  # without JAX's farewell, which waits for all others


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
    jax.distributed.initialize(
        address,
        n,
        i,
        local_device_ids=None if i is None else [i],
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
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
