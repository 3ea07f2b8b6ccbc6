"""The two parts of a language model that autodiff pays for most, each alone: the loss over a large
vocabulary against optax's, and attention over long sequences against JAX's own.

Targets: the head, 50k classes, 1,024 tokens: by rows at most 1.0 of the time at 0.12 of the memory,
by classes at most 1.2 of the time at 0.035. Attention at 4,096 places: memory at most 0.1, time no
worse. Run: python -m tests.benchmarks.parts
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from tests.benchmarks.harness import header, ratio, temporary


def compare(name: str, ours: Any, theirs: Any, mine: tuple, other: tuple, pairs: int) -> None:
    """Print a row: forward and backward of both, compiled."""
    time, noise = ratio(lambda: ours(*mine), lambda: theirs(*other), pairs)
    bytes_ = temporary(ours, *mine), temporary(theirs, *other)
    print(
        f"{name:66} time {time.median:.3f} ({time.low:.3f} to {time.high:.3f}; noise "
        f"{noise.median:.2f}), memory {bytes_[0] / bytes_[1]:.3f} of {bytes_[1] / 2**20:.1f} MiB",
        flush=True,
    )


def head(features: int, tokens: int = 1024, classes: int = 50304) -> None:
    """Unembedding and cross-entropy, by hand in chunks and by optax on whole logits."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, features))
    w = jax.random.normal(keys[1], (classes, features)) / features**0.5
    labels = jax.random.randint(keys[2], (tokens,), 0, classes)

    def ours(layer: fp.Layer, w: Any, x: Any) -> Any:
        loss, kept = layer.forward(fp.LinearParams(w, None), (x, labels))
        dparams, (dx, _) = layer.backward(
            fp.LinearParams(w, None), kept, fp.Sum(jnp.ones(()), jnp.zeros(()))
        )
        return loss.total, dparams.w, dx

    def theirs(w: Any, x: Any, rows: str) -> Any:
        def loss(w: Any, x: Any) -> Any:
            z = jnp.einsum(f"ni,{rows}->nc", x, w)
            return optax.softmax_cross_entropy_with_integer_labels(z, labels).sum()

        return jax.value_and_grad(loss, (0, 1))(w, x)

    for way, how in {"rows, the default": {}, "classes, chunk=1024": {"chunk": 1024}}.items():
        layer = fp.linear_cross_entropy(classes, **how)
        for rows, other in {"ci": w, "ic": w.T.copy()}.items():
            compare(
                f"head, {classes:,} classes, d {features}, by {way}; optax's w[{rows}]",
                jax.jit(functools.partial(ours, layer)),
                jax.jit(functools.partial(theirs, rows=rows)),
                (w, x),
                (other, x),
                5,
            )


def attend(batch: int, time: int, heads: int, features: int, pairs: int) -> None:
    """Causal attention, forward and backward, against `jax.nn.dot_product_attention`."""
    x = jax.random.normal(jax.random.key(0), (batch, time, 3 * heads * features))
    dy = jnp.ones((batch, time, heads * features))
    layer = fp.attention(heads)

    @jax.jit
    def ours(x: Any, dy: Any) -> Any:
        y, kept = layer.forward((), x)
        return y, layer.backward((), kept, dy)[1]

    def naive(x: Any) -> Any:
        q, k, v = jnp.split(x.reshape(batch, time, 3 * heads, features), 3, 2)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(dy.shape)

    @jax.jit
    def theirs(x: Any, dy: Any) -> Any:
        y, pullback = jax.vjp(naive, x)
        return y, pullback(dy)

    name = f"attention, {time} places, {heads} heads of {features}, batch {batch}"
    compare(name, ours, theirs, (x, dy), (x, dy), pairs)


def main() -> None:
    """Print all rows."""
    header()
    head(256)
    head(768)
    attend(4, 256, 8, 32, 11)
    attend(1, 4096, 4, 64, 3)


if __name__ == "__main__":
    main()
