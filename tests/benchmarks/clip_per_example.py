"""Clipped sums of per-example gradients: by norms alone against `vmap(grad)`, the definition.

Targets: at most 0.5 of the time and 0.3 of the temporary memory, on an MLP and on a transformer.
Both sides jitted, the same weights. "Plain JAX" is the model as an expert writes it, with optax's
loss; "the same model" is our own forward pass under `jax.grad`. Run:
python -m tests.benchmarks.clip_per_example
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from funprop.quantities.closed_form import sum_squares
from funprop.trees import size
from tests.benchmarks.harness import header, ratio, temporary
from tests.benchmarks.language_models import plain_loss, tokens, transformer, transformer_block


def by_vmap(loss: Callable[[Any, Any], Any], norm: float) -> Callable[[Any, Any], Any]:
    """The definition: every example's gradient, clipped, summed."""

    def clipped(params: Any, batch: Any) -> Any:
        rows = jax.tree.map(lambda leaf: leaf[:, None], batch)
        losses, grads = jax.vmap(jax.value_and_grad(loss), (None, 0))(params, rows)
        factors = jnp.minimum(1, norm / jnp.sqrt(sum_squares(grads)))
        return losses.sum(), jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)

    return clipped


def compare(
    name: str, layer: fp.Layer, losses: dict[str, Any], batch: Any, norm: float, pairs: int
) -> None:
    """Print a row for each of `losses`, and one for the gradient without any clipping."""
    params = layer.init(jax.random.key(0), batch)
    ours = jax.jit(fp.clip_per_example(layer, norm))
    got = ours(params, batch)
    mine = temporary(ours, params, batch)
    print(
        f"{name}: {size(params) / 1e6:.1f}M params, temporary memory {mine / 2**20:.1f} MiB, "
        f"{float(got.metrics['clipped'].mean):.2f} clipped",
        flush=True,
    )
    others = {f"vmap(grad), {what}": by_vmap(loss, norm) for what, loss in losses.items()}
    others["backprop, not clipped"] = fp.backprop(layer)
    for what, function in others.items():
        theirs = jax.jit(function)
        result = theirs(params, batch)
        if not isinstance(result, fp.Gradient):
            far = max(
                float(jnp.abs(a - b).max() / jnp.abs(b).max())
                for a, b in zip(jax.tree.leaves(got.grads), jax.tree.leaves(result[1]), strict=True)
            )
            assert far < 1e-3, (what, far)
        time, noise = ratio(
            lambda: ours(params, batch).loss, lambda theirs=theirs: theirs(params, batch)[0], pairs
        )
        memory = temporary(theirs, params, batch)
        print(
            f"  against {what:28} time {time.median:.3f} ({time.low:.3f} to {time.high:.3f}; noise "
            f"{noise.median:.2f}), memory {mine / memory:.3f} of {memory / 2**20:.1f} MiB",
            flush=True,
        )


def same(layer: fp.Layer) -> Callable[[Any, Any], Any]:
    """Our forward pass, for JAX to differentiate."""
    return lambda params, batch: layer.forward(params, batch)[0].total


def mlp(batch: int, pairs: int) -> None:
    """784-1024-1024-10, as for MNIST."""
    model = fp.serial(fp.dense(1024), fp.relu(), fp.dense(1024), fp.relu(), fp.dense(10))
    layer = fp.objective(model, fp.softmax_cross_entropy())

    def plain(params: Any, batch: Any) -> Any:
        (x, labels), (a, _, b, _, c) = batch, params
        x = jax.nn.relu(x @ a.w + a.b)
        x = jax.nn.relu(x @ b.w + b.b)
        logits = x @ c.w + c.b
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    x = jax.random.normal(jax.random.key(1), (batch, 784))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
    compare(f"MLP, batch {batch}", layer, {"plain JAX": plain}, (x, labels), 10.0, pairs)


def gpt(batch: int, time: int, pairs: int, rewrite: Any = lambda block: block) -> None:
    """6 blocks, scanned, d 256, vocabulary 8,192, the table tied."""
    layer = transformer(rewrite)
    losses = {
        "plain JAX": plain_loss(lambda p, x: transformer_block(8, p, x), tied=True),
        "the same model": same(layer),
    }
    name = f"transformer, T {time}, batch {batch}{', remat' if rewrite is fp.remat else ''}"
    compare(name, layer, losses, tokens(batch, time, 8192), 100.0, pairs)


def main() -> None:
    """Print all rows."""
    header()
    mlp(256, 7)
    gpt(8, 256, 5)
    gpt(8, 256, 5, fp.remat)
    gpt(32, 64, 5)


if __name__ == "__main__":
    main()
