"""One run by many processes: joined by each of them, who then agree on what they do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from funprop.starting import INTERRUPTED
from funprop.train.interrupts import WORDS, Stopped
from funprop.train.output import lasting_output

if TYPE_CHECKING:
    from funprop.typing import PyTree

HOST = "127.0.0.1"
# A process that is silent for so long has died, and JAX ends the others.
HEARTBEAT_SECONDS = 10
LONGEST_WORDS = 8192  # bytes
# What ends a process with a sentence; anything else is a mistake of ours, with a traceback.
TOLD = (ValueError, TypeError, ModuleNotFoundError, FloatingPointError, OSError, KeyboardInterrupt)


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
        jax.distributed.shutdown()  # all stop together; the coordinator waits for the others
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    else:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


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


def largest(number: int) -> int:
    """The largest number that any process has; all of them must ask."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number, np.int32)).max())


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
