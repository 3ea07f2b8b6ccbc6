"""Saving in the background: one at a time, and what has failed is told, not raised."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funprop.train import processes
from funprop.train.checkpoints import folder as places
from funprop.train.checkpoints import written
from funprop.train.checkpoints.description import Description, write_description
from funprop.train.meeting import Meeting

if TYPE_CHECKING:
    from funprop.typing import PyTree

# It may still be written, which does no harm where it is: nobody else writes there.
TOO_LONG = "it took too long"


class Saving:
    """Saves checkpoints to a folder, each in the background until the next one.

    Attributes:
      newest: the update of the newest one that is known to be there.
      failures: how many have failed since.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest: int | None = None
        self.failures = 0
        self._under_way: int | None = None
        self._attempts = 0
        self._thread: threading.Thread | None = None
        self._problem = ""  # of the thread
        self._told = False
        self._checkpointer: Any = None
        self._meeting = Meeting()
        self._lock: Any = None

    @property
    def checkpointer(self) -> Any:
        """Orbax's."""
        if self._checkpointer is None:
            import orbax.checkpoint as ocp

            self._meeting = Meeting()  # orbax's threads wait there, and for none that has failed
            options = ocp.options.AsyncOptions(barrier_sync_fn=self._meeting.wait)
            handler = ocp.PyTreeCheckpointHandler()
            self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)
        return self._checkpointer

    def open(self) -> bool:
        """Lock the folder, and take away what a process that was killed has left; whether that was
        needed.

        Raises:
          ValueError: another process has locked it, or it cannot be written to.
        """
        if self._lock is not None:
            return False
        problem, lock = "", places.NoLock()
        if processes.first():
            try:
                lock = places.locked(self.folder)
                places.clear_leftovers(self.folder)
            except ValueError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{self.folder} cannot be written to: {said(error)}"
        problem = processes.words_of_first(problem)
        if problem:
            raise ValueError(problem)
        self._lock = lock
        return True

    def begin(
        self,
        state: PyTree,
        update: int,
        notes: dict[str, Any],
        value: float | None,
        metric: str | None,
    ) -> bool:
        """Copy the state and begin to write it; whether that could be."""
        self._under_way, problem = update, ""
        self._attempts += 1
        if processes.first():
            try:
                self._make_room()
            except (OSError, ValueError) as error:
                problem = said(error)
        if self._failed(problem):  # and all wait for the first
            return False
        leaves: written.Leaves = {}
        checkpointer = self.checkpointer
        self._meeting.agree()
        with contextlib.ExitStack() as silence:
            silence.enter_context(written.quiet())
            try:
                leaves = written.write(checkpointer, self._draft, state)
            except Exception as error:
                problem = said(error)
            if self._failed(problem):
                return False
            description = Description(update, leaves, notes, value, metric)
            # It ends with the process: orbax's own thread is waited for, and what it wrote is no
            # checkpoint before this one has named it.
            silent = silence.pop_all()
            self._thread = threading.Thread(target=self._conclude, args=(description, silent))
            self._thread.start()
        return True

    def tell_of_newer(self, update: int, damaged: set[int]) -> None:
        """Once: what is beyond this update, and was not gone on from, is of another run."""
        newer = max(set(places.updates_in(self.folder)) - damaged, default=update)
        if newer > max(update, self.newest or 0) and not self._told:
            self._told = True
            warnings.warn(
                f"{self.folder} holds a newer checkpoint, of update {newer}: restore takes that "
                f"and not that of update {update}; save elsewhere, or take it away",
                stacklevel=3,
            )

    @property
    def _draft(self) -> Path:
        return places.draft(self.folder, self._attempts)

    def _make_room(self) -> None:
        """An empty folder to write to, though somebody may have taken away the one it is in."""
        if not (self.folder / places.LOCK).exists():
            self._lock.release()
            self._lock = places.locked(self.folder)
        places.clear_leftovers(self.folder)
        self._draft.mkdir()

    def _conclude(self, description: Description, silent: contextlib.ExitStack) -> None:
        """Wait for orbax; then describe what it wrote, and give it its name."""
        try:
            with silent:
                self.checkpointer.wait_until_finished()
            if processes.first():
                write_description(self._draft, description)
                places.commit(self._draft, places.place(self.folder, description.update))
        except TimeoutError:
            self._problem = TOO_LONG
        except Exception as error:
            self._problem = said(error)
        if self._problem:
            self._meeting.leave(self._problem)

    def settle(self) -> bool:
        """Wait for the one that is under way; whether there was one, and it is there."""
        if self._thread is None:
            return False
        self._thread.join()
        self._thread, problem, self._problem = None, self._problem, ""
        if self._failed(problem):
            return False
        self._meeting.clear()
        self.newest, self._under_way, self.failures = self._under_way, None, 0
        return True

    def _failed(self, problem: str) -> bool:
        """Whether the save under way has failed, in this process or in another of the run."""
        if not processes.anywhere(bool(problem)):
            return False
        update, self._under_way = self._under_way, None
        self._meeting.leave(problem)
        self._checkpointer = None  # what has failed may be in any state
        self.failures += 1
        if processes.first() and problem != TOO_LONG:  # a disk that is full has room again
            shutil.rmtree(self._draft, ignore_errors=True)
        warnings.warn(
            f"the checkpoint of update {update} could not be written to {self.folder}: "
            f"{problem or 'another process could not'}; training goes on, and it is tried again",
            stacklevel=4,
        )
        return True

    def close(self) -> None:
        """Let other processes write."""
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def said(error: BaseException) -> str:
    """What went wrong in the words of the system, where it has some."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    if number := re.search(r"os_error_code='(\d+)'", str(error)):  # as tensorstore tells it
        return os.strerror(int(number[1]))
    first = next(iter(str(error).splitlines()), "")
    return first[:200] or type(error).__name__
