"""What `funprop train` does: describe, verify, train, report, write."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from funprop import trees
from funprop.gradients import measure
from funprop.inspect.summary import summary
from funprop.layer import Layer
from funprop.steps import step
from funprop.train import processes
from funprop.train.arrays import spread
from funprop.train.runs import in_folder
from funprop.train.runs.choices import (
    built,
    examples,
    grad_fn_of,
    optimizer_of,
    settled,
    sizes,
)
from funprop.train.runs.files import (
    check_choice,
    check_installed,
)
from funprop.train.runs.in_folder import Shown
from funprop.train.runs.outcome import NonFinite, Outcome, guarded
from funprop.train.runs.plots import draw
from funprop.train.runs.recorded import display
from funprop.train.runs.replay import Work
from funprop.train.runs.sources import OPTIONS, name_of, task_of
from funprop.train.runs.told import report
from funprop.train.runs.verified import verify_task
from funprop.train.stopping import Row
from funprop.train.task import Task


def train(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    model: str | None = None,
    optimizer: str | None = None,
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
    watch: bool = False,
) -> Path:
    """Train a model on a data set, print how it goes, and write the run's folder.

    `name` is a known set, a file, a folder or `module:task`; `options` says how a file or a folder
    is to be read. Without a model, it is the task's first; without a number, the task's own. With
    `all_devices` batches are split over all that the run's processes have; `ordered` says into how
    many parts, for bits that do not depend on their number. A run that `out` holds is gone on with,
    to the same bits as if it had not been stopped; one that is finished is left as it is. With
    `watch` the folder has `gradient_flow.png` too.

    Returns:
      The folder: `history.jsonl`, `params.safetensors`, `report.png`, `run.json`, `checkpoints`.

    Raises:
      ValueError: an argument that cannot be, or a folder; before anything is computed or written.
      FloatingPointError: training diverged; the folder is written all the same.
      Stopped: a signal ended it; the folder is written, to be gone on with.
    """
    check_choice("backward", backward, ("manual", "autodiff"))
    chosen = task_of(name, options or {})
    model, optimizer, rate = settled(chosen, model, optimizer, learning_rate, seed)
    epochs, batch_size = sizes(chosen, epochs, batch_size)
    settings = {
        "data": name,
        **(options or {}),
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
    chosen, network, whole = built(chosen, model)
    work = _work(chosen, whole, settings, all_devices)
    title = "funprop train {name}: {model}, {optimizer}, learning rate {learning_rate:g}"
    title = title.format(name=name_of(name), **settings)

    def begin(folder: Path) -> Shown:
        _describe(chosen, name_of(name), network, batch_size)
        verify_task(whole, work.state.params, chosen)
        by = "the hand-written backward pass" if backward == "manual" else "jax.vjp"
        print(f"Training by {by}: {optimizer}, learning rate {rate:g}, seed {seed}\n")
        write = functools.partial(_write, chosen, network, title)
        return Shown(measure(grad_fn_of(whole, backward)), display(folder), write)

    size = trees.nbytes(work.state)
    own = in_folder.Job(name_of(name), title, settings, work, chosen.test, size, begin)
    return in_folder.train(own, out, restart=restart, override=override, watch=watch)


def work_of(settings: dict[str, Any]) -> Work:
    """What a run with these settings repeats."""
    options = {name: settings[name] for name in OPTIONS if settings.get(name) is not None}
    chosen, _, whole = built(task_of(settings["data"], options), settings["model"])
    return _work(chosen, whole, settings, all_devices=False)


def _work(chosen: Task, whole: Layer, settings: dict[str, Any], all_devices: bool) -> Work:
    seed = settings["seed"]
    grad_fn = grad_fn_of(whole, settings["backward"])
    size = settings["batch_size"]
    split, mesh = spread(grad_fn, size, all_devices, settings["ordered"])
    optimizer = optimizer_of(chosen, settings["optimizer"], settings["learning_rate"])
    training = guarded(step(split, optimizer), settings["nonfinite"])
    init_key, train_key = jax.random.split(jax.random.key(seed))
    state = training.init(whole.init(init_key, chosen.train), train_key)
    options = {"epochs": settings["epochs"], "batch_size": size, "seed": seed, "mesh": mesh}
    return Work(training, state, chosen.train, options)


def _describe(chosen: Task, title: str, network: Layer, batch_size: int) -> None:
    n, n_test = examples(chosen.train), examples(chosen.test)
    print(f"{chosen.title or title}: {n} examples to train on, {n_test} held out")
    print(*chosen.notes, sep="\n", end="\n\n" if chosen.notes else "\n")
    specs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), chosen.train[0]
    )
    print(f"The model, for a batch of {batch_size}\n\n{summary(network, specs)}\n")


def _write(
    chosen: Task,
    network: Layer,
    title: str,
    folder: Path,
    params: Any,
    history: Sequence[Row],
    outcome: Outcome,
) -> None:
    """What the task keeps, and a picture; and say how good the model is."""
    if chosen.write is not None:
        chosen.write(folder)
    forward = jax.jit(lambda p, x: network.forward(p, x)[0])
    outputs = jax.device_get(forward(params, chosen.test[0]))
    if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs)):
        print(f"\n{report(chosen, outputs)}\n")
    if history:
        draw(folder / "report.png", chosen, history, outputs, title)
