"""What does it cost to verify a large model?

Run `python -m tests.benchmarks.verify_cost`. A network with ten million params, its backward pass
written by hand: the time of `verify`, of its compiling and of the rest, beside that of a compiled
backward pass in the same precision, in one process.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import funprop as fp
from tests.benchmarks.corpus import as_rule

WIDTH, DEPTH, BATCH = 1824, 3, 64


def network(params, x):
    """`tanh(x w + b)`, again and again."""
    for w, b in params:
        x = jnp.tanh(x @ w + b)
    return x


def backward(args, y, dy):
    """By hand."""
    params, x = args
    kept = [x]
    for w, b in params:
        kept.append(jnp.tanh(kept[-1] @ w + b))
    grads = []
    for (w, _), before, after in zip(params[::-1], kept[-2::-1], kept[:0:-1], strict=True):
        dz = dy * (1 - after * after)
        grads.append((before.T @ dz, dz.sum(0)))
        dy = dz @ w.T
    return grads[::-1], dy


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape) / WIDTH**0.5, jnp.float32)

    params = [(draw(WIDTH, WIDTH), draw(WIDTH)) for _ in range(DEPTH)]
    x = draw(BATCH, WIDTH)
    rule = as_rule(network, backward)
    compiling = [0.0]
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: compiling.__setitem__(
            0,
            compiling[0] + duration_secs * (event == "/jax/core/compile/backend_compile_duration"),
        )
    )
    one = jax.jit(lambda params, x, dy: jax.vjp(rule, params, x)[1](dy))
    jax.block_until_ready(one(params, x, x))
    passes = []
    for _ in range(21):
        start = time.perf_counter()
        jax.block_until_ready(one(params, x, x))
        passes.append(time.perf_counter() - start)
    backward_pass = statistics.median(passes)
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{n:,} params, float32, batch {BATCH}: a backward pass takes {backward_pass:.3f} s\n")
    print("                       verify   compiling   the rest, in backward passes")
    for name, factor in (("right", 1.0), ("one bias 1% off", 1.01)):

        def judged(args, y, dy, factor=factor):
            grads, dx = backward(args, y, dy)
            return [*grads[:-1], (grads[-1][0], factor * grads[-1][1])], dx

        compiling[0] = 0.0
        start = time.perf_counter()
        report = fp.verify(as_rule(network, judged), params, x)
        seconds = time.perf_counter() - start
        rest = (seconds - compiling[0]) / backward_pass
        found = [f"{f.path}: {f.story}" for f in report.findings] or "nothing"
        print(f"{name:20} {seconds:6.2f} s {compiling[0]:9.2f} s {rest:15.1f}      found {found}")


if __name__ == "__main__":
    main()
