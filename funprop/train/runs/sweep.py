"""`funprop train DATA --sweep ... --seeds ...`: many runs of a task as one compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.gradients import measure
from funprop.inspect.table import aligned
from funprop.layer import Layer
from funprop.steps import member, population, step
from funprop.train.data.in_memory import split
from funprop.train.fit import Fit, fit
from funprop.train.interrupts import CODES, Stopped
from funprop.train.population_table import PopulationTable, population_table
from funprop.train.runs.choices import (
    built,
    examples,
    grad_fn_of,
    optimizer_of,
    settled,
    sizes,
)
from funprop.train.runs.ensemble import softmax, trust
from funprop.train.runs.files import (
    check_choice,
    check_installed,
    check_seed,
    contents,
    save_reached,
    write_history,
    write_run,
    write_settings,
    write_text,
)
from funprop.train.runs.folder import checkpoints_of, run_folder, say_finished
from funprop.train.runs.outcome import NonFinite, guarded
from funprop.train.runs.plots import draw
from funprop.train.runs.recorded import display
from funprop.train.runs.sources import kind_of, name_of, task_of
from funprop.train.runs.sweep_values import grid
from funprop.train.runs.tasks import SPLIT_SEED
from funprop.train.runs.verified import few_in_float64
from funprop.train.task import Task
from funprop.verify import verify

if TYPE_CHECKING:
    from funprop.typing import PyTree

Keep = Literal["best", "all"]
# Of the training part: which member is the best is decided here, and how good it is on the test
# data, which has had no say in that.
CHOSEN_BY = 0.1


def train(
    name: str,
    *,
    sweep: tuple[str, ...],
    seeds: int = 1,
    keep: Keep = "best",
    options: Mapping[str, Any] | None = None,
    model: str | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    backward: Literal["manual", "autodiff"] = "manual",
    out: Path | None = None,
    nonfinite: NonFinite = "stop",
    restart: bool = False,
    override: bool = False,
) -> Path:
    """Train every combination of numbers with every seed, print a table, and write the folder.

    All see the same examples in the same order, that of `seed`; the params of the members are those
    of the seeds from there on, as `train --seed` makes them. A tenth of the training part decides
    which is the best.

    Returns:
      The folder: as that of a run, with the best member's params, or all (`keep`), `members.csv`
      and `sweep.png`.

    Raises:
      ValueError: an argument that cannot be, or a folder; before anything is computed or written.
      Stopped: a signal ended it; the folder is written, to be gone on with.
    """
    if kind_of(name) == "text":
        raise ValueError(f"sweep must be over data with targets, got {name!r}")
    check_choice("backward", backward, ("manual", "autodiff"))
    check_choice("keep", keep, ("best", "all"))
    chosen = task_of(name, options or {})
    if chosen.parts:
        raise ValueError(f"sweep must be over one target, got {len(chosen.parts)}")
    model, optimizer, rate = settled(chosen, model, optimizer, learning_rate, seed)
    check_seed(seed + seeds)
    numbers = grid(sweep, optimizer, seeds)
    if learning_rate is not None and "learning_rate" in numbers:
        raise ValueError("learning_rate must be left out, as the sweep is over it")
    chosen, apart = _parted(chosen)
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
        "nonfinite": nonfinite,
        "sweep": numbers,
        "seeds": seeds,
        "keep": keep,
    }
    check_installed()
    chosen, network, whole = built(chosen, model)
    grad_fn = grad_fn_of(whole, backward)

    def make(**numbers: Any) -> Any:
        made = optimizer_of(chosen, optimizer, rate, **numbers)
        return guarded(step(grad_fn, made), nonfinite)

    training = population(make, **numbers)
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds, dtype=jnp.uint32))
    state = training.init(lambda key: whole.init(key, chosen.train), keys)
    with run_folder(
        name_of(name), out, settings, trees.nbytes(state), restart=restart, override=override
    ) as (folder, finished):
        if finished:
            say_finished(folder, finished)
            return folder
        sets = max(1, len(next(iter(numbers.values()), [])))
        print(
            f"{chosen.title or name_of(name)}: {sets} sets of numbers with {seeds} seeds each, "
            f"{state.members} runs as one program\n{examples(chosen.train)} examples to train on, "
            f"{len(apart[1])} to choose by, {len(chosen.test[1])} to test\n"
        )
        _verify(whole, member(state, 0).params, chosen)
        result = fit(
            training,
            state,
            chosen.train,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            held_out=apart,
            measure=measure(grad_fn),
            progress=display(folder),
            checkpoints=checkpoints_of(folder, settings, override),
        )
        write_run(folder, lambda place: _write(place, chosen, network, settings, result))
        if result.stopped in CODES:
            print(f"{result.stopped.capitalize()}; the same command with --out {folder} goes on")
            raise Stopped(result.stopped)
    return folder


def _parted(chosen: Task) -> tuple[Task, PyTree]:
    """The task with a smaller training part, and what was taken from it."""
    seen, apart = split(chosen.train, CHOSEN_BY, SPLIT_SEED + 1)
    return replace(chosen, train=seen), apart[:2]


def _verify(whole: Layer, params: PyTree, chosen: Task) -> None:
    """The backward pass of one member, on a few examples in float64."""
    with jax.enable_x64(True):
        verify(whole, *few_in_float64(params, chosen)).raise_if_wrong()
    print("The backward pass of every layer is the derivative of its forward pass, to rounding.\n")


def _write(
    folder: Path, chosen: Task, network: Layer, settings: dict[str, Any], result: Fit
) -> None:
    """What became of it: the files, a table, and how good the best are on the test data."""
    if chosen.write is not None:
        chosen.write(folder)
    told = {"stopped": result.stopped, "final": result.history[-1] if result.history else None}
    write_history(folder, result.history)
    if result.history:
        table = population_table(result)
        table = table._replace(seed=table.seed + settings["seed"])
        best = table.best
        print(f"\n{table}\n")
        params = jax.device_get(result.state.params)
        forward = jax.jit(jax.vmap(lambda p: network.forward(p, chosen.test[0])[0]))
        outputs = np.asarray(forward(params))
        print(f"{_report(chosen, table, outputs)}\n")
        own = jax.tree.map(lambda leaf: leaf[best], params)
        save_reached(folder, own if settings["keep"] == "best" else params)
        write_text(folder / "members.csv", _csv(table))
        title = "funprop train {name}: {model}, {optimizer}"
        title = title.format(name=name_of(settings["data"]), **settings)
        table.draw(folder / "sweep.png", f"{title}, {result.state.members} runs at once")
        history = [row | {k: v[best] for k, v in row["members"].items()} for row in result.history]
        draw(folder / "report.png", chosen, history, outputs[best], f"{title}: the best")
        told |= {"best": {"member": best, **_numbers(table, best), "seed": _seed(table, best)}}
    finished = result.stopped not in CODES
    write_settings(folder, settings | told | {"nonfinite_update": None}, finished)
    print(contents(folder))


def _numbers(table: PopulationTable, i: int) -> dict[str, float]:
    return {name: float(f"{values[i]:.6g}") for name, values in table.numbers.items()}


def _seed(table: PopulationTable, i: int) -> int:
    return int(table.seed[i])


def _report(chosen: Task, table: PopulationTable, outputs: Any) -> str:
    """The best member, those with its numbers, and all together, on the test data."""
    best = table.best
    alike = [i for i in table.order if all(v[i] == v[best] for v in table.numbers.values())]
    sound = [i for i in table.order if np.isfinite(outputs[i]).all()]
    groups = {f"the best, member {best}": [best]}
    if len(alike) > 1:
        groups[f"the {len(alike)} seeds of its numbers, together"] = alike
    if sound:
        groups[f"all {len(sound)} that did not diverge, together"] = sound
    truth = chosen.test[1]
    if chosen.classes:
        head = ("on the test data", "accuracy", "log loss", "calibration error", "disagreement")
        columns = outputs if outputs.ndim == 3 else outputs[..., None]
        rows = [
            (name, f"{found.accuracy:.2%}", *(f"{x:.4f}" for x in found[1:]))
            for name, some in groups.items()
            for found in [trust(softmax(columns[some]), truth)]
        ]
    else:
        head = ("on the test data", "root mean square error", "spread of the members")
        rows = [
            (
                name,
                f"{np.sqrt(((outputs[some].mean(0) - truth) ** 2).mean()):.4f}",
                f"{outputs[some].std(0).mean():.4f}",
            )
            for name, some in groups.items()
        ]
    first, *lines = aligned([head, *rows], left=[0])
    return "\n".join([first, "-" * max(map(len, [first, *lines])), *lines])


def _csv(table: PopulationTable) -> str:
    """A line a member, in the order of the state: its numbers, its seed, its last metrics."""
    lines = [",".join(["member", *table.numbers, "seed", *table.curves])]
    for i in range(len(table.order)):
        last = (curve[-1, i] for curve in table.curves.values())
        cells = [i, *_numbers(table, i).values(), _seed(table, i), *last]
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"
