"""`ordered` against `data_parallel`: time of a step on 8 virtual devices.

Both steps jitted, their state donated and on the devices, the batch too. Target: at most 1.3 times.
Run: python -m tests.benchmarks.ordered
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import funprop as fp
from tests.benchmarks.harness import header, ratio, temporary

DEVICES = 8
MESH = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def digits(rows: int) -> tuple[fp.Layer, Any]:
    """The network of `funprop train digits`, with batches of random pictures."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.random((rows, 64), np.float32), rng.integers(0, 10, rows, np.int32)
    return fp.objective(fp.mlp(128, 64, 10), fp.softmax_cross_entropy()), (inputs, targets)


def language(rows: int) -> tuple[fp.Layer, Any]:
    """A small gpt, with windows of 64 random bytes."""
    text = np.random.default_rng(0).integers(0, 256, (rows, 65)).astype(np.int32)
    model = fp.gpt(256, features=128, depth=4, heads=4, longest=64)
    return fp.language_model(model, 256), (text[:, :-1], text[:, 1:])


def row(name: str, make: Callable[[int], tuple[fp.Layer, Any]], rows: int, parts: int) -> None:
    """One line of the table."""
    objective, batch = make(rows)
    params = objective.init(jax.random.key(0), batch)
    whole, split = (jax.NamedSharding(MESH, spec) for spec in (jax.P(), jax.P("data")))
    batch = jax.device_put(batch, split)
    grad_fn = fp.backprop(objective)
    steps = [
        fp.step(transform, optax.adam(1e-3))
        for transform in (fp.ordered(grad_fn, parts, MESH), fp.data_parallel(grad_fn, MESH))
    ]
    states = [jax.device_put(train.init(params, None), whole) for train in steps]
    memory = [
        temporary(train.update, state, batch) / 2**20
        for train, state in zip(steps, states, strict=True)
    ]

    def run(i: int) -> Any:
        states[i], metrics = steps[i].update(states[i], batch)
        return metrics["loss"].total

    measured, noise = ratio(lambda: run(0), lambda: run(1), pairs=30, calls=3)
    print(
        f"{name:8} {rows:5} {parts:5}  {memory[0]:9.1f} {memory[1]:9.1f}   "
        f"{measured}, noise {noise.median:.3f}"
    )


def main() -> None:
    """Print a row a model, batch and number of parts."""
    header()
    print("model     rows parts  temporary MiB, both   time, ordered / data_parallel")
    for rows, parts in ((64, 8), (512, 8), (512, 16), (512, 64)):
        row("digits", digits, rows, parts)
    for rows, parts in ((16, 8), (64, 8), (64, 16), (64, 64)):
        row("gpt", language, rows, parts)


if __name__ == "__main__":
    main()
