"""Memory and traffic of one update over 1, 2, 4 and 8 devices, by XLA's account; nothing is run.

A GPT of 4 blocks with Adam. The devices are virtual, so what is compiled is the program of each
device, while times would say nothing. Target: FSDP's state on a device falls as 1 / devices.
Run: python -m tests.benchmarks.sharding
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before JAX starts

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import funprop as fp
from funprop.sharding.shard import state_shardings
from tests.benchmarks.harness import header
from tests.benchmarks.traffic import collectives

VOCABULARY, FEATURES, DEPTH, HEADS, TIME, ROWS = 2048, 256, 4, 8, 64, 16
MIB = 2**20


class Way(NamedTuple):
    """How to shard: the mesh for a number of devices, the rules, and those in use if gathered."""

    mesh: Callable[[int], dict[str, int]]
    rules: Callable[[Mesh], Any]
    used: Callable[[], Any] | None = None


def both(mesh: Mesh) -> Any:
    """Tensor parallelism, and what it leaves whole cut by FSDP."""
    return fp.fsdp_rules(mesh, "fsdp", rules=fp.tensor_parallel_rules())


def two(n: int) -> dict[str, int]:
    """A mesh of two axes."""
    return {"fsdp": max(n // 2, 1), "model": min(n, 2)}


WAYS = {
    "data": Way(lambda n: {"data": n}, lambda mesh: fp.data_parallel_rules()),
    "fsdp": Way(lambda n: {"data": n}, fp.fsdp_rules),
    "fsdp, gathered": Way(lambda n: {"data": n}, fp.fsdp_rules, fp.data_parallel_rules),
    "tensor": Way(lambda n: {"model": n}, lambda mesh: fp.tensor_parallel_rules()),
    "fsdp x tensor": Way(two, both),
    "fsdp x tensor, gathered": Way(two, both, fp.tensor_parallel_rules),
}


def moved(text: str) -> float:
    """Bytes that the collectives of a program give on a device; those of a loop by its length."""
    return sum(one.times * sum(one.sizes) for one in collectives(text))


def compiled(way: Way, n: int) -> tuple[Any, Any]:
    """The program of a device, and what the state looks like."""
    mesh = fp.make_mesh(**way.mesh(n))
    model = fp.gpt(VOCABULARY, features=FEATURES, depth=DEPTH, heads=HEADS, longest=TIME)
    objective = fp.language_model(model, VOCABULARY, chunk=VOCABULARY)
    if way.used is not None:
        objective = fp.gathered(objective, mesh, way.used())
    rules = way.rules(mesh)
    plain = fp.step(fp.backprop(objective), optax.adam(1e-3))
    update: Any = fp.shard(plain, mesh, rules).update
    tokens = jax.ShapeDtypeStruct((ROWS, TIME), jnp.int32)
    params = jax.eval_shape(objective.init, jax.random.key(0), (tokens, tokens))
    state = jax.eval_shape(plain.init, params, None)
    state = jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        state,
        state_shardings(state, mesh, rules),
    )
    return update.lower(state, (tokens, tokens)).compile(), state


def row(name: str, way: Way, n: int) -> None:
    """One line of the table."""
    program, state = compiled(way, n)
    memory, held = program.memory_analysis(), fp.describe_sharding(state)
    sizes = (
        held.device_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        moved(program.as_text()),
    )
    cells = " ".join(f"{size / MIB:9.2f}" for size in sizes)
    print(f"{name:24}{n:8} {cells}   {held.bytes / held.device_bytes:5.2f}", flush=True)


def main() -> None:
    """Print a row for each way and number of devices."""
    header()
    print(
        "MiB on a device          devices     state arguments   outputs   donated temporary"
        "     moved   whole state / a device's"
    )
    for name, way in WAYS.items():
        for n in (1, 2, 4, 8):
            row(name, way, n)


if __name__ == "__main__":
    main()
