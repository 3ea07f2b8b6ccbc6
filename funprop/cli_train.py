"""`funprop train`: what the command line takes, and what it calls."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from funprop.starting import started


def train(
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")],
    target: tuple[str, ...] = (),
    task: Literal["classification", "regression"] | None = None,
    class_weights: Literal["balanced"] | None = None,
    time: str | None = None,
    group: str | None = None,
    held_out: float | None = None,
    image_size: int | None = None,
    model: str | None = None,
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    backward: Literal["manual", "autodiff"] = "manual",
    out: Path | None = None,
    processes: int | None = None,
    distributed: bool = False,
    ordered: int | None = None,
    nonfinite: Literal["stop", "skip"] = "stop",
    sweep: tuple[str, ...] = (),
    seeds: int | None = None,
    keep: Literal["best", "all"] = "best",
    restart: bool = False,
    override: bool = False,
    watch: bool = False,
) -> int:
    """Train a network on a file, a folder or a known set.

    By a hand-written backward pass. Prints the model, checks the gradient of every layer, trains,
    reports on held-out data and writes a run folder.

    Args:
      data: a table (.csv, .csv.gz, .tsv or .parquet) with --target; a folder that has a folder of
        images for each class; a folder of .txt files, or one; a task of your own,
        my_module:task. Or a known set: digits, digits-denoise, iris, breast-cancer, diabetes; or
        stdlib, for a language model of the sources of Python's standard library, which shows
        what it writes as it learns; or a file of tokens that funprop prepare wrote.
      target: of a table: the column to predict, or several.
      task: of a table, whether the target is classes or a number, where that is guessed wrongly.
      class_weights: balanced: all classes count alike, however rare.
      time: of a table: the rows that are last by this column are held out.
      group: of a table: whole groups of rows are held out, by this column.
      held_out: the share that is not trained on, 0.2 if none is given.
      image_size: pixels of a side that images are resized to, 32 if none is given.
      model: which network: mlp or linear for tables, cnn or mlp for images, mlp, cnn or rnn for
        digits, autoencoder for digits-denoise, llama or gpt for text, else mlp; without it, the
        first of these.
      optimizer: how the gradient becomes an update; without it, what suits the data.
      learning_rate: of the optimizer; without it, what suits the data.
      epochs: how often to go over the data; without it, what suits the data.
      batch_size: examples an update; without it, what suits the data.
      seed: of the params and of the order of the examples.
      backward: by the hand-written backward pass, or by jax.vjp.
      out: the run folder; without it, a new one under runs/. Where it holds a run that was
        stopped, or has fewer epochs than are asked for, that is gone on with.
      processes: split every batch over so many processes, started on this host; 1 for all
        devices of this one.
      distributed: split every batch over the processes that a scheduler started with this same
        command (SLURM, Kubernetes, TPU pods).
      ordered: into how many parts a batch is cut, for bits that do not depend on the number of
        devices and processes.
      nonfinite: whether an update whose loss or gradient is infinite or NaN ends the run, or is
        left out (ten in a row end it). It is never applied.
      sweep: NAME=LOW..HIGH:COUNT or NAME=VALUE,VALUE: many runs as one program, each with a
        learning-rate, weight-decay, momentum, b1 or b2 of its own; of many, every combination.
      seeds: how many seeds a sweep has of each, from seed on.
      keep: the params of the best run of a sweep, or those of all, stacked.
      restart: give the run that the folder holds another name, and begin anew.
      override: go on with the run that the folder holds though settings differ from its own.
      watch: look into the layers now and then, and draw gradient_flow.png: how activations,
        cotangents and updates are spread, by layer, over epochs.
    """
    if distributed and processes is not None:
        raise ValueError("a scheduler decides how many processes there are")
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if watch and (sweep or seeds or distributed or processes or ordered or backward != "manual"):
        raise ValueError(
            "watch is of one run on one process by the hand-written backward pass, without sweep, "
            "seeds, processes, distributed, ordered and backward autodiff"
        )
    given = {
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "backward": backward,
        "out": out,
        "all_devices": distributed or processes is not None,
        "ordered": ordered,
        "nonfinite": nonfinite,
        "restart": restart,
        "override": override,
    }
    from funprop.train.compilation import cache_compilations, compiling
    from funprop.train.launching import launch
    from funprop.train.processes import joined

    if sweep or seeds is not None:
        given |= {"sweep": sweep, "seeds": 1 if seeds is None else seeds, "keep": keep}
    elif watch:
        given["watch"] = True
    options = {
        "target": list(target) or None,
        "task": task,
        "class_weights": class_weights,
        "time": time,
        "group": group,
        "held_out": held_out,
        "image_size": image_size,
    }
    options = {name: value for name, value in options.items() if value is not None}
    run = _chosen(data, options, model, optimizer, given)

    def timed() -> None:
        with compiling() as seconds:
            run()
        print(f"Compiling took {sum(seconds):.1f} s of it")

    cache_compilations()
    started()
    if processes is not None and processes > 1:
        launch(processes, run)
    elif distributed:
        joined(timed)
    else:
        timed()
    return 0


def _chosen(
    data: str,
    options: dict[str, Any],
    model: str | None,
    optimizer: str | None,
    given: dict[str, Any],
) -> Callable[[], object]:
    """What trains on the data: to be called here, or in other processes."""
    from funprop.train.runs.sources import check_options, kind_of

    if "sweep" in given:
        if given.pop("all_devices") or given.pop("ordered") is not None:
            raise ValueError("a sweep is of one process, without processes and ordered")
        from funprop.train.runs import sweep

        words = {"options": options, "model": model, "optimizer": optimizer}
        return functools.partial(sweep.train, data, **words, **given)
    if kind_of(data) == "text":
        check_options("text", data, options)
        if optimizer not in (None, "adam", "adamw"):
            raise ValueError(f"text is trained on by adamw, got {optimizer!r}")
        from funprop.train.runs import text

        return functools.partial(text.train, data, model=model or "llama", **given)
    from funprop.train.runs import job

    words = {"options": options, "model": model, "optimizer": optimizer}
    return functools.partial(job.train, data, **words, **given)
