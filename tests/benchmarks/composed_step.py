"""A step composed of transforms and wrappers against the same written straight in one function.

Microbatches, mixed precision, clipping by the global norm (optax's), Adam, an average of the
params, and updates that are not finite left out. Run: python -m tests.benchmarks.composed_step
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from tests.benchmarks.harness import header, ratio, temporary

PARTS = 4
DECAY = 0.999
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def composed(objective: fp.Layer) -> fp.Step:
    """As a user writes it."""
    grad_fn = fp.microbatch(fp.mixed_precision(fp.backprop(objective)), PARTS)
    return fp.skip_nonfinite(fp.ema(fp.step(grad_fn, OPTIMIZER), DECAY))


def straight(objective: fp.Layer) -> tuple[Any, Any]:
    """`init` and `update` as an expert writes them, on the same backward pass."""
    backprop = fp.backprop(objective)

    def lower(tree: Any) -> Any:
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16), tree)

    def init(params: Any) -> Any:
        zero = jnp.zeros((), jnp.int32)
        return jax.tree.map(jnp.copy, (params, OPTIMIZER.init(params), params, zero, zero))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, batch: Any) -> Any:
        params, opt_state, average, skipped, count = state
        low = lower(params)

        def one(total: Any, part: Any) -> Any:
            x, labels = part
            x = lower(x) if jnp.issubdtype(x.dtype, jnp.floating) else x
            found = backprop(low, (x, labels))
            found = (found.grads, found.loss, found.weight)
            return jax.tree.map(lambda t, f: t + f.astype(t.dtype), total, found), None

        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros(())
        parts = jax.tree.map(lambda leaf: leaf.reshape(PARTS, -1, *leaf.shape[1:]), batch)
        (grads, loss, weight), _ = jax.lax.scan(one, zeros, parts)
        grads = jax.tree.map(lambda g: g / weight, grads)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
        updates, new_opt = OPTIMIZER.update(grads, opt_state, params)
        new = optax.apply_updates(params, updates)
        moved = jax.tree.map(lambda a, p: a + (1 - DECAY) * (p - a), average, new)
        kept = jax.tree.map(
            lambda n, o: jnp.where(finite, n, o),
            (new, new_opt, moved),
            (params, opt_state, average),
        )
        return (*kept, jnp.where(finite, 0, skipped + 1), count + 1), (loss, weight)

    return init, update


def compare(name: str, objective: fp.Layer, batch: Any, pairs: int = 40) -> None:
    """Print the ratios of one model."""
    params = objective.init(jax.random.key(0), batch)
    ours = composed(objective)
    init, update = straight(objective)
    states = {"ours": ours.init(params, None), "theirs": init(params)}
    updates = {"ours": ours.update, "theirs": update}
    memory = [temporary(f, states[who], batch) for who, f in updates.items()]

    def run(who: str) -> Any:
        states[who], told = updates[who](states[who], batch)
        return jax.tree.leaves(told)[0]

    for who in ("ours", "theirs") * 3:
        run(who)
    # As a whole, not number by number: where bfloat16 rounds a gradient to another sign, Adam's
    # first steps go the other way by all of the learning rate.
    ends = states["ours"].params, states["theirs"][0]
    far = apart(*ends) / apart(ends[1], params)
    assert far < 0.1, far
    time, noise = ratio(lambda: run("ours"), lambda: run("theirs"), pairs)
    print(
        f"{name}: time {time.median:.3f} ({time.low:.3f} to {time.high:.3f}; noise "
        f"{noise.median:.2f}), memory {memory[0] / memory[1]:.3f} of {memory[1] / 2**20:.1f} MiB"
    )


def apart(a: Any, b: Any) -> float:
    """The distance of two trees of params."""
    return float(optax.tree.norm(optax.tree.sub(a, b)))


def main() -> None:
    """Print the table."""
    header()
    k = jax.random.split(jax.random.key(1), 3)
    mlp = fp.objective(fp.mlp(1024, 1024, 10), fp.softmax_cross_entropy())
    images = jax.random.normal(k[0], (256, 784)), jax.random.randint(k[1], (256,), 0, 10)
    compare("MLP 784-1024-1024-10, batch 256", mlp, images)
    gpt = fp.gpt(1024, features=128, depth=4, heads=4, longest=128)
    tokens = jax.random.randint(k[2], (16, 129), 0, 1024)
    text = tokens[:, :-1], tokens[:, 1:]
    compare("GPT, 4 blocks, d 128, T 128, batch 16", fp.language_model(gpt, 1024), text)


if __name__ == "__main__":
    main()
