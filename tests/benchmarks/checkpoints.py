"""What checkpoints cost: time beside training, and memory over a thousand of them.

A GPT of 6 blocks, 256 features, sequences of 256, batch 4, vocabulary 8,192 with AdamW; targets: a
checkpoint every 100 updates takes at most 3% of the run's time, and after the first hundred of a
thousand checkpoints resident memory stays what it is.
Run: python -m tests.benchmarks.checkpoints time|memory
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from funprop import trees
from funprop.train.checkpoints import Checkpoints
from tests.benchmarks.harness import header
from tests.benchmarks.language_models import tokens, transformer

EVERY = 100  # updates
BLOCK = 4  # updates, in the midst of which one is written
PAIRS = 3


def gpt() -> tuple[fp.Step, Any, Any]:
    """`(step, state, batch)`."""
    batch = tokens(4, 256, 8192)
    objective = transformer(lambda block: block)
    train = fp.step(fp.backprop(objective), optax.adamw(3e-4))
    return train, train.init(objective.init(jax.random.key(0), batch), jax.random.key(1)), batch


def cost(folder: Path) -> None:
    """Blocks of updates, with a checkpoint and without, in turns; a checkpoint is waited for in its
    block, so that its work in the background counts."""
    train, state, batch = gpt()
    update: Any = train.update
    took: dict[bool, list[float]] = {False: [], True: []}
    held: list[float] = []
    with Checkpoints(folder, keep=2) as checkpoints:
        for i in range(2 * PAIRS + 2):
            saves = bool(i % 2)
            start = time.perf_counter()
            state, _ = update(state, batch)
            if saves:
                jax.block_until_ready(state)
                begun = time.perf_counter()
                checkpoints.save(state, i)
                held.append(time.perf_counter() - begun)
            for _ in range(BLOCK - 1):
                state, _ = update(state, batch)
            jax.block_until_ready(state)
            if saves:
                checkpoints.all()
            took[saves].append(time.perf_counter() - start)
    without, with_one = (np.array(took[saves][1:]) for saves in (False, True))  # the first compile
    one = float(np.median(without)) / BLOCK
    extra = float(np.median(with_one - without))
    print(
        f"{trees.size(state.params):,} params, {trees.nbytes(state) / 2**20:.0f} MiB of state; an "
        f"update {1000 * one:.0f} ms\na checkpoint: save returns after "
        f"{1000 * np.median(held[1:]):.0f} ms, in all {1000 * extra:.0f} ms more\n"
        f"every {EVERY} updates: {extra / (EVERY * one):.2%} of the time (at most 3%)"
    )


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(folder: Path, n: int = 1000) -> None:
    """Of a small state, whose arrays are donated from one update to the next."""
    state: Any = {f"w{i}": jnp.full((64, 1024), float(i)) for i in range(8)}
    update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with Checkpoints(folder, keep=2) as checkpoints:
        for i in range(1, n + 1):
            state = update(state)
            checkpoints.save(state, i, {"history": [{"loss": 1.0}] * 10})
            if i in (1, 10, 100) or i % 225 == 100:
                print(f"{i} checkpoints of 2 MiB: {resident():.0f} MiB resident", flush=True)


def main() -> None:
    header()
    with tempfile.TemporaryDirectory() as folder:
        {"time": cost, "memory": memory}[sys.argv[1]](Path(folder))


if __name__ == "__main__":
    main()
