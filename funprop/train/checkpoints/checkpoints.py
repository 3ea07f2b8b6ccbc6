"""The checkpoints of a run: written while it goes on, whole or not at all, read with care."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from funprop.checks import check_string, described
from funprop.train import processes
from funprop.train.checkpoints import folder as places
from funprop.train.checkpoints import reading, written
from funprop.train.checkpoints.description import as_json, checked
from funprop.train.checkpoints.saving import Saving
from funprop.values import real_number, whole_number

if TYPE_CHECKING:
    import os

    from funprop.typing import PyTree

TRIES, PAUSE = 3, 1.0  # of a last save; seconds between them


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      state: as it was, in the structure and on the devices of what was given for it.
      update: how many updates had been made.
      notes: what was stored beside it.
    """

    state: Any
    update: int
    notes: dict[str, Any]


class Checkpoint(NamedTuple):
    """One that is there.

    Attributes:
      update: how many updates had been made.
      problem: what is wrong with it; empty where all of it is what was written.
      nbytes: on the disk.
      notes: what was stored beside the state; empty where that cannot be read.
      value: of the metric that the best is chosen by, where there is one.
    """

    update: int
    problem: str
    nbytes: int
    notes: dict[str, Any]
    value: float | None


class Checkpoints:
    """A folder of checkpoints, for `fit` or for a loop of your own.

    Each holds a whole state, written by orbax: in the background, and under its name only when all
    of it is there. A digest of every leaf is stored with it. A checkpoint that is damaged is passed
    over with a warning when one is restored, and the one before it is taken. A save that fails is
    told in a warning, tried again, and ends no training.

    Needs the packages orbax-checkpoint and filelock (`funprop[train]`).

    Args:
      folder: made where it is not there. While it is written to, no other process may.
      seconds: at most so many seconds of work are lost, about: one is due then.
      updates: one is due at every so many updates too.
      keep: how many of the newest stay.
      metric: an entry of the history, such as `"held_out/loss"`: the checkpoint with the best value
        stays too.
      best: `min` for a loss, `max` for an accuracy.
      settings: what else must be the same for `fit` to go on, such as the learning rate; JSON.
      override: whether `fit` goes on with other settings than those that it finds.

    Raises:
      TypeError: an argument that is something else.
      ValueError: a number out of its range.
      ModuleNotFoundError: a package is missing.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> folder = tempfile.mkdtemp()
      >>> with Checkpoints(folder, keep=2) as checkpoints:
      ...     for update in (10, 20, 30):
      ...         checkpoints.save({"w": jnp.full(2, update)}, update)
      >>> found = Checkpoints(folder).restore({"w": jnp.zeros(2, jnp.int32)})
      >>> found.state["w"].tolist(), found.update
      ([30, 30], 30)
      >>> [kept.update for kept in Checkpoints(folder).all()]
      [20, 30]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        seconds: float = 30.0,
        updates: int | None = None,
        keep: int = 3,
        metric: str | None = None,
        best: Callable[..., Any] = min,
        settings: dict[str, Any] | None = None,
        override: bool = False,
    ) -> None:
        if not isinstance(folder, str | places.PathLike):
            raise TypeError(f"folder must be a path, got {described(folder)}")
        self.folder, self.seconds = Path(folder).absolute(), real_number(seconds, "seconds")
        if not self.seconds >= 0:
            raise ValueError(f"seconds must be at least 0, got {seconds}")
        self.updates = None if updates is None else whole_number(updates, "updates", 1)
        self.keep = whole_number(keep, "keep", 1)
        if metric is not None:
            check_string("metric", metric)
        if best is not min and best is not max:
            raise TypeError(f"best must be min or max, got {described(best)}")
        self.metric, self.best = metric, best
        self.settings, self.override = as_json(settings, "settings"), bool(override)
        places.check_installed()
        self._values: dict[int, float] = {}  # of the metric, by update
        self._damaged: set[int] = set()
        self._saving = Saving(self.folder)
        self._last = time.monotonic()

    # ------------------------------------------------------------------------------------ reading

    def restore(self, like: PyTree, update: int | None = None) -> Restored | None:
        """The newest checkpoint that is whole; `None` where there is none at all.

        Args:
          like: a state of the same structure, or one of specs: what is split over devices in it
            will be so again, however it was when it was written.
          update: that of which; without it, the newest.

        Raises:
          ValueError: it is one of another state (names the first leaf that differs), or those that
            are there are all damaged.
        """
        self._settle()
        there = places.updates_in(self.folder)
        if update is not None:
            there = [found for found in there if found == update]
            if not there:
                raise ValueError(f"{self.folder} has no checkpoint of update {update}")
        problem = ""
        for found in reversed(there):
            place = places.place(self.folder, found)
            state, description = reading.read(self._saving.checkpointer, place, like)
            if not isinstance(description, str):
                self._saving.newest = found
                return Restored(state, found, description.notes)
            problem = description
            self._damaged.add(found)
            warnings.warn(
                f"the checkpoint {place} is damaged and passed over: {problem}", stacklevel=2
            )
        if there:
            raise ValueError(f"no checkpoint in {self.folder} is whole: {problem}")
        return None

    def restore_best(self, like: PyTree) -> Restored | None:
        """As `restore`, the one with the best value of `metric`; `None` where none has one."""
        found = _numbers({c.update: c.value for c in self.all()})
        return self.restore(like, self.best(found, key=found.__getitem__)) if found else None

    def all(self, check: bool = False) -> list[Checkpoint]:
        """Those that are there, the oldest first.

        Args:
          check: whether each is read as a whole, and its digests compared; otherwise its notes
            alone are.
        """
        self._settle()
        return [self._looked_at(update, check) for update in places.updates_in(self.folder)]

    def _looked_at(self, update: int, check: bool) -> Checkpoint:
        place = places.place(self.folder, update)
        found, problem = reading.looked_at(self._saving.checkpointer, place, check)
        value = found.value if found and found.metric == self.metric else None
        notes = found.notes if found else {}
        return Checkpoint(update, problem, places.nbytes(place), notes, value)

    # ------------------------------------------------------------------------------------ writing

    def due(self, update: int) -> bool:
        """Whether one should be saved now; all processes of a run must ask."""
        update = whole_number(update, "update", 0)
        if update == self._saving.newest:
            return False
        if self.updates is not None and update % self.updates == 0:
            return True
        # After one that failed sooner, but not at once.
        failures = self._saving.failures
        wait = min(self.seconds, 2.0**failures) if failures else self.seconds
        return bool(processes.of_first(time.monotonic() - self._last >= wait))

    def better(self, value: float | None) -> bool:
        """Whether this value of the metric is better than that of every checkpoint there is."""
        if value is None or math.isnan(value):
            return False
        known = _numbers(self._values).values()
        return value not in known and self.best(value, *known, value) == value

    def save(
        self,
        state: PyTree,
        update: int,
        notes: dict[str, Any] | None = None,
        value: float | None = None,
    ) -> None:
        """Write a checkpoint; returns when the state has been copied, before it is on the disk.

        One that is under way is waited for. Where this or that one fails, a warning says so.

        Args:
          state: any pytree of arrays, random keys and numbers; may be donated afterwards.
          update: how many updates have been made: its name.
          notes: what else shall be stored; a dict that JSON has.
          value: of the metric that the best is chosen by.

        Raises:
          TypeError: a leaf is none of these, as within `jit`, or another argument something else.
          ValueError: `update` is negative, a leaf donated, or another process writes there.
        """
        update, notes, value = checked(update, notes, value)
        written.check_leaves(state)
        self._settle()
        self.open()
        self._last = time.monotonic()
        self._saving.tell_of_newer(update, self._damaged)
        if self._saving.begin(state, update, notes, value, self.metric) and value is not None:
            self._values[update] = value

    def _settle(self) -> None:
        """Wait for the one that is under way; then take away those that need not stay."""
        if not self._saving.settle():
            return
        assert self._saving.newest is not None
        self._damaged.discard(self._saving.newest)
        if processes.first():
            places.clear(self.folder, self._to_keep())

    def _to_keep(self) -> set[int]:
        """Of those up to the newest: what is beyond it is not of this run."""
        there = [u for u in places.updates_in(self.folder) if u not in self._damaged]
        ours = [u for u in there if self._saving.newest is None or u <= self._saving.newest]
        kept = {*ours[-self.keep :], *(u for u in there if u not in ours)}
        if values := {u: v for u, v in _numbers(self._values).items() if u in there}:
            kept.add(self.best(values, key=values.__getitem__))
        return kept

    def finish(self, state: PyTree, update: int, *args: Any) -> bool:
        """Save a last one and wait until it is on the disk; whether it is. Tried three times; then
        a warning says what there is."""
        self._settle()
        for tried in range(TRIES):
            if self._saving.newest == update:
                break
            time.sleep(PAUSE if tried else 0)
            self.save(state, update, *args)
            self._settle()
        if (newest := self._saving.newest) == update:
            return True
        has = "none" if newest is None else f"that of update {newest}"
        warnings.warn(
            f"the last checkpoint, of update {update}, could not be saved: the newest in "
            f"{self.folder} is {has}",
            stacklevel=3,
        )
        return False

    def close(self) -> None:
        """Wait for what is under way, and let other processes write."""
        self._settle()
        self._saving.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Lock the folder for this process, before the first `save` does.

        Raises:
          ValueError: another process writes to it, or it cannot be written to.
        """
        if self._saving.open() and self.metric is not None:
            self._values = {c.update: c.value for c in self.all() if c.value is not None}


def _numbers(values: dict[int, Any]) -> dict[int, float]:
    """Those that can be better or worse: NaN is neither."""
    return {u: v for u, v in values.items() if v is not None and not math.isnan(v)}
