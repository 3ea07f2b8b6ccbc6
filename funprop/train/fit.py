"""The loop over epochs: everything around the step, and nothing in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.steps import Step
from funprop.train.arguments import (
    check_options,
    check_sizes,
    check_state,
    check_step,
)
from funprop.train.arrays import copies
from funprop.train.checkpoints import Checkpoints
from funprop.train.data import Last, arrays, blocks, epoch_rows
from funprop.train.feeds import Feed, InMemory, picked, picked_or_padding
from funprop.train.held_out import measuring
from funprop.train.interrupts import interrupts
from funprop.train.loop import Loop
from funprop.train.padding import check_padding, one_shape
from funprop.train.progress import Progress, for_terminal, silent
from funprop.train.reached import Reached, last_reached
from funprop.train.runner import Runner, kind, runner
from funprop.train.stopping import Row, Rule
from funprop.values import whole_number

if TYPE_CHECKING:
    from jaxtyping import PyTree

# A state of at most so many bytes is not donated to the next call: its memory stays its own, and so
# the next call can be under way before this one's sums are read, even where they end the run.
KEPT_BYTES = 4 * 2**20


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
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
) -> Fit:
    """Train for some epochs over in-memory data.

    Every epoch sees each example once; batch `i` of an epoch depends on `(seed, epoch, i)` alone.
    The data stays on the device, and many updates run in one device call; how many is measured as
    it goes, and changes no bit of the result. Ctrl-C ends the run after the call under way and
    returns what has been reached; a second Ctrl-C interrupts as usual.

    With `checkpoints`, the same call in another process goes on where the last one ended, however
    it ended, and comes to the very bits of one that was never stopped. SIGTERM then ends a run as
    Ctrl-C does. What is not finite is never saved.

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
      checkpoints: a folder, or `Checkpoints(folder, ...)`, where the run is kept. What was reached
        there is gone on from. Beside `epochs`, which may be more, all that decides what is
        computed must be as it was.

    Raises:
      TypeError: an argument that is something else; data that is no numbers.
      ValueError: sizes that do not fit, data that is empty, uneven or not finite, a label out of
        range, padding that would have a say, a state that was given to an update before; or the
        checkpoints are of a run with other settings, of another state, or in use.
      FloatingPointError: from `step.check`, such as that of `skip_nonfinite`.

    Example:
      >>> import optax, funprop as fp
      >>> line = fp.objective(fp.dense(1), fp.mean_squared())
      >>> x = jnp.linspace(-1, 1, 20)[:, None]
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
    kept = _checkpoints(checkpoints)
    data = jax.tree.map(jnp.asarray, data) if mesh is None else copies(data, mesh)
    state = copies(state, mesh)
    measured = None
    if held_out is not None and measure is not None:
        measured = measuring(arrays(held_out, "held_out"), measure, batch_size, mesh, state)
    ahead = mesh is None and _small(state)
    runs, padded = _prepared(step, state, data, batch_size, last, mesh, donate=not ahead)
    feed: Feed = InMemory(data, batch_size, seed, last, padded, mesh)

    some = epoch_rows(n, batch_size, seed, 0, "drop")[:1]
    zeros = copies(runs.zeros(state, data, some), mesh)
    of_kind = kind(state, data, some)
    with kept or contextlib.nullcontext(), interrupts(terminating=kept is not None) as noted:
        settings = feed.settings | {"first_epoch": first_epoch}
        reached = last_reached(kept, Reached(state, zeros), settings, epochs)
        reached = reached._replace(sums=copies(reached.sums, mesh))
        with (progress or silent)() as display:
            getattr(display, "begin", lambda history: None)(reached.history)
            loop = Loop(
                step,
                feed,
                runs,
                reached,
                settings=settings,
                epochs=epochs,
                first_epoch=first_epoch,
                zeros=zeros,
                measured=measured,
                stop=stop,
                display=display,
                checkpoints=kept,
                ahead=ahead,
                known=of_kind in runs.at_once,
                at_once=runs.at_once.setdefault(of_kind, 1),
                mesh=mesh is not None,
            )
            stopped = loop.run(noted)
            runs.at_once[of_kind] = loop.at_once
            loop.conclude()
            display.end(stopped)
    return Fit(loop.reached.state, loop.history, stopped)


def _checkpoints(given: Checkpoints | str | os.PathLike[str] | None) -> Checkpoints | None:
    return given if given is None or isinstance(given, Checkpoints) else Checkpoints(given)


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
    plain = runner(step.update, picked, donate)
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
    padding = runner(step.update, picked_or_padding, donate)
    check_padding(padding, step, state, data, rows, mesh)
    return padding, True
