"""The update inside the backward pass against gradient-then-update: memory and time of one step.

Twelve residual MLP blocks, under `repeat` and one after the other, with Adam; both steps jitted,
their state donated. Target, under `repeat`: lower by the size of the gradient, time no worse.
Run: python -m tests.benchmarks.fused_update
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from funprop import trees
from tests.benchmarks.harness import header, ratio

BLOCKS, WIDTH, HIDDEN = 12, 384, 1536
MIB = 2**20


def peak(update: Any, state: Any, batch: Any) -> float:
    """MiB that are live at once: arguments, outputs that are not arguments' memory, temporaries."""
    memory = update.lower(state, batch).compile().memory_analysis()
    live = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (live - memory.alias_size_in_bytes) / MIB


def row(name: str, model: fp.Layer, optimizer: optax.GradientTransformation, rows: int) -> None:
    """One line of the table."""
    objective = fp.objective(model, fp.mean_squared())
    batch = jnp.ones((rows, WIDTH)), jnp.zeros((rows, WIDTH))
    params = objective.init(jax.random.key(0), batch)
    steps = fp.fused_step(objective, optimizer), fp.step(fp.backprop(objective), optimizer)
    states = [train.init(params, None) for train in steps]
    memory = [peak(train.update, state, batch) for train, state in zip(steps, states, strict=True)]

    def run(i: int) -> Any:
        states[i], metrics = steps[i].update(states[i], batch)
        return metrics["loss"].total

    fused_over_plain, noise = ratio(lambda: run(0), lambda: run(1), pairs=30)
    gradient = trees.nbytes(params) / MIB
    print(
        f"{name:24} {rows:5} {gradient:8.1f} {memory[0]:8.1f} {memory[1]:8.1f} "
        f"{(memory[1] - memory[0]) / gradient:6.2f}   {fused_over_plain}, noise {noise.median:.3f}"
    )


def main() -> None:
    """Print a row a model."""
    header()
    block = fp.residual(fp.serial(fp.dense(HIDDEN), fp.gelu(), fp.dense(WIDTH)))
    repeated = fp.repeat(block, BLOCKS)
    print("MiB                       rows gradient    fused    plain  saved   time, fused / plain")
    for rows in (64, 512):
        row("repeat, adam", repeated, optax.adam(1e-3), rows)
    row("repeat, momentum", repeated, optax.sgd(1e-3, momentum=0.9), 64)
    row("repeat of remat, adam", fp.repeat(fp.remat(block), BLOCKS), optax.adam(1e-3), 512)
    row("serial, adam", fp.serial(*[block] * BLOCKS), optax.adam(1e-3), 64)


if __name__ == "__main__":
    main()
