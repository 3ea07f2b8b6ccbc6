"""The loop over epochs: everything around the step, and nothing in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop import trees
from funprop.checks import described
from funprop.flow.watch import Watch, check_watch
from funprop.reprs import short
from funprop.steps import Step
from funprop.train.arguments import check_options, check_step
from funprop.train.arrays import copies
from funprop.train.callbacks.protocol import Callback, Callbacks, Start
from funprop.train.checkpoints import Checkpoints
from funprop.train.data.in_memory import Last, arrays
from funprop.train.data.prepared import given, prepared
from funprop.train.held_out import measure_of, measuring
from funprop.train.interrupts import interrupts
from funprop.train.loop import Loop
from funprop.train.notebook import history_html
from funprop.train.progress import Progress, for_terminal, silent
from funprop.train.reached import Reached, last_reached
from funprop.train.rows import Rows
from funprop.train.runner import kind
from funprop.train.stopping import Row, Rule
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree

# A state of at most so many bytes is not donated to the next call: its memory stays its own, and so
# the next call can be under way before this one's sums are read, even where they end the run.
KEPT_BYTES = 4 * 2**20


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: the step's state after the last update, or what a callback puts in its place.
      history: a row an epoch: `epoch` and `update`, the training loss and metrics (means over the
        epoch so far, taken as it went; NaN where no update counted), those on held-out data as
        `held_out/loss` and so on, the `learning_rate` where the optimizer's state tells it
        (`optax.inject_hyperparams`), `seconds` since the start and `examples_per_second`. Of a
        `population` the numbers are those of its best `member`; all `members` have theirs beside.
      stopped: why it ended, in a few words.
    """

    state: Any
    history: list[Row]
    stopped: str

    def __repr__(self) -> str:
        rows = f"<{len(self.history)} rows>"
        return f"Fit(state={short(self.state)}, history={rows}, stopped={self.stopped!r})"

    def _repr_html_(self) -> str:
        return history_html(self.history, self.stopped)


def fit(
    step: Step,
    state: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    updates: int | None = None,
    seed: int = 0,
    first_epoch: int = 0,
    last: Last = "short",
    held_out: PyTree | None = None,
    measure: Callable[[PyTree, PyTree], dict[str, trees.Sum]] | None = None,
    measure_every: int | None = None,
    validate: Callable[[PyTree], dict[str, Any]] | None = None,
    stop: Sequence[Rule] = (),
    callbacks: Sequence[Callback | Callable[[Row, Any], Any]] = (),
    progress: Callable[[], Progress] | None = for_terminal,
    mesh: jax.sharding.Mesh | None = None,
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
) -> Fit:
    """Train for some epochs.

    Every epoch sees each example once; batch `i` of an epoch depends on `(seed, epoch, i)` alone.
    Arrays stay on the device; what is read from elsewhere is loaded while the device computes. Many
    updates run in one device call; how many is measured as it goes, and changes no bit of the
    result. Ctrl-C ends the run after the call under way and
    returns what has been reached; a second Ctrl-C interrupts as usual.

    With `checkpoints`, the same call in another process goes on where the last one ended, however
    it ended, and comes to the very bits of one that was never stopped. SIGTERM then ends a run as
    Ctrl-C does. What is not finite is never saved, nor is anything where `step.check` raises, as
    that of `skip_nonfinite` does: that ends the run.

    Args:
      step: what to repeat. `state` is not used up: `fit` works on a copy.
      state: as `step.init` gives it.
      data: `(inputs, targets)` or `(inputs, targets, weights)`, arrays of equal length, or what
        NumPy takes for such; or a source with `__len__` and `__getitem__` (`Tokens`, datasets of
        grain or Hugging Face, a list of records) whose records are trees of numbers, alike in
        shape; or a function `(seed, index) -> batch`, the index that of the update in the run.
      epochs: how many at most.
      batch_size: examples a batch; left out where a function makes the batches.
      updates: how many an epoch has, where a function makes them.
      seed: of the order of examples, and what a function is given.
      first_epoch: the number of the first epoch, so that a run goes on where another ended.
      last: the last batch of an epoch, if short, is taken as it comes (`"short"`, one compilation
        more), filled up with examples of weight zero (`"pad"`) or left out (`"drop"`). Where the
        step takes one length alone, as over a mesh, `"short"` is filled up too. Padding is refused
        where it would have a say: with layers that mix examples, such as `batch_norm`, with losses
        and metrics that take no weights, and with loss functions of your own.
      held_out: data that is not trained on, measured after every epoch; by the average of params
        where the state has one (`ema`).
      measure: `(params, batch) -> {name: Sum}`; `measure` of the step's gradient if not given.
      measure_every: a row of the history every so many updates of the run, too, with all that the
        rows of epochs have; their `epoch` is a fraction.
      validate: `params -> {name: number}`, any function, called for every row by the params that
        `measure` is; its numbers are in the row as `held_out/NAME`.
      stop: rules such as `at_least("held_out/accuracy", 0.97)` or `patience("held_out/loss", 5)`.
      callbacks: functions `(row, state)`, or objects with such an `on_epoch`, called for every row
        in their order; those of `fp.callbacks` are ready. Where one fails what has been reached is
        saved, and its error, of the type that it is, names it. docs/loop.md.
      progress: makes the display; `None` for none.
      mesh: devices of one process or of many, for a grad_fn that splits its batch over their axis
        `"data"` (`data_parallel`, `ordered`). All processes call this with the same arguments;
        arrays are whole on every device, and of a source each process reads its own examples. A
        label out of range is not found, the loss is NaN.
      checkpoints: a folder, or `Checkpoints(folder, ...)`, where the run is kept. What was reached
        there is gone on from. Beside `epochs`, which may be more, all that decides what is
        computed must be as it was.
      watch: a `watch()`, which is filled with how activations, cotangents and updates are spread,
        by layer, for `gradient_flow`. Without a mesh.

    Raises:
      TypeError: an argument that is something else; data that is no numbers.
      ValueError: sizes that do not fit, data that is empty, uneven or not finite, a record that
        cannot be read or is unlike the first, a label out of range, padding that would have a say,
        a state that was given to an update before; or the checkpoints are of a run with other
        settings, of another state, or in use.

    Example:
      >>> import optax, funprop as fp
      >>> line = fp.objective(fp.dense(1), fp.mean_squared())
      >>> x = jax.numpy.linspace(-1, 1, 20)[:, None]
      >>> data = x, 3 * x + 1
      >>> train = fp.step(fp.backprop(line), optax.sgd(0.3))
      >>> state = train.init(line.init(jax.random.key(0), data), jax.random.key(1))
      >>> result = fit(train, state, data, epochs=50, batch_size=8, progress=None)
      >>> w, b = result.state.params
      >>> round(float(w[0, 0]), 3), round(float(b[0]), 3), result.stopped
      (3.0, 1.0, 'all 50 epochs done')
    """
    check_step(step, state)
    what = given(data, epochs, batch_size, updates, seed, last, mesh)
    epochs, first_epoch = what.epochs, whole_number(first_epoch, "first_epoch", 0)
    if held_out is not None and measure is None and step.grad_fn is not None:
        measure = measure_of(step.grad_fn)
    check_options(held_out, measure, stop, progress, mesh)
    check_watch(watch, step, mesh, state)
    if measure_every is not None:
        measure_every = whole_number(measure_every, "measure_every", 1)
    if validate is not None and not callable(validate):
        raise TypeError(f"validate must be a function of params, got {described(validate)}")
    kept, called = _checkpoints(checkpoints), Callbacks(callbacks)
    called.prepare(kept)
    state = copies(state, mesh)
    ahead = mesh is None and _small(state)
    feed, runs, *example = prepared(step, state, what, donate=not ahead)
    measured = None
    if held_out is not None and measure is not None:
        measured = measuring(arrays(held_out, "held_out"), measure, feed.size, mesh, state)

    zeros = copies(runs.zeros(state, *example), mesh)
    of_kind = kind(state, *example)
    with kept or contextlib.nullcontext(), interrupts(terminating=kept is not None) as noted:
        settings: dict[str, Any] = {}
        if kept is not None:
            settings = {**feed.settings, "first_epoch": first_epoch, **kept.settings}
        reached = last_reached(kept, Reached(state, zeros), settings, epochs)
        reached = reached._replace(sums=copies(reached.sums, mesh))
        rows = Rows(feed, reached, first_epoch, measured)
        with called.entered(), (progress or silent)() as display:
            called.begin(Start(reached.state, reached.history, kept))
            getattr(display, "begin", lambda history: None)(reached.history)
            loop = Loop(
                step,
                feed,
                runs,
                reached,
                settings=settings,
                epochs=epochs,
                rows=rows,
                zeros=zeros,
                measure_every=measure_every,
                validate=validate,
                stop=stop,
                callbacks=called,
                display=display,
                checkpoints=kept,
                ahead=ahead,
                known=of_kind in runs.at_once,
                at_once=runs.at_once.setdefault(of_kind, 1),
                mesh=mesh,
                watch=watch,
            )
            stopped = loop.run(noted)
            runs.at_once[of_kind] = loop.at_once
            loop.conclude()
            display.end(stopped)
            return called.end(Fit(loop.reached.state, loop.history, stopped))


def _checkpoints(given: Checkpoints | str | os.PathLike[str] | None) -> Checkpoints | None:
    if given is None or isinstance(given, Checkpoints):
        return given
    if not isinstance(given, str | os.PathLike):
        raise TypeError(
            f"checkpoints must be a folder or Checkpoints(folder), got {described(given)}"
        )
    return Checkpoints(given)


def _small(state: Any) -> bool:
    """Whether two states of this size are no burden, all on one device."""
    leaves = jax.tree.leaves(state)
    return trees.nbytes(leaves) <= KEPT_BYTES and all(
        len(leaf.devices()) == 1 for leaf in leaves if isinstance(leaf, jax.Array)
    )
