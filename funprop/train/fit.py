"""The loop over epochs: everything around the step, and nothing in it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.steps import Step
from funprop.train import processes
from funprop.train.arguments import (
    check_options,
    check_sizes,
    check_state,
    check_step,
)
from funprop.train.arrays import copies, split
from funprop.train.data import Last, arrays, blocks, epoch_rows, gather
from funprop.train.held_out import measuring
from funprop.train.interrupts import interrupts
from funprop.train.padding import check_padding, one_shape
from funprop.train.progress import Progress, for_terminal, silent
from funprop.train.runner import Runner, kind, runner
from funprop.train.stopping import Row, Rule
from funprop.train.sums import means, on_host, summed
from funprop.values import whole_number

if TYPE_CHECKING:
    from jaxtyping import PyTree

# A device call lasts about this long: short enough to show progress and to heed Ctrl-C, long
# enough that the call itself costs nothing.
CALL_SECONDS = 0.2
# A state of at most so many bytes is not donated to the next call: its memory stays its own, and so
# the next call can be under way before this one's sums are read, even where they end the run.
KEPT_BYTES = 4 * 2**20
# A run whose loss is NaN ends; without jit, batches of a large model may take minutes each.
SEARCH_SECONDS = 20


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: the step's state after the last update.
      history: a row an epoch: `epoch`, the training loss and metrics (means over the epoch, taken
        as it went; NaN where no update counted), those on held-out data as `held_out/loss` and so
        on, `seconds` since the start and `examples_per_second`.
      stopped: why it ended, in a few words.
    """

    state: Any
    history: list[Row]
    stopped: str


def fit(
    step: Step,
    state: Any,
    data: PyTree,
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    first_epoch: int = 0,
    last: Last = "short",
    held_out: PyTree | None = None,
    measure: Callable[[PyTree, PyTree], dict[str, trees.Sum]] | None = None,
    stop: Sequence[Rule] = (),
    progress: Callable[[], Progress] | None = for_terminal,
    mesh: jax.sharding.Mesh | None = None,
) -> Fit:
    """Train for some epochs over in-memory data.

    Every epoch sees each example once; batch `i` of an epoch depends on `(seed, epoch, i)` alone.
    The data stays on the device, and many updates run in one device call; how many is measured as
    it goes, and changes no bit of the result. Ctrl-C ends the run after the call under way and
    returns what has been reached; a second Ctrl-C interrupts as usual.

    Args:
      step: what to repeat. `state` is not used up: `fit` works on a copy.
      state: as `step.init` gives it.
      data: `(inputs, targets)` or `(inputs, targets, weights)`, arrays of equal length, or what
        NumPy takes for such.
      epochs: how many at most.
      batch_size: examples a batch.
      seed: of the order of examples.
      first_epoch: the number of the first epoch, so that a run goes on where another ended.
      last: the last batch of an epoch, if short, is taken as it comes (`"short"`, one compilation
        more), filled up with examples of weight zero (`"pad"`) or left out (`"drop"`). Where the
        step takes one length alone, as over a mesh, `"short"` is filled up too. Padding is refused
        where it would have a say: with layers that mix examples, such as `batch_norm`, with losses
        and metrics that take no weights, and with loss functions of your own.
      held_out: data that is not trained on, measured after every epoch; by the average of params
        where the state has one (`ema`).
      measure: `(params, batch) -> {name: Sum}`, as `funprop.measure(grad_fn)` makes it.
      stop: rules such as `at_least("held_out/accuracy", 0.97)` or `patience("held_out/loss", 5)`.
      progress: makes the display; `None` for none.
      mesh: devices of one process or of many, for a grad_fn that splits its batch over their axis
        `"data"` (`data_parallel`, `ordered`). All processes call this with the same arguments; the
        data is whole on every device. A label out of range is not found, the loss is NaN.

    Raises:
      TypeError: an argument that is something else; data that is no numbers.
      ValueError: sizes that do not fit, data that is empty, uneven or not finite, a label out of
        range, padding that would have a say, a state that was given to an update before.
      FloatingPointError: from `step.check`, such as that of `skip_nonfinite`.

    Example:
      >>> import optax, funprop as fp
      >>> line = fp.objective(fp.dense(1), fp.mean_squared())
      >>> x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
      >>> data = x, 3 * x + 1
      >>> train = fp.step(fp.backprop(line), optax.sgd(0.3))
      >>> state = train.init(line.init(jax.random.key(0), data), jax.random.key(1))
      >>> result = fit(train, state, data, epochs=50, batch_size=8, progress=None)
      >>> w, b = result.state.params
      >>> round(float(w[0, 0]), 3), round(float(b[0]), 3), result.stopped
      (3.0, 1.0, 'all 50 epochs done')
    """
    check_step(step, state)
    data = arrays(data)
    n = len(jax.tree.leaves(data)[0])
    epochs, batch_size = check_sizes(n, epochs, batch_size, last)
    seed, first_epoch = whole_number(seed, "seed", 0), whole_number(first_epoch, "first_epoch", 0)
    check_options(held_out, measure, stop, progress, mesh, batch_size)
    data = jax.tree.map(jnp.asarray, data) if mesh is None else copies(data, mesh)
    state = copies(state, mesh)
    measured = None
    if held_out is not None and measure is not None:
        measured = measuring(arrays(held_out, "held_out"), measure, batch_size, mesh, state)
    ahead = mesh is None and _small(state)
    runs, padded = _prepared(step, state, data, batch_size, last, mesh, donate=not ahead)
    # Processes must do the same, so what hangs on signals and clocks is agreed upon.
    anywhere, of_first = (processes.anywhere, processes.of_first) if mesh else (bool, int)

    some = epoch_rows(n, batch_size, seed, 0, "drop")[:1]
    zeros = copies(runs.zeros(state, data, some), mesh)
    of_kind = kind(state, data, some)
    known = of_kind in runs.at_once
    at_once = runs.at_once.setdefault(of_kind, 1)

    def calls() -> Iterator[_Call]:
        for epoch in range(epochs):
            rows = epoch_rows(n, batch_size, seed, first_epoch + epoch, last)
            before = 0
            for block in [rows] if padded else blocks(rows):
                placed, first = split(block, mesh), 0
                while first < len(block):
                    end = min(first + at_once, len(block))
                    done = before + end
                    yield _Call(epoch, len(rows), placed, first, end, done, done == end - first)
                    first = end
                before += len(block)

    def launch(call: _Call | None) -> _Call | None:
        """Start it, without waiting; what it gives is there when the device is done."""
        nonlocal state, sums
        if call is None:
            return None
        started = time.perf_counter()
        given = zeros if call.opens else sums
        bounds = np.int32(call.first), np.int32(call.end)
        state, sums = runs.run(state, given, data, call.rows, *bounds)
        parts = measured(state) if measured is not None and call.closes else None
        return call._replace(state=state, sums=sums, parts=parts, started=started)

    def finish(call: _Call) -> str | None:
        """Wait for it and tell; and why the run ends with it, if it does."""
        nonlocal at_once, known, looked, read, epoch_start
        sums = on_host(call.sums)
        step.check(call.state)
        loss = sums["loss"]
        if mesh is None and not looked and np.isnan(loss.total):
            looked = True
            _check_values(step, call, data, padded)
        now = time.perf_counter()
        if known and call.rows.shape[1] == batch_size:
            share = CALL_SECONDS / (now - max(read, call.started)) * (call.end - call.first)
            at_once = of_first(max(1, min(int(share), 8 * at_once)))
        known, read = True, now  # the first call of a kind compiles
        share = call.done / call.of
        display.update(call.epoch + share, epochs, n, means(sums))
        interrupted = anywhere(noted())
        if not call.closes and not interrupted:
            return None
        row = {"epoch": first_epoch + call.epoch + share, **means(sums)}
        if measured is not None:
            parts = measured(call.state) if call.parts is None else call.parts
            row |= {f"held_out/{name}": v for name, v in means(summed(parts)).items()}
        row["seconds"] = now - start
        row["examples_per_second"] = min(call.done * batch_size, n) / (now - epoch_start)
        epoch_start = time.perf_counter()
        history.append(row)
        display.epoch(row, epochs)
        reason = next(filter(None, (rule(history) for rule in stop)), None)
        interrupted = interrupted or anywhere(noted())
        nothing = loss.total == loss.weight == 0  # all updates were left out, as was asked for
        if not (nothing or math.isfinite(row["loss"])):
            reason = reason or f"the loss is {row['loss']}: diverged"
        if interrupted or of_first(bool(reason)):
            return "interrupted" if interrupted else reason
        return None

    history: list[Row] = []
    reached, stopped, looked, sums = state, None, False, zeros
    start = read = epoch_start = time.perf_counter()
    with interrupts() as noted, (progress or silent)() as display:
        upcoming = calls()
        call = launch(next(upcoming))
        while call is not None:
            following = next(upcoming, None)  # while the device works
            begun = launch(following) if ahead else None
            reached, stopped = call.state, finish(call)
            if stopped is not None:
                break
            call = begun if ahead else launch(following)
        runs.at_once[of_kind] = at_once
        stopped = stopped or f"all {epochs} epochs done"
        display.end(stopped)
    return Fit(reached, history, stopped)


class _Call(NamedTuple):
    """Updates `first` to `end` of a block of batches, `done` of all `of` in the epoch then."""

    epoch: int
    of: int
    rows: Any
    first: int
    end: int
    done: int
    opens: bool
    state: Any = None
    sums: Any = None
    parts: Any = None
    started: float = 0.0

    @property
    def closes(self) -> bool:
        return self.done == self.of


def _small(state: Any) -> bool:
    """Whether two states of this size are no burden, all on one device."""
    leaves = jax.tree.leaves(state)
    return trees.nbytes(leaves) <= KEPT_BYTES and all(
        len(leaf.devices()) == 1 for leaf in leaves if isinstance(leaf, jax.Array)
    )


def _prepared(
    step: Step,
    state: Any,
    data: PyTree,
    batch_size: int,
    last: Last,
    mesh: jax.sharding.Mesh | None,
    donate: bool,
) -> tuple[Runner, bool]:
    """The runner for these batches, and whether the last one is filled up."""
    n = len(jax.tree.leaves(data)[0])
    rows = epoch_rows(n, batch_size, 0, 0, last)
    plain = runner(step.update, False, donate)
    try:  # what is wrong with any batch is told first
        plain.metrics(state, data, rows[:1])
    except Exception:
        check_state(step, state)
        raise
    if n % batch_size == 0 or last == "drop":
        return plain, False
    if last == "short" and not one_shape(step, mesh):
        try:
            plain.metrics(state, data, blocks(rows)[-1])
            return plain, False
        except ValueError:
            pass  # too few examples to be split, say
    padding = runner(step.update, True, donate)
    check_padding(padding, step, state, data, rows, mesh)
    return padding, True


def _check_values(step: Step, call: _Call, data: PyTree, padded: bool) -> None:
    """Run the batches of a call whose loss is NaN with their values known: a layer that can say
    what is wrong with them (a label out of range, say) then raises."""
    objective = getattr(getattr(step.grad_fn, "plain", step.grad_fn), "objective", None)
    if objective is None:
        return
    until = time.monotonic() + SEARCH_SECONDS
    rows = np.asarray(call.rows[call.first : call.end])
    with jax.disable_jit():
        for some in itertools.takewhile(lambda _: time.monotonic() < until, rows):
            objective.forward(call.state.params, gather(data, some, padded))
