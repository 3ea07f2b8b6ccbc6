"""Ours against an expert's plain JAX and optax (one jitted, donated update a batch), on one
workload: time and temporary memory.

Targets: `fit` at least 1.4 times as fast as the expert's loop; one jitted update at most 1.02 of
the expert's time on digits, at most 1.00 on 784-2048-2048-10 with a batch of 1,024; temporary
memory no larger. Run: python -m tests.benchmarks.step_speed
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from funprop.train.runs.tasks import task
from tests.benchmarks.harness import Pair, header, paired, ratio
from tests.benchmarks.models import Sizes, expert_params, expert_step, ours


def mlp(sizes: Sizes, x: Any, y: Any) -> Pair:
    """One Adam update of the same network."""
    objective, optimizer = ours(sizes), optax.adam(1e-3)
    train = fp.step(fp.backprop(objective), optimizer)
    params = objective.init(jax.random.key(0), (x, y))
    theirs = expert_params(params), optimizer.init(expert_params(params))
    return paired(
        (train.update, train.init(params, None)), (expert_step(optimizer), theirs), (x, y)
    )


def one_update(sizes: Sizes, x: Any, y: Any, pairs: int, calls: int) -> None:
    """One update of each, again and again on one batch."""
    pair = mlp(sizes, x, y)
    memory = [program.memory_analysis().temp_size_in_bytes for program in pair.compiled]
    ours_over_theirs, noise = ratio(pair.ours, pair.theirs, pairs, calls)
    print(f"one update, {x.shape[1]}-{'-'.join(map(str, sizes))}, batch {len(x)}")
    print(f"  time, ours / expert's: {ours_over_theirs}")
    print(f"  the expert's over itself, for the noise: {noise}")
    print(f"  temporary bytes: ours {memory[0]:,}, expert's {memory[1]:,}")


def digits(epochs: int) -> tuple[Callable[[], Any], Callable[[Any, Any], Any]]:
    """`fit` over so many epochs of digits; and the expert's loop over the same, of the data and of
    a function that makes rows what they are indexed with."""
    data, sizes, batch = task("digits").train, (128, 64, 10), 64
    objective, optimizer = ours(sizes), optax.adam(1e-3)
    train, update = fp.step(fp.backprop(objective), optimizer), expert_step(optimizer)
    params = objective.init(jax.random.key(0), data)
    state, n = train.init(params, None), len(data[0])

    def run_fit() -> Any:
        how: Any = {"epochs": epochs, "batch_size": batch, "last": "drop", "progress": None}
        return fp.fit(train, state, data, **how).state

    def expert_loop(data: Any, rows_as: Callable[[Any], Any]) -> Any:
        p = expert_params(params)
        state = p, optimizer.init(p)
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(n)
            losses = []
            for i in range(0, n - batch + 1, batch):
                rows = rows_as(order[i : i + batch])
                state, loss = update(state, (data[0][rows], data[1][rows]))
                losses.append(loss)
            np.mean(jax.device_get(losses))  # the epoch's loss, as fit reports it
        return state

    return run_fit, expert_loop


def loops(epochs: int, pairs: int) -> None:
    """`fit` against the expert's loop over the same epochs, both compiled before."""
    run_fit, expert_loop = digits(epochs)
    in_numpy = task("digits").train
    on_device = tuple(map(jnp.asarray, in_numpy))
    print(f"{epochs} epochs of digits, steady state, speed of fit over that of the expert's loop")
    for name, run in {
        "batches taken in NumPy": lambda: expert_loop(in_numpy, lambda rows: rows),
        "batches taken on the device": lambda: expert_loop(on_device, jnp.asarray),
    }.items():
        fit_over_loop, noise = ratio(run_fit, run, pairs)
        faster = 1 / fit_over_loop.median
        print(f"  {name}: {faster:.2f} times; time ratio {fit_over_loop}, noise {noise}")


def main() -> None:
    """Print all of them."""
    header()
    x, y = (jnp.asarray(part[:64]) for part in task("digits").train)
    loops(epochs=30, pairs=15)
    one_update((128, 64, 10), x, y, pairs=150, calls=50)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1024, 784)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, 1024), jnp.int32)
    one_update((2048, 2048, 10), x, y, pairs=15, calls=1)


if __name__ == "__main__":
    main()
