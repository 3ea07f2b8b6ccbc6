"""The loop over epochs: everything around the step, and nothing in it."""

from __future__ import annotations

import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.steps import Step
from funprop.train import processes
from funprop.train.arrays import copies, split
from funprop.train.data import Last, check_data, epoch_rows, gather
from funprop.train.progress import Progress, for_terminal, silent
from funprop.train.stopping import Row, Rule

if TYPE_CHECKING:
    from jaxtyping import PyTree

# A device call lasts about this long: short enough to show progress and to heed Ctrl-C, long
# enough that the call itself costs nothing.
CALL_SECONDS = 0.2
# Held-out data is measured in batches of at least this many examples.
MEASURED_AT_ONCE = 1024


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: the step's state after the last update.
      history: a row an epoch: `epoch`, the training loss and metrics (means over the epoch, taken
        as it went), those on held-out data as `held_out/loss` and so on, `seconds` since the start
        and `examples_per_second`.
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
    last: Last = "pad",
    held_out: PyTree | None = None,
    measure: Callable[[PyTree, PyTree], dict[str, trees.Sum]] | None = None,
    stop: Sequence[Rule] = (),
    progress: Callable[[], Progress] | None = for_terminal,
    mesh: jax.sharding.Mesh | None = None,
) -> Fit:
    """Train for some epochs over in-memory data.

    Every epoch sees each example once, in an order that depends on `(seed, epoch)` alone. The data
    stays on the device, and many updates run in one device call; how many is measured as it goes,
    and changes no bit of the result. Ctrl-C ends the run after the call under way and returns what
    has been reached; a second Ctrl-C interrupts as usual.

    Args:
      step: what to repeat. `state` is not used up: `fit` works on a copy.
      state: as `step.init` gives it.
      data: `(inputs, targets)` or `(inputs, targets, weights)`, arrays of equal length.
      epochs: how many at most.
      batch_size: examples a batch.
      seed: of the order of examples.
      last: the last batch of an epoch, if short, is filled with examples of weight zero (`"pad"`:
        the loss must take weights, and the result is exact) or left out (`"drop"`).
      held_out: data that is not trained on, measured after every epoch.
      measure: `(params, batch) -> {name: Sum}`, as `funprop.measure(grad_fn)` makes it.
      stop: rules such as `at_least("held_out/accuracy", 0.97)` or `patience("held_out/loss", 5)`.
      progress: makes the display; `None` for none.
      mesh: devices of one process or of many, for a grad_fn that splits its batch over their axis
        `"data"` (`data_parallel`, `ordered`). All processes call this with the same arguments; the
        data is whole on every device. A label out of range is not found, the loss is NaN.

    Raises:
      ValueError: sizes that do not fit, data that is empty, uneven or not finite, a label out of
        range.
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
    n = check_data(data)
    check_sizes(n, epochs, batch_size, last)
    if (held_out is None) != (measure is None):
        raise ValueError("held_out and measure must be given together, got one of them")
    padded = last == "pad" and n % batch_size != 0
    measured = None
    if held_out is not None and measure is not None:
        check_data(held_out, "held_out")
        measured = _measured(held_out, measure, max(batch_size, MEASURED_AT_ONCE), mesh)
    data = jax.tree.map(jnp.asarray, data) if mesh is None else copies(data, mesh)
    state = copies(state, mesh)
    # Processes must do the same, so what hangs on signals and clocks is agreed upon.
    anywhere, of_first = (processes.anywhere, processes.of_first) if mesh else (bool, int)
    run, zeros = _runner(step, padded)

    history: list[Row] = []
    stopped = f"all {epochs} epochs done"
    start = time.perf_counter()
    at_once = 1
    with _interrupts() as noted, (progress or silent)() as display:

        def interrupted() -> bool:
            return anywhere(noted())

        upcoming = split(epoch_rows(n, batch_size, seed, 0, last), mesh)
        for epoch in range(epochs):
            rows = upcoming
            epoch_start, sums, on_device, done = time.perf_counter(), None, None, 0
            while done < len(rows) and not interrupted():
                call_start = time.perf_counter()
                end = min(done + at_once, len(rows))
                if on_device is None:
                    on_device = copies(zeros(state, data, rows), mesh)
                state, on_device = run(state, on_device, data, rows, np.int32(done), np.int32(end))
                if end == len(rows):  # while the device works
                    upcoming = split(epoch_rows(n, batch_size, seed, epoch + 1, last), mesh)
                sums = jax.device_get(on_device)  # waits for the device
                step.check(state)
                if mesh is None:
                    _check_loss(sums, step, state, data, rows[done:end], padded)
                seconds = time.perf_counter() - call_start
                if (epoch, done) != (0, 0):  # the first call compiles
                    share = CALL_SECONDS / seconds * (end - done)
                    at_once = of_first(max(1, min(int(share), 8 * at_once)))
                done = end
                display.update(epoch + done / len(rows), epochs, n, _means(sums))
            if sums is None:
                stopped = "interrupted"
                break
            now = time.perf_counter()
            row = {"epoch": float(epoch + done / len(rows)), **_means(sums)}
            if measured is not None:
                row |= {f"held_out/{name}": v for name, v in _means(measured(state)).items()}
            row["seconds"] = now - start
            row["examples_per_second"] = min(done * batch_size, n) / (now - epoch_start)
            history.append(row)
            display.epoch(row, epochs)
            reason = next(filter(None, (rule(history) for rule in stop)), None)
            if interrupted() or of_first(bool(reason)) or not math.isfinite(row["loss"]):
                stopped = (
                    "interrupted"
                    if interrupted()
                    else reason or f"the loss is {row['loss']}: diverged"
                )
                break
        display.end(stopped)
    return Fit(state, history, stopped)


@functools.lru_cache(maxsize=32)
def _runner(step: Step, padded: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`run(state, sums, data, rows, first, end) -> (state, sums)`, updates `first` to `end` of an
    epoch, and `zeros(state, data, rows)`, the sums before the first.

    Sums go on from call to call: added up call by call, their bits would depend on how long calls
    are, which is measured. The bounds are data, so one compilation serves calls of any length;
    cached, so that another `fit` with the same step compiles nothing.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: Any, sums: Any, data: PyTree, rows: Any, first: Any, end: Any) -> Any:
        def update(i: Any, carry: Any) -> Any:
            state, sums = carry
            state, metrics = step.update(state, gather(data, rows[i], padded))
            return state, trees.add(sums, metrics)

        return jax.lax.fori_loop(first, end, update, (state, sums))

    def zeros(state: Any, data: PyTree, rows: Any) -> dict[str, trees.Sum]:
        def metrics(rows: Any) -> Any:
            return step.update(state, gather(data, rows[0], padded))[1]

        return jax.tree.map(
            lambda spec: np.zeros(spec.shape, spec.dtype), jax.eval_shape(metrics, rows)
        )

    return run, zeros


def _measured(
    held_out: PyTree,
    measure: Callable[[PyTree, PyTree], dict[str, trees.Sum]],
    at_once: int,
    mesh: jax.sharding.Mesh | None,
) -> Callable[[Any], dict[str, trees.Sum]]:
    """`state -> sums over all held-out data`, which is put on the device once."""
    n = check_data(held_out)
    batches = [
        copies(jax.tree.map(lambda leaf, i=i: leaf[i : i + at_once], held_out), mesh)
        for i in range(0, n, at_once)
    ]

    def measured(state: Any) -> dict[str, trees.Sum]:
        parts = [measure(state.params, batch) for batch in batches]
        return jax.device_get(functools.reduce(trees.add, parts))

    return measured


def _means(sums: dict[str, trees.Sum]) -> Row:
    """The means, the loss first (`jit` sorts the keys of a dict)."""
    names = sorted(sums, key=lambda name: name != "loss")
    with np.errstate(invalid="ignore"):  # of nothing, where all updates were skipped: NaN
        return {name: float(np.divide(sums[name].total, sums[name].weight)) for name in names}


def check_sizes(n: int, epochs: int, batch_size: int, last: str = "pad") -> None:
    """Raise a `ValueError` where `n` examples cannot be trained on so."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"batch_size must be from 1 to {n}, the number of examples, got {batch_size}"
        )
    if last not in ("pad", "drop"):
        raise ValueError(f"last must be 'pad' or 'drop', got {last!r}")


def _check_loss(
    sums: dict[str, trees.Sum], step: Step, state: Any, data: PyTree, rows: Any, padded: bool
) -> None:
    """Where the loss is NaN, run the same batches with their values known: a layer that can say
    what is wrong with them (a label out of range, say) then raises."""
    if np.isnan(sums["loss"].total):
        with jax.disable_jit():
            for batch_rows in rows:
                step.update(state, gather(data, batch_rows, padded))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C is only noted; the function given tells whether there was one."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    seen = False

    def note(*_: Any) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)
