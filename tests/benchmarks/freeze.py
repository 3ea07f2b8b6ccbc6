"""FLOPs of a gradient with all blocks but the last few frozen, against that of all.

Run: python -m tests.benchmarks.freeze
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

import funprop as fp
from tests.benchmarks.harness import flops, header

BLOCKS = 8


def main() -> None:
    """Print the table."""
    header()
    block = fp.residual(fp.serial(fp.layer_norm(), fp.dense(256), fp.gelu(), fp.dense(256)))
    # Not repeat: XLA counts the body of a loop once, however often it runs.
    whole = fp.objective(fp.serial(*[block] * BLOCKS), fp.mean_squared())
    batch = jnp.ones((512, 256)), jnp.ones((512, 256))
    params = whole.init(jax.random.key(0), batch)
    forward = flops(jax.jit(lambda p, b: whole.forward(p, b)[0]), params, batch)
    everything = flops(jax.jit(fp.backprop(whole)), params, batch) - forward
    print(f"{'trained':>8} {'backward FLOPs':>16} {'of all':>8} {'gradient bytes':>16}")
    print(f"{BLOCKS:>8} {everything:>16,} {1:>8.3f} {_bytes(whole, params, batch):>16,}")
    for trained in (4, 2, 1):
        model, some = whole, params
        for i in range(BLOCKS - trained):
            where = f"residual_{i}"
            model, some = fp.freeze(model, where), fp.frozen(model, where, some)
        backward = flops(jax.jit(fp.backprop(model)), some, batch) - forward
        bytes_ = _bytes(model, some, batch)
        print(f"{trained:>8} {backward:>16,} {backward / everything:>8.3f} {bytes_:>16,}")


def _bytes(model: fp.Layer, params: object, batch: object) -> int:
    grads = jax.eval_shape(fp.backprop(model), params, batch).grads
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(grads))


if __name__ == "__main__":
    main()
