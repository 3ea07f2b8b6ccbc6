"""A place where processes wait for each other, and hear of one that will not come."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

import jax

from funprop.train import processes

MEETINGS = itertools.count()  # of the first process: each has another name
STAGES = 2  # of one save: all is written; all of it has its name


class NotComingError(Exception):
    """Another process has failed; the message says which, and why."""


class Meeting:
    """What the threads of a run's processes wait at, where one of them may fail.

    A barrier of JAX's waits for all of them, however one has ended, until its time is up. Here each
    leaves a word with the coordinator instead: that it is there, or what went wrong.
    """

    def __init__(self) -> None:
        self._name, self._stage = "", 0

    def agree(self) -> None:
        """On a name for this meeting; all processes must call it."""
        if jax.process_count() > 1 and not self._name:
            self._name = f"funprop/meeting/{processes.of_first(next(MEETINGS))}"

    def wait(self, *, key: str, timeout_ms: int) -> None:
        """Until all are here: the `barrier_sync_fn` of orbax, which calls it at every stage.

        Raises:
          NotComingError: one has failed.
          TimeoutError: one has said nothing in `timeout_ms`.
        """
        del key  # it is of a process's own count, which may be another after a failure
        stage, self._stage = self._stage, self._stage + 1
        until = time.monotonic() + timeout_ms / 1000
        _client().key_value_set(self._key(stage, jax.process_index()), "here")
        for i in range(jax.process_count()):
            left = max(1, int(1000 * (until - time.monotonic())))
            try:
                word = _client().blocking_key_value_get(self._key(stage, i), left)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                raise TimeoutError(f"process {i} has said nothing for {timeout_ms} ms") from None
            if word != "here":
                raise NotComingError(f"process {i}: {word}")

    def leave(self, problem: str) -> None:
        """Tell the others that this process will not come any more."""
        if jax.process_count() == 1 or not self._name:
            return
        for stage in range(self._stage, self._stage + STAGES):
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # it has been there already
                _client().key_value_set(self._key(stage, jax.process_index()), problem or "failed")

    def clear(self) -> None:
        """Take this process's words away, when all have heard them."""
        if jax.process_count() > 1 and self._name:
            _client().key_value_delete(f"{self._name}/{jax.process_index()}/")

    def _key(self, stage: int, process: int) -> str:
        return f"{self._name}/{process}/{stage}"


def _client() -> Any:
    """Of the coordinator that `jax.distributed.initialize` has joined; JAX shows it here alone."""
    from jax._src import distributed

    return distributed.global_state.client
