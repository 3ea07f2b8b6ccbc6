"""One AdamW update of a GPT, ours and plain JAX's: time and temporary memory.

6 blocks, 256 features, 8 heads, sequences of 256, batch 4, vocabulary 8,192. Targets: at least 2.1
times as fast as plain JAX in at most 0.35 of its memory; with `remat` 1.9 times in 0.15.
Run: python -m tests.benchmarks.gpt_update [SECONDS]
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from tests.benchmarks.harness import header, temporary
from tests.benchmarks.language_models import plain_loss, tokens, transformer, transformer_block
from tests.benchmarks.models import expert_step

RATE = 3e-4


def ours(params: Any, rewrite: Callable[[fp.Layer], fp.Layer]) -> tuple[Any, Any]:
    """`(update, state)`."""
    train = fp.step(fp.backprop(transformer(rewrite)), optax.adamw(RATE))
    return train.update, train.init(jax.tree.map(jnp.copy, params), None)


def plain(params: Any, one: Callable[..., Any]) -> tuple[Any, Any]:
    """The same in plain JAX and optax, jitted and donated."""
    loss, optimizer = plain_loss(one, True), optax.adamw(RATE)
    update = expert_step(optimizer, lambda params, batch: loss(params, batch) / batch[0].size)
    return update, (jax.tree.map(jnp.copy, params), optimizer.init(params))


def main(seconds: float = 60) -> None:
    """Print the table: updates in turns, for so long."""
    header()
    batch = tokens(4, 256, 8192)
    params = transformer(lambda block: block).init(jax.random.key(0), batch)
    one = functools.partial(transformer_block, 8)
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    forms = {
        "plain JAX": plain(params, one),
        "plain JAX, best checkpoint": plain(params, jax.checkpoint(one, policy=policy)),
        "by hand": ours(params, fp.keep_products),
        "by hand, all kept": ours(params, lambda block: block),
        "by hand, remat": ours(params, fp.remat),
    }
    memory = {name: temporary(*form, batch) for name, form in forms.items()}
    states = {name: update(state, batch)[0] for name, (update, state) in forms.items()}
    took: dict[str, list[float]] = {name: [] for name in forms}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (update, _) in forms.items():
            start = time.perf_counter()
            states[name], told = update(states[name], batch)
            jax.block_until_ready((states[name], told))
            took[name].append(time.perf_counter() - start)
    base, held = took["plain JAX"], memory["plain JAX"]
    for name, mine in took.items():
        low, median, high = np.percentile(np.array(base) / np.array(mine), [25, 50, 75])
        print(
            f"{name:28} speed {median:.2f} ({low:.2f} to {high:.2f}; of the fastest "
            f"{min(base) / min(mine):.2f}), memory {memory[name] / held:.3f} "
            f"({memory[name] / 2**20:.1f} MiB), n {len(mine)}"
        )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
