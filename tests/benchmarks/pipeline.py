"""What each device of a pipeline holds by XLA's account, and the account of its bubble.

    python -m tests.benchmarks.pipeline

On virtual devices of one CPU: memory is real, times would mean nothing.
"""

import os

os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=4 {os.environ.get('XLA_FLAGS', '')}".strip()
)

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import funprop as fp
from tests.benchmarks.harness import header

STAGES, EACH = 4, 4  # and the examples of a microbatch
TIME, VOCABULARY = 64, 512


def temporary(schedule):
    """MiB of one device, beside params and gradients."""
    mesh = fp.make_mesh(pipe=STAGES)
    model = fp.gpt(VOCABULARY, features=64, depth=8, heads=4, longest=TIME)
    objective = fp.language_model(model, VOCABULARY)
    tokens = jax.ShapeDtypeStruct((EACH * schedule.microbatches, TIME), jnp.int32)
    spec = jax.eval_shape(objective.init, jax.random.key(0), (tokens, tokens))
    placed = fp.shardings(spec, mesh, [("blocks", P("pipe")), ("*", P())])
    params = jax.tree.map(lambda leaf, at: leaf.update(sharding=at), spec, placed)
    grad_fn = jax.jit(fp.pipeline(objective, mesh, schedule))
    memory = grad_fn.lower(params, (tokens, tokens)).compile().memory_analysis()
    return memory.temp_size_in_bytes / 2**20


def main():
    header()
    for n in (8, 16, 32):
        for make in (fp.gpipe, fp.one_f_one_b, fp.zero_bubble):
            plan = make(STAGES, n)
            print(
                f"{n} microbatches, {make.__name__}: {temporary(plan):.1f} MiB, "
                f"kept {plan.kept}, idle {plan.bubble:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
