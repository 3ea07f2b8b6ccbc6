"""What `funprop train` does: describe, verify, train, report, write."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funprop import trees
from funprop.gradients import backprop, measure
from funprop.inspect.summary import summary
from funprop.inspect.table import aligned
from funprop.inspect.visits import compiled_visits
from funprop.layer import Layer
from funprop.objectives import objective
from funprop.rewrites import autodiff
from funprop.steps import step
from funprop.train import processes
from funprop.train.arguments import check_sizes
from funprop.train.arrays import spread
from funprop.train.fit import Fit, fit
from funprop.train.runs.files import (
    check_choice,
    check_installed,
    check_rate,
    check_seed,
    contents,
    save_reached,
    write_history,
    write_run,
    write_settings,
)
from funprop.train.runs.folder import checkpoints_of, run_folder, say_finished
from funprop.train.runs.outcome import NonFinite, Outcome, check_outcome, guarded, outcome_of
from funprop.train.runs.plots import confusion, draw
from funprop.train.runs.recorded import display
from funprop.train.runs.replay import Work
from funprop.train.runs.tasks import Task, task
from funprop.verify import Check, Report, verify

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
}
SGD_RATES = {"sgd": 0.1, "momentum": 0.03}  # the tasks' own rates are for Adam
VERIFIED_EXAMPLES = 8


def train(
    name: str,
    *,
    model: str | None = None,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    backward: Literal["manual", "autodiff"] = "manual",
    out: Path | None = None,
    all_devices: bool = False,
    ordered: int | None = None,
    nonfinite: NonFinite = "stop",
    restart: bool = False,
    override: bool = False,
) -> Path:
    """Train a model on a data set, print how it goes, and write the run's folder.

    Without a model, it is the task's first; without a number, the task's own. With `all_devices`
    batches are split over all that the run's processes have; `ordered` says into how many parts,
    for bits that do not depend on their number. A run that `out` holds is gone on with, to the same
    bits as if it had not been stopped; one that is finished is left as it is.

    Returns:
      The folder: `history.jsonl`, `params.safetensors`, `report.png`, `run.json`, `checkpoints`.

    Raises:
      ValueError: an argument that cannot be, or a folder; before anything is computed or written.
      FloatingPointError: training diverged; the folder is written all the same.
      Stopped: a signal ended it; the folder is written, to be gone on with.
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_choice("backward", backward, ("manual", "autodiff"))
    chosen = task(name)
    model = next(iter(chosen.models)) if model is None else model
    check_choice("model", model, chosen.models)
    rate = (
        SGD_RATES.get(optimizer, chosen.learning_rate) if learning_rate is None else learning_rate
    )
    check_rate(rate)
    check_seed(seed)
    epochs = chosen.epochs if epochs is None else epochs
    batch_size = chosen.batch_size if batch_size is None else batch_size
    check_sizes(len(chosen.train[0]), epochs, batch_size)
    settings = {
        "data": name,
        "model": model,
        "optimizer": optimizer,
        "learning_rate": rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "backward": backward,
        "ordered": ordered,
        "nonfinite": nonfinite,
    }
    check_installed()
    processes.check_same((chosen.train, chosen.test), settings)

    network, whole = _model(chosen, settings)
    work = _work(chosen, whole, settings, all_devices)
    with run_folder(
        name, out, settings, trees.nbytes(work.state), restart=restart, override=override
    ) as (folder, finished):
        if finished:
            say_finished(folder, finished)
            return folder
        _describe(chosen, network, batch_size)
        _verify(whole, work.state.params, chosen)
        by = "the hand-written backward pass" if backward == "manual" else "jax.vjp"
        print(f"Training by {by}: {optimizer}, learning rate {rate:g}, seed {seed}\n")
        result = fit(
            work.step,
            work.state,
            work.data,
            held_out=chosen.test,
            measure=measure(_grad_fn(whole, backward)),
            progress=display(folder),
            checkpoints=checkpoints_of(folder, settings, override),
            **work.options,
        )
        outcome = outcome_of(work, result)
        if processes.first():
            write_run(
                folder, lambda place: _write(place, chosen, network, settings, result, outcome)
            )
        check_outcome(outcome, folder)
    return folder


def work_of(settings: dict[str, Any]) -> Work:
    """What a run with these settings repeats."""
    chosen = task(settings["data"])
    return _work(chosen, _model(chosen, settings)[1], settings, all_devices=False)


def _work(chosen: Task, whole: Layer, settings: dict[str, Any], all_devices: bool) -> Work:
    seed = settings["seed"]
    grad_fn = _grad_fn(whole, settings["backward"])
    size = settings["batch_size"]
    split, mesh = spread(grad_fn, size, all_devices, settings["ordered"])
    optimizer = OPTIMIZERS[settings["optimizer"]](settings["learning_rate"])
    training = guarded(step(split, optimizer), settings["nonfinite"])
    init_key, train_key = jax.random.split(jax.random.key(seed))
    state = training.init(whole.init(init_key, chosen.train), train_key)
    options = {"epochs": settings["epochs"], "batch_size": size, "seed": seed, "mesh": mesh}
    return Work(training, state, chosen.train, options)


def _model(chosen: Task, settings: dict[str, Any]) -> tuple[Layer, Layer]:
    """The network, and the objective around it."""
    network = chosen.models[settings["model"]]()
    return network, objective(network, chosen.loss, **chosen.metrics)


def _grad_fn(whole: Layer, backward: str) -> Any:
    return backprop(whole if backward == "manual" else autodiff(whole))


def _describe(chosen: Task, network: Layer, batch_size: int) -> None:
    n, n_test = len(chosen.train[0]), len(chosen.test[0])
    print(f"{chosen.title}: {n} examples to train on, {n_test} held out\n")
    specs = jax.ShapeDtypeStruct((batch_size, *chosen.train[0].shape[1:]), jnp.float32)
    print(f"The model, for a batch of {batch_size}\n\n{summary(network, specs)}\n")


def _write(
    folder: Path,
    chosen: Task,
    network: Layer,
    settings: dict[str, Any],
    result: Fit,
    outcome: Outcome,
) -> None:
    """Write what training came to, what took longest first; then say how good it is."""
    params = jax.device_get(result.state.params)
    save_reached(folder, params)
    write_history(folder, result.history)
    outputs = np.asarray(jax.jit(lambda p, x: network.forward(p, x)[0])(params, chosen.test[0]))
    if np.isfinite(outputs).all():
        print(f"\n{_report(chosen, outputs)}\n")
    if result.history:
        title = "funprop train {data}: {model}, {optimizer}, learning rate {learning_rate:g}"
        draw(folder / "report.png", chosen, result.history, outputs, title.format(**settings))
    write_settings(folder, settings | outcome.told(), outcome.finished)
    print(contents(folder))


def _verify(whole: Any, params: Any, chosen: Task) -> None:
    """Check every layer's backward, and all of them in a chain, on the first examples in float64;
    print a row each. The combinators between are judged by the chain alone: each of them by itself
    costs as much as the whole."""
    some = jax.tree.map(lambda leaf: leaf[:VERIFIED_EXAMPLES], chosen.train)
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == np.float32 else leaf,
            (params, some),
        )
        rows, notes = {}, ()
        for visit in compiled_visits(whole, *wide):
            if visit.layer.children:
                continue
            alone = verify(visit.layer, visit.params, visit.x)
            rows[visit.path] = tuple(
                check._replace(path=f"{visit.path}/{check.path}") for check in alone.checks
            )
            notes += alone.notes
        # Without its children in sight, the whole is judged as one: every backward in a chain.
        at_once = verify(dataclasses.replace(whole, children=(), rebuild=None), *wide)
    rows["all of them, chained"] = at_once.checks
    print(f"The backward pass of every layer, in float64, on {len(some[0])} examples\n")
    print(_by_layer(rows))
    report = Report(tuple(itertools.chain(*rows.values())), notes + at_once.notes)
    report.raise_if_wrong()
    print("\nEvery hand-written gradient is the derivative of its forward pass, to rounding.\n")


def _by_layer(groups: dict[str, tuple[Check, ...]]) -> str:
    rows = [("layer", "gradients", "off the truth by", "allowed", "")]
    for layer, checks in groups.items():
        rows.append(
            (
                layer,
                ", ".join(c.path.removeprefix(f"{layer}/") for c in checks)
                if len(checks) < 4
                else "all params and inputs",
                f"{max(c.error for c in checks):.1e}",
                f"{max(c.allowed for c in checks):.1e}",
                "WRONG" if any(c.problem for c in checks) else "ok",
            )
        )
    lines = aligned(rows, left=(0, 1, 4))
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _report(chosen: Task, outputs: Any) -> str:
    """Accuracy and confusion matrix; for a regression, the errors in the target's unit; for
    pictures out of pictures, how far from the target they are, and were."""
    inputs, truth = chosen.test
    if not chosen.classes and chosen.image_shape:
        after, before = (np.sqrt(((x - truth) ** 2).mean()) for x in (outputs, inputs))
        return f"Test: pixels off by {after:.3f} (root mean square), {before:.3f} before"
    if not chosen.classes:
        unit, _, deviation = chosen.unit
        error = (chosen.decide(outputs) - truth) * deviation
        explained = 1 - float((error**2).mean() / (truth * deviation).var())
        return (
            f"Test: {unit} off by {np.abs(error).mean():.1f} on average, "
            f"root mean square {np.sqrt((error**2).mean()):.1f}, R^2 {explained:.3f}"
        )
    counts = confusion(chosen, outputs)
    right, n = int(np.trace(counts)), len(truth)
    width = max(5, *(len(name) + 2 for name in chosen.classes))
    rows = ["".join(name.rjust(width) for name in ("", *chosen.classes))]
    rows += [
        name.rjust(width) + "".join((str(c) if c else ".").rjust(width) for c in row)
        for name, row in zip(chosen.classes, counts, strict=True)
    ]
    return (
        f"Test accuracy {right / n:.2%} ({right} of {n} right)\n\n"
        "Confusion matrix (rows: the truth; columns: what the network says)\n\n" + "\n".join(rows)
    )
