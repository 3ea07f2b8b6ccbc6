"""What does it cost to verify a large model?

Run `python -m tests.benchmarks.verify_cost`. A network with ten million params, its backward pass
written by hand, right and wrong: the time of `verify`, of its tracing and compiling, and of the
rest, beside that of a compiled backward pass in the same precision, before and after.
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


def of_leaf(layer, place, change):
    """The gradients with one leaf changed."""

    def changed(grads):
        grads = [list(layer) for layer in grads]
        grads[layer][place] = change(grads[layer][place])
        return [tuple(layer) for layer in grads]

    return changed


CASES = {
    "right": lambda grads: grads,
    "one bias 1% off": of_leaf(-1, 1, lambda b: 1.01 * b),
    "a mean for a sum": of_leaf(0, 1, lambda b: b / BATCH),
    "sign of a weight": of_leaf(1, 0, lambda w: -w),
    "weight transposed": of_leaf(1, 0, lambda w: w.T),
    "last row left out": of_leaf(1, 0, lambda w: w.at[-1].set(0)),
    "cut off at 0.1": of_leaf(1, 0, lambda w: jnp.clip(w, -0.1, 0.1)),
    "rounded to 16 bits": of_leaf(1, 0, lambda w: w.astype(jnp.bfloat16).astype(w.dtype)),
    "all params doubled": lambda grads: jax.tree.map(lambda g: 2 * g, grads),
    "one row left out": of_leaf(1, 0, lambda w: w.at[1000].set(0)),
}

COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def union(spans):
    """Seconds within any of the spans: what is traced may trace and compile."""
    total = end = 0.0
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape) / WIDTH**0.5, jnp.float32)

    params = [(draw(WIDTH, WIDTH), draw(WIDTH)) for _ in range(DEPTH)]
    x = draw(BATCH, WIDTH)
    rule = as_rule(network, backward)
    spans = []

    def listen(event, duration_secs, **_):
        now = time.perf_counter()
        if event in COMPILING:
            spans.append((now - duration_secs, now))

    jax.monitoring.register_event_duration_secs_listener(listen)
    one = jax.jit(lambda params, x, dy: jax.vjp(rule, params, x)[1](dy))
    jax.block_until_ready(one(params, x, x))

    def passing():
        passes = []
        for _ in range(11):
            start = time.perf_counter()
            jax.block_until_ready(one(params, x, x))
            passes.append(time.perf_counter() - start)
        return statistics.median(passes)

    backward_pass = passing()
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{n:,} params, float32, batch {BATCH}: a backward pass takes {backward_pass:.3f} s\n")
    print("                       verify   compiling   the rest, in backward passes")
    for name, change in CASES.items():

        def judged(args, y, dy, change=change):
            grads, dx = backward(args, y, dy)
            return change(grads), dx

        spans.clear()
        start = time.perf_counter()
        report = fp.verify(as_rule(network, judged), params, x)
        seconds = time.perf_counter() - start
        compiling = union(spans)
        before, backward_pass = backward_pass, passing()
        rest = 2 * (seconds - compiling) / (before + backward_pass)
        found = {f.story or "no story": f.path for f in report.findings} or "nothing"
        print(f"{name:20} {seconds:6.2f} s {compiling:9.2f} s {rest:15.1f}      found {found}")


if __name__ == "__main__":
    main()
