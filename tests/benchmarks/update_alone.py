"""The update alone: gradient given, scaled, Adam, decay, applied; the state donated.

Ours against the same in plain JAX, and both against memory: `x + 1` over as many numbers as are
moved where the gradient, params and two moments are read once, and all but the first written. For a
GPT of few leaves, and for 300 leaves of 64 to 4,096 numbers, as they are and under `optax.flatten`.
Run: python -m tests.benchmarks.update_alone [gpt] [small]
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
from funprop import trees
from funprop.gradients import Gradient
from tests.benchmarks.harness import header

WEIGHT = 7.0
ROUNDS = 31


def gpt() -> Any:
    """Specs of params: 6 blocks under `repeat`, 256 features, vocabulary 8,192."""
    model = fp.gpt(8192, features=256, depth=6, heads=8, longest=256)
    batch = (jax.ShapeDtypeStruct((1, 256), jnp.int32),) * 2
    return jax.eval_shape(fp.language_model(model, 8192).init, jax.random.key(0), batch)


def small() -> Any:
    """Specs of 300 leaves."""
    sizes = 2 ** np.random.default_rng(0).integers(6, 13, 300)
    return [jax.ShapeDtypeStruct((n,), jnp.float32) for n in sizes]


def drawn(specs: Any) -> Any:
    """Some numbers of these shapes."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype), specs
    )


def ours(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """`(update, state)`, of a batch that is the gradient."""

    def given(params: Any, batch: Any, key: Any = None) -> Gradient:
        return Gradient(batch, jnp.float32(1), jnp.float32(WEIGHT), {}, ())

    train = fp.step(given, optimizer)
    return train.update, train.init(params, None)


def plain(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """The same in plain JAX and optax."""

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, grads: Any) -> Any:
        params, opt_state = state
        grads = jax.tree.map(lambda g: g / WEIGHT, grads)
        changes, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), jnp.zeros(())

    params = jax.tree.map(jnp.copy, params)
    return update, (params, optimizer.init(params))


def memory(params: Any) -> tuple[Any, Any]:
    """As many bytes: four read and three written of each number, half of seven one way."""

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, grads: Any) -> Any:
        return state + 1, jnp.zeros(())

    return update, jnp.zeros(trees.size(params) * 7 // 2)


def rows(forms: dict[str, tuple[Any, Any]], grads: Any) -> None:
    """Print a row a form: what was compiled, and its time, in turns."""
    states = {name: state for name, (_, state) in forms.items()}
    programs = {
        name: update.lower(states[name], grads).compile() for name, (update, _) in forms.items()
    }
    took: dict[str, list[float]] = {name: [] for name in forms}
    for i in range(ROUNDS + 3):
        order = list(programs) if i % 2 else list(programs)[::-1]  # each finds what another left
        for name in order:
            start = time.perf_counter()
            states[name], _ = jax.block_until_ready(programs[name](states[name], grads))
            took[name].append(1e3 * (time.perf_counter() - start))
    for name, run in programs.items():
        kernels = run.as_text().count(" fusion(")
        mib = run.memory_analysis().temp_size_in_bytes / 2**20
        ms = np.median(took[name][3:])
        low, median, high = np.percentile(
            np.divide(took[name], took["plain JAX"])[3:], [25, 50, 75]
        )
        of_plain = f"{median:6.2f} ({low:.2f} to {high:.2f})"
        print(f"  {name:22} {kernels:7} {mib:14.1f} {ms:7.2f}  {of_plain}")


def main(models: list[str]) -> None:
    """Print a table a model."""
    header()
    print(f"{'':24} kernels  temporary MiB      ms  of plain JAX's (quartiles)")
    adamw = optax.adamw(3e-4)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    for model in models:
        specs = MODELS[model]()
        params, grads = drawn(specs), drawn(specs)
        leaves = len(jax.tree.leaves(params))
        for how, optimizer in {"adamw": adamw, "clip, adamw": clipped}.items():
            print(f"{model}, {how}: {trees.size(params):,} numbers, {leaves} leaves", flush=True)
            forms = {
                "step": ours(optimizer, params),
                "plain JAX": plain(optimizer, params),
                "step, optax.flatten": ours(optax.flatten(optimizer), params),
                "memory": memory(params),
            }
            rows(forms, grads)


MODELS: dict[str, Callable[[], Any]] = {"gpt": gpt, "small": small}

if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
