"""`within` against every policy, and against the best that treats all blocks alike.

python -m tests.benchmarks.within mlp
    python -m tests.benchmarks.within gpt
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

import funprop as fp
from funprop.memory.account import Program
from funprop.memory.blocks import Policy, blocks_of, under
from funprop.trees import spec
from tests.benchmarks.harness import header, ratio

draw = np.random.default_rng(0)


def gpt(depth=6):
    tokens = jnp.asarray(draw.integers(0, 256, (8, 129)))
    model = fp.gpt(256, features=96, depth=depth, heads=4, longest=128)
    return fp.language_model(model, 256), (tokens[:, :-1], tokens[:, 1:])


def mlp(depth=4):
    def block(wide):
        return fp.residual(fp.serial(fp.layer_norm(), fp.dense(wide), fp.gelu(), fp.dense(128)))

    model = fp.serial(block(512), fp.repeat(block(256), depth), fp.dense(1))
    x = jnp.asarray(draw.normal(size=(1024, 128)).astype(np.float32))
    return fp.objective(model, fp.mean_squared()), (x, x[:, :1])


def main():
    header()
    objective, batch = {"gpt": gpt, "mlp": mlp}[sys.argv[1]]()
    blocks = blocks_of(objective, spec(batch))
    options = [b.policies(offloads=False) for b in blocks]
    program = Program(spec(batch), None)
    every = {p: program.account(under(objective, blocks, p)) for p in itertools.product(*options)}
    keep = tuple(Policy(0, 0, b.copies) for b in blocks)
    uniform = [
        p
        for p in every
        if all(c in (o[0], o[-1]) for c, o in zip(p, options, strict=True))
        and (p == keep or all(c == o[-1] for c, o in zip(p, options, strict=True)))
    ]
    most, least = (f(a.bytes for a in every.values()) for f in (max, min))
    print(f"{len(every)} policies, {least / 2**20:.1f} to {most / 2**20:.1f} MiB")
    params = objective.init(jax.random.key(0), batch)
    for share in (0.8, 0.5, 0.2):
        budget = int(least + share * (every[keep].bytes - least))
        found = fp.within(objective, batch, budget)
        fit = {p: a for p, a in every.items() if a.bytes <= budget}
        best = min(fit, key=lambda p: fit[p].work)
        alike = [p for p in uniform if p in fit]
        told = f"{budget / 2**20:.1f} MiB: {found.bytes / 2**20:.1f}, {found.tried} compiled"
        told += f", work {found.work * every[keep].work / fit[best].work:.3f} of the best of all"
        if alike:
            same = min(every[p].work for p in alike)
            told += f", {found.work * every[keep].work / same:.3f} of the best uniform one"
        run, other = (
            jax.jit(fp.backprop(layer))
            for layer in (found.objective, under(objective, blocks, best))
        )

        def timed(gradient):
            return lambda: gradient(params, batch, jax.random.key(1))

        jax.block_until_ready((timed(run)(), timed(other)()))
        clock, _ = ratio(timed(run), timed(other), pairs=7)
        print(f"{told}; clock, over the best of all: {clock}", flush=True)


if __name__ == "__main__":
    main()
