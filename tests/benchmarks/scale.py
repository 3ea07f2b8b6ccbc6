"""What a small GPT's training step costs against depth, width, batch, sequence and vocabulary.

Ours, plain and with `remat`, beside plain JAX of the same model, plain and with `jax.checkpoint` of
every block; Adam, the state donated. Temporary memory is XLA's account and the operations of
products are counted, so both are exact; times are medians of rounds in which each has its turn.
Run: python -m tests.benchmarks.scale --numbers FILE.json; scale_plots draws it, and
scale_devices does the same for many devices.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # compile time is measured

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from tests.benchmarks.harness import header
from tests.benchmarks.language_models import plain_loss, tokens, transformer_block
from tests.benchmarks.products import product_flops

HEAD = 32
ROUNDS, COMPILES = 9, 3
COLUMNS = "step ms", "temporary MiB", "GFLOP", "trace s", "compile s"


class Sizes(NamedTuple):
    """Of the model and its batch."""

    depth: int = 4
    width: int = 128
    batch: int = 4
    sequence: int = 128
    vocabulary: int = 4096


AXES = {
    "depth": (2, 4, 8, 16),
    "width": (64, 128, 256, 512),
    "batch": (2, 4, 8, 16),
    "sequence": (64, 128, 256, 512),
    "vocabulary": (1024, 4096, 16384),
}


def ours(sizes: Sizes, rewrite: Any) -> Any:
    """The step by a hand-written backward pass, and the objective."""
    model = fp.gpt(
        sizes.vocabulary,
        features=sizes.width,
        depth=sizes.depth,
        heads=sizes.width // HEAD,
        longest=sizes.sequence,
        rewrite=rewrite,
    )
    objective = fp.language_model(model, sizes.vocabulary)
    step = fp.step(fp.backprop(objective), optax.adam(1e-3))
    return step, objective


def plain(sizes: Sizes, checkpointed: bool) -> Any:
    """The step as it is written in plain JAX, from `(params, opt_state)`."""

    def one(p: Any, x: Any) -> Any:
        return transformer_block(sizes.width // HEAD, p, x)

    loss = plain_loss(jax.checkpoint(one) if checkpointed else one, True)
    adam = optax.adam(1e-3)

    def update(state: Any, batch: Any) -> Any:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        n = batch[1].size
        grads = jax.tree.map(lambda g: g / n, grads)
        changes, opt_state = adam.update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), value / n

    return update, adam


def key_of(sizes: Sizes) -> str:
    """Of a point among the numbers; the middle of each axis is one point."""
    return ",".join(map(str, sizes))


def numbers_at(numbers: Any, axis: str, value: int) -> Any:
    """What was measured there: along this axis in turns (`--again`), or else by itself."""
    key = key_of(Sizes(**{axis: value}))
    return numbers.get(f"{axis}: {key}", numbers.get(key, {}))


class Compiled(NamedTuple):
    """A compiled step, its first state, and what is known before it runs."""

    run: Any
    state: Any
    account: dict[str, float]


def compiled(update: Any, state: Any, batch: Any, times: int) -> Compiled:
    """Traced, lowered and compiled `times` times anew."""
    tracing, compiling = [], []
    found: Any = None
    traced: Any = None
    for _ in range(times):
        jax.clear_caches()
        jitted = jax.jit(lambda state, batch: update(state, batch), donate_argnums=0)
        start = time.perf_counter()
        traced = jitted.trace(state, batch)
        lowered = traced.lower()
        middle = time.perf_counter()
        found = lowered.compile()
        tracing.append(middle - start)
        compiling.append(time.perf_counter() - middle)
    account = {
        "trace s": statistics.median(tracing),
        "compile s": statistics.median(compiling),
        "temporary MiB": found.memory_analysis().temp_size_in_bytes / 2**20,
        "xla GFLOP": found.cost_analysis()["flops"] / 1e9,
        "GFLOP": product_flops(traced.jaxpr.jaxpr) / 1e9,
    }
    return Compiled(found, state, account)


def drawn(specs: Any) -> Any:
    """Some params, without compiling what `init` draws."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(draw.normal(0, 0.02, p.shape).astype(np.float32)), specs
    )


def ways(sizes: Sizes, compiles: int) -> dict[str, Compiled]:
    """Each way at one size."""
    batch = tokens(sizes.batch, sizes.sequence, sizes.vocabulary)
    _, objective = ours(sizes, lambda block: block)
    params = drawn(jax.eval_shape(objective.init, jax.random.key(0), batch))
    found = {}
    for name, rewrite in {"funprop": lambda block: block, "funprop, remat": fp.remat}.items():
        step, _ = ours(sizes, rewrite)
        found[name] = compiled(step.update, step.init(params, None), batch, compiles)
    for name, checkpointed in {"plain JAX": False, "plain JAX, checkpoint": True}.items():
        update, adam = plain(sizes, checkpointed)
        state = jax.tree.map(lambda x: x.copy(), (params, adam.init(params)))
        found[name] = compiled(update, state, batch, compiles)
    return found


def point(points: list[Sizes], compiles: int) -> list[dict[str, dict[str, float]]]:
    """All that is measured at these sizes, for each way; what is timed together, in turns."""
    at = [
        (ways(sizes, compiles), tokens(sizes.batch, sizes.sequence, sizes.vocabulary))
        for sizes in points
    ]
    took: list[dict[str, list[float]]] = [{name: [] for name in found} for found, _ in at]
    states = [{name: way.state for name, way in found.items()} for found, _ in at]
    for _ in range(ROUNDS + 2):
        for i, (found, batch) in enumerate(at):
            for name, way in found.items():
                start = time.perf_counter()
                states[i][name], told = way.run(states[i][name], batch)
                jax.block_until_ready((states[i][name], told))
                took[i][name].append(time.perf_counter() - start)
    return [
        {
            name: {**way.account, "step ms": 1e3 * statistics.median(took[i][name][2:])}
            for name, way in found.items()
        }
        for i, (found, _) in enumerate(at)
    ]


def main() -> None:
    """Measure what the file of numbers lacks, and print and keep it point by point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--numbers", type=Path, default=Path("scale.json"))
    parser.add_argument("--seconds", type=float, default=600, help="start no point after that")
    parser.add_argument("--again", choices=AXES, help="only times, all along one axis in turns")
    given = parser.parse_args()
    start = time.perf_counter()
    header()
    print(f"{'':40} " + " ".join(f"{what:>10.13}" for what in COLUMNS))
    known = json.loads(given.numbers.read_text()) if given.numbers.exists() else {}
    if given.again:
        points = [Sizes(**{given.again: value}) for value in AXES[given.again]]
        for sizes, rows in zip(points, point(points, 1), strict=True):
            known[f"{given.again}: {key_of(sizes)}"] = {
                name: known[key_of(sizes)][name] | {"step ms": row["step ms"]}
                for name, row in rows.items()
            }
        given.numbers.write_text(json.dumps(known, indent=1))
    for axis, values in AXES.items():
        for value in values:
            sizes = Sizes(**{axis: value})
            key = key_of(sizes)
            late = time.perf_counter() - start > given.seconds
            if key not in known and not late:
                (known[key],) = point([sizes], COMPILES if axis == "depth" else 1)
                given.numbers.write_text(json.dumps(known, indent=1))
            for name, row in numbers_at(known, axis, value).items():
                cells = " ".join(f"{row[what]:10.2f}" for what in COLUMNS)
                print(f"{axis:10} {value:6} {name:22} {cells}", flush=True)


if __name__ == "__main__":
    main()
