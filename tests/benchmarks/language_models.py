"""The gradient of language models, by hand against JAX's own: time and temporary memory.

Against plain `jax.value_and_grad` of the same model as an expert writes it, with optax's loss, and
against it with `jax.checkpoint` of every block, its policies too. One program each, jitted; the
same weights; the same scan over the blocks. Run: python -m tests.benchmarks.language_models
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from tests.benchmarks.harness import header, ratio, temporary

POLICIES = jax.checkpoint_policies


def norm(p: Any, x: Any) -> Any:
    """Layer normalisation in plain JAX."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p.scale + p.bias


def affine(p: Any, x: Any) -> Any:
    """`x w + b`."""
    return x @ p.w + p.b


def transformer_block(
    heads: int, params: Any, x: Any, implementation: Literal["xla", "cudnn"] | None = None
) -> Any:
    """GPT-2's block in plain JAX, on the same params."""
    (n1, qkv, _, out), (n2, up, _, down) = params
    split = affine(qkv, norm(n1, x)).reshape(*x.shape[:2], 3 * heads, -1)
    q, k, v = jnp.split(split, 3, 2)
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    x = x + affine(out, y.reshape(x.shape))
    return x + affine(down, jax.nn.gelu(affine(up, norm(n2, x)), approximate=True))


def mlp_block(params: Any, x: Any) -> Any:
    """A residual block of two dense layers in plain JAX, on the same params."""
    n, (up, _, down) = params
    return x + affine(down, jax.nn.gelu(affine(up, norm(n, x)), approximate=True))


def plain_loss(one: Callable[..., Any], tied: bool) -> Callable[..., Any]:
    """The whole model and optax's loss in plain JAX."""

    def loss(params: Any, batch: Any) -> Any:
        own = params if tied else params[0]
        tokens, labels = batch
        x = own.embedding.table[tokens]
        if hasattr(own, "positions"):
            x = x + own.positions.table[: x.shape[1]]
        x, _ = jax.lax.scan(lambda x, p: (one(p, x), None), x, own.blocks)
        logits = norm(own.norm, x) @ (own.embedding.table if tied else params.head.w).T
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    return loss


def compare(name: str, ours: dict[str, fp.Layer], one: Any, batch: Any, pairs: int) -> None:
    """Print the table of one model."""
    params = next(iter(ours.values())).init(jax.random.key(0), batch)
    tied = not hasattr(params, "head")
    forms = {"plain": one} | {
        f"checkpoint, {what}": jax.checkpoint(one, policy=policy)
        for what, policy in {
            "nothing kept": POLICIES.nothing_saveable,
            "products kept": POLICIES.dots_saveable,
            "products without batch kept": POLICIES.dots_with_no_batch_dims_saveable,
        }.items()
    }
    theirs = {
        what: jax.jit(jax.value_and_grad(plain_loss(form, tied))) for what, form in forms.items()
    }
    hand = {what: jax.jit(fp.backprop(layer)) for what, layer in ours.items()}
    want = theirs["plain"](params, batch)
    for what, function in hand.items():
        got = function(params, batch)
        far = max(
            float(jnp.abs(a - b).max() / jnp.abs(b).max())
            for a, b in zip(jax.tree.leaves(got.grads), jax.tree.leaves(want[1]), strict=True)
        )
        assert abs(got.loss / want[0] - 1) < 1e-5 and far < 1e-3, (what, far)
    print(name)
    bytes_of = {what: temporary(f, params, batch) for what, f in {**theirs, **hand}.items()}
    for what, f in hand.items():
        print(f"  by hand, {what}: temporary memory {bytes_of[what] / 2**20:.1f} MiB")
        for other, g in theirs.items():
            time, noise = ratio(
                lambda f=f: f(params, batch).loss, lambda g=g: g(params, batch)[0], pairs
            )
            memory = bytes_of[what] / bytes_of[other]
            print(
                f"    against {other:42} time {time.median:.3f} "
                f"({time.low:.3f} to {time.high:.3f}; noise {noise.median:.2f}), "
                f"memory {memory:.3f} of {bytes_of[other] / 2**20:.1f} MiB"
            )


def tokens(batch: int, time: int, vocabulary: int) -> Any:
    """Random tokens, and those after them."""
    text = jax.random.randint(jax.random.key(1), (batch, time + 1), 0, vocabulary)
    return text[:, :-1], text[:, 1:]


def transformer(rewrite: Callable[[fp.Layer], fp.Layer], vocabulary: int = 8192) -> fp.Layer:
    """6 blocks, 256 features, 8 heads."""
    model = fp.gpt(vocabulary, features=256, depth=6, heads=8, longest=256, rewrite=rewrite)
    return fp.language_model(model, vocabulary)


def residual_mlp(rewrite: Callable[[fp.Layer], fp.Layer], vocabulary: int = 16384) -> fp.Layer:
    """12 residual blocks of two dense layers, 256 features."""
    one = fp.residual(fp.serial(fp.layer_norm(), fp.feed_forward(256, 1024)))
    model = fp.serial(
        fp.embedding(vocabulary, 256),
        fp.named("blocks", fp.repeat(rewrite(one), 12)),
        fp.named("norm", fp.layer_norm()),
    )
    return fp.language_model(model, vocabulary)


def main() -> None:
    """Print all tables."""
    header()
    forms = {"all kept": lambda block: block, "blocks again": fp.remat}
    compare(
        "transformer, 6 blocks, d 256, T 256, batch 4, vocabulary 8,192",
        {what: transformer(rewrite) for what, rewrite in forms.items()},
        lambda p, x: transformer_block(8, p, x),
        tokens(4, 256, 8192),
        pairs=9,
    )
    compare(
        "residual MLP, 12 blocks, d 256, 512 tokens, vocabulary 16,384",
        {what: residual_mlp(rewrite) for what, rewrite in forms.items()},
        mlp_block,
        tokens(1, 512, 16384),
        pairs=9,
    )


if __name__ == "__main__":
    main()
