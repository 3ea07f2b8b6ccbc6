"""The turns of a run: launch a device call, wait for the one before it, tell, keep, go on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from funprop.flow.watch import Watch
from funprop.steps import Step
from funprop.train import processes
from funprop.train.arrays import copies
from funprop.train.callbacks.protocol import Callbacks
from funprop.train.checkpoints import Checkpoints
from funprop.train.data.feeds import Block, Feed
from funprop.train.interrupts import CODES
from funprop.train.out_of_range import look_into
from funprop.train.progress import Progress
from funprop.train.reached import Reached
from funprop.train.rows import Rows, of_the_best, validated
from funprop.train.runner import Runner
from funprop.train.stopping import Row, Rule
from funprop.train.sums import means, on_host

if TYPE_CHECKING:
    from funprop.typing import PyTree

# A device call lasts about this long: short enough to show progress and to heed Ctrl-C, long
# enough that the call itself costs nothing.
CALL_SECONDS = 0.2


class Call(NamedTuple):
    """Updates `first` to `end` of a block of batches, `done` of all in the epoch then, which may
    close it; a row `tells` of it where it does, or one is due."""

    epoch: int
    block: Block
    first: int
    end: int
    done: int
    closes: bool
    tells: bool
    state: Any = None
    sums: Any = None
    parts: Any = None
    started: float = 0.0


class Loop:
    """One run of `fit`.

    Args:
      step, feed, runs: what is repeated over which batches, and compiled.
      reached: where it begins.
      settings: what must be the same for it to go on another time.
      epochs: how many.
      rows: makes those of the history.
      measure_every: how many updates after one another is due, beside those of epochs.
      validate: a function of the params whose numbers are in a row too.
      stop: rules.
      callbacks: told of every row.
      display: of progress.
      checkpoints: where it is kept, or `None`.
      ahead: whether a call may be under way before the last one's sums are read.
      known: whether the program is compiled already.
      mesh: whether it is one run on many devices.
      watch: filled now and then.
    """

    def __init__(
        self,
        step: Step,
        feed: Feed,
        runs: Runner,
        reached: Reached,
        *,
        settings: dict[str, Any],
        epochs: int,
        rows: Rows,
        zeros: PyTree,
        measure_every: int | None,
        validate: Callable[[PyTree], dict[str, Any]] | None,
        stop: Sequence[Rule],
        callbacks: Callbacks,
        display: Progress,
        checkpoints: Checkpoints | None,
        ahead: bool,
        known: bool,
        at_once: int,
        mesh: jax.sharding.Mesh | None,
        watch: Watch | None,
    ) -> None:
        self.step, self.feed, self.runs = step, feed, runs
        self.state, self.sums = reached.state, reached.sums
        self.begin, self.settings = reached, settings
        self.epochs, self.rows, self.zeros, self.stop = epochs, rows, zeros, stop
        self.measure_every, self.validate, self.callbacks = measure_every, validate, callbacks
        self.display, self.checkpoints = display, checkpoints
        self.ahead, self.known, self.at_once, self.mesh = ahead, known, at_once, mesh
        self.watch, self.batch = watch, None  # it looks at the first batch of the run
        self.history = list(reached.history)
        self.reached = reached
        self.looked, self.failed = False, ""
        # Processes must do the same, so what hangs on signals and clocks is agreed upon.
        self.of_first = processes.of_first if mesh else int
        self.read = time.perf_counter()

    def run(self, noted: Callable[[], str]) -> str:
        """All of it; why it ended. `noted` tells of a signal to stop."""
        if reason := self._enough():
            return reason
        with contextlib.closing(self._calls()) as upcoming:
            call = self._launch(next(upcoming, None))
            while call is not None:
                try:
                    following = next(upcoming, None)  # while the device works
                except Exception:
                    self._save_what_was_reached(call, noted)
                    raise
                begun = self._launch(following) if self.ahead else None
                stopped = self._finish(call, noted)
                if stopped:
                    return stopped
                call = begun if self.ahead else self._launch(following)
        return f"all {self.epochs} epochs done"

    def _calls(self) -> Generator[Call]:
        saved = None if self.checkpoints is None else self.checkpoints.updates
        due = [every for every in (saved, self.measure_every) if every is not None]
        for epoch in range(self.begin.epoch, self.epochs):
            done = self.begin.done if epoch == self.begin.epoch else 0
            blocks = self.feed.blocks(epoch + self.rows.first_epoch, done)
            with contextlib.closing(blocks):
                for block in blocks:
                    first = 0
                    while first < block.updates:
                        end = min(first + self.at_once, block.updates)
                        before = epoch * self.feed.updates + done
                        for every in due:  # a call ends where a checkpoint or a row is due
                            end = min(end, first + every - before % every)
                        done += end - first
                        closes = done == self.feed.updates
                        tells = closes or self._row_due(epoch * self.feed.updates + done)
                        yield Call(epoch, block, first, end, done, closes, tells)
                        first = end

    def _row_due(self, update: int) -> bool:
        return self.measure_every is not None and update % self.measure_every == 0

    def _launch(self, call: Call | None) -> Call | None:
        """Start it, without waiting; what it gives is there when the device is done."""
        if call is None:
            return None
        if self.watch is not None and self.batch is None:
            self.batch = self.feed.pick(call.block.data, call.block.rows[call.first])
            self._look(call.epoch, call.done - (call.end - call.first), self.state)
        started = time.perf_counter()
        opens = call.done == call.end - call.first
        given = self.zeros if opens else self.sums
        bounds = np.int32(call.first), np.int32(call.end)
        block = call.block
        self.state, self.sums = self.runs.run(self.state, given, block.data, block.rows, *bounds)
        measured = self.rows.measured
        parts = measured(self.state) if measured is not None and call.tells else None
        return call._replace(state=self.state, sums=self.sums, parts=parts, started=started)

    def _finish(self, call: Call, noted: Callable[[], str]) -> str:
        """Wait for it and tell; and why the run ends with it, if it does."""
        sums = on_host(call.sums)
        self.reached = self.reached._replace(
            state=call.state, sums=call.sums, epoch=call.epoch, done=call.done
        )
        try:
            self.step.check(call.state)
        except FloatingPointError as error:
            self.failed = str(error)
        loss = sums["loss"]
        if not (self.mesh or self.looked or self.failed) and np.isnan(loss.total).all():
            self.looked = True
            batches = call.block.data, call.block.rows[call.first : call.end]
            look_into(self.step, call.state, self.feed.pick, *batches)
        self._adapt(call)
        share = call.done / self.feed.updates
        told = of_the_best(means(sums))
        self.display.update(call.epoch + share, self.epochs, self.feed.examples, told)
        ends = self.failed or self._signalled(noted)
        if not call.tells and not ends:
            self._keep()
            return ""
        row = self.rows.made(call.epoch, call.done, call.state, sums, call.parts)
        if call.tells:
            self.history.append(row)
            self.reached = self.reached._replace(history=tuple(self.history))
        if call.closes:
            self.reached = self.reached._replace(epoch=call.epoch + 1, done=0)
        self._tell(row, call.state)
        reason = self._enough() if call.tells else ""
        ends = ends or self._signalled(noted)
        nothing = np.all(loss.total == loss.weight) and np.all(loss.weight == 0)
        if not (nothing or math.isfinite(row["loss"])):  # nothing: updates left out, as was asked
            reason = reason or f"the loss is {row['loss']}: diverged"
        ends = ends or (reason if self.of_first(bool(reason)) else "")
        self._keep(row if call.tells else None)
        if not call.tells:
            self.history.append(row)  # of the part that was, for whoever looks at it
        return ends

    def _tell(self, row: Row, state: Any) -> None:
        """A row to all who want it; where one of them fails, what has been reached is saved."""

        def copied() -> Any:
            """For those who may keep it: else the next call would use up its memory."""
            return state if self.ahead else copies(state, self.mesh)

        try:
            if self.validate is not None:
                row |= validated(self.validate, state, row)
            self.callbacks.on_epoch(row, state, copied)
        except Exception:
            if jax.process_count() == 1:  # others, where it may not fail, would be waited for
                self.conclude()
            raise
        if self.watch is not None and self.watch.due(row["update"]):
            self._look(self.reached.epoch, self.reached.done, state)
        self.display.epoch(row, self.epochs)

    def _look(self, epoch: int, done: int, state: Any) -> None:
        if self.watch is None:
            return
        epoch += self.rows.first_epoch
        update = epoch * self.feed.updates + done
        self.watch.look(self.step, state, self.batch, epoch + done / self.feed.updates, update)

    def _enough(self) -> str:
        """Why the history so far is enough, by the first rule that says so."""
        if not self.history:
            return ""
        return next(filter(None, (rule(self.history) for rule in self.stop)), None) or ""

    def _signalled(self, noted: Callable[[], str]) -> str:
        if not self.mesh:
            return noted()
        # Some may not have heard of it yet.
        code = processes.largest(CODES.get(noted(), 0))
        return next((word for word in CODES if CODES[word] == code), "")

    def _adapt(self, call: Call) -> None:
        """How many updates shall be in the next call."""
        now = time.perf_counter()
        if self.known and call.block.size == self.feed.size:
            share = CALL_SECONDS / (now - max(self.read, call.started)) * (call.end - call.first)
            self.at_once = self.of_first(max(1, min(int(share), 8 * self.at_once)))
        self.known, self.read = True, now  # the first call of a kind compiles

    def _keep(self, row: Row | None = None) -> None:
        """Save a checkpoint where one is due; never one that is not finite."""
        kept = self.checkpoints
        if kept is None or self.failed:
            return
        update = self.reached.update(self.feed.updates)
        metric = None
        if row is not None and kept.metric is not None:
            if kept.metric not in row:
                raise ValueError(
                    f"checkpoints want the metric {kept.metric!r}, got {', '.join(row)}"
                )
            metric = row[kept.metric]
        if (kept.due(update) or kept.better(metric)) and self.reached.finite():
            kept.save(self.reached.state, update, self._notes(), metric)

    def _save_what_was_reached(self, call: Call, noted: Callable[[], str]) -> None:
        """Where the data fails; other processes, whose data may not, would be waited for."""
        if self.checkpoints is not None and jax.process_count() == 1:
            self._finish(call, noted)
            self.conclude()

    def conclude(self) -> None:
        """Save what has been reached at the end, and wait for it."""
        if self.checkpoints is not None and not self.failed and self.reached.finite():
            update = self.reached.update(self.feed.updates)
            self.checkpoints.finish(self.reached.state, update, self._notes())

    def _notes(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.rows.start + self.begin.seconds
        return self.reached._replace(seconds=seconds).notes(self.settings)
