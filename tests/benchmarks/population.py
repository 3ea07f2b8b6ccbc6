"""Many runs as one program, against one run of the same: the digits MLP, and a small one on iris.

64 learning rates and seeds by `population` and `fit`, against `fit` of one of them, compiled and
warm, A B A B in one process; and against 64 runs one after the other, which is 64 times one (each
learning rate is a program of its own there, whose compiling is told beside).

Run: python -m tests.benchmarks.population [--pairs 5] [--epochs 5]
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from funprop.train.runs.tasks import task
from tests.benchmarks.harness import ratio

RATES, SEEDS = np.logspace(-4, -1, 16), 4


def runs(name: str, epochs: int) -> tuple[Any, Any]:
    """`fit` of one run, and of all; each compiles once."""
    chosen = task(name)
    model = next(iter(chosen.models.values()))()
    whole = fp.objective(model, chosen.loss, **chosen.metrics)
    grad_fn = fp.backprop(whole)
    one = fp.step(grad_fn, optax.adam(1e-3))
    many = fp.population(lambda rate: fp.step(grad_fn, optax.adam(rate)), rate=RATES)
    keys = jax.random.split(jax.random.key(0), SEEDS)
    states = (
        one.init(whole.init(keys[0], chosen.train), None),
        many.init(lambda key: whole.init(key, chosen.train), keys),
    )
    options = {"epochs": epochs, "batch_size": chosen.batch_size, "progress": None}

    def trained(step: fp.Step, state: Any) -> Any:
        return fp.fit(step, state, chosen.train, **options).state

    return lambda: trained(one, states[0]), lambda: trained(many, states[1])


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("names", nargs="*", default=["digits", "iris"])
    given = parser.parse_args()
    jnp.zeros(1).block_until_ready()
    for name in given.names:
        one, many = runs(name, given.epochs)
        compiling = []
        for run in (one, many):
            start = time.perf_counter()
            jax.block_until_ready(run())
            compiling.append(time.perf_counter() - start)
        found, noise = ratio(many, one, given.pairs)
        n = len(RATES) * SEEDS
        print(
            f"{name}, {n} runs over one, {given.epochs} epochs: time {found}; of one over itself "
            f"{noise}; the first call, compiling included: one {compiling[0]:.1f} s, all "
            f"{compiling[1]:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
