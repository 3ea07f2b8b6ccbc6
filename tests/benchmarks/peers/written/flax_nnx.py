"""Flax NNX: a jitted train_step, the model's graph cached as its performance guide says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

he_normal = nnx.initializers.he_normal()


def train(model, optimizer, data, report):
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit(donate_argnums=(0, 1))
    def train_step(model, optimizer, x, y):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    step = nnx.cached_partial(train_step, model, optimizer)
    for batches in data.order:
        losses = [step(data.x[rows], data.y[rows]) for rows in batches]
        report(np.mean(jax.device_get(losses)), nnx.jit(lambda x: model(x)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def linear(inputs, outputs, rngs, init=he_normal):
    return nnx.Linear(inputs, outputs, kernel_init=init, rngs=rngs)


def mlp(data, seed, report):
    rngs = nnx.Rngs(seed)
    first, second, classes = data.widths.tolist()
    model = nnx.Sequential(
        linear(data.x.shape[1], first, rngs),
        nnx.relu,
        linear(first, second, rngs),
        nnx.relu,
        linear(second, classes, rngs),
    )
    return train(model, optax.adam(1e-3), data, report)


digits = large = mlp


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), kernel_init=he_normal, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), kernel_init=he_normal, rngs=rngs)
        self.linear = linear(12 * 12 * 64, 10, rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.linear(x.reshape(len(x), -1))


def cnn(data, seed, report):
    return train(CNN(nnx.Rngs(seed)), optax.adam(1e-3), data, report)


class Block(nnx.Module):
    def __init__(self, d, heads, small, rngs):
        normal = nnx.initializers.normal
        self.norm1 = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads,
            d,
            kernel_init=normal(0.02),
            out_kernel_init=normal(small),
            decode=False,
            rngs=rngs,
        )
        self.up = linear(d, 4 * d, rngs, normal(0.02))
        self.down = linear(4 * d, d, rngs, normal(small))

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    def __init__(self, vocabulary, longest, rngs, depth=4, d=128, heads=4):
        normal = nnx.initializers.normal(0.02)
        small = 0.02 / (2 * depth) ** 0.5
        self.tokens = nnx.Embed(vocabulary, d, embedding_init=normal, rngs=rngs)
        self.positions = nnx.Embed(longest, d, embedding_init=normal, rngs=rngs)
        self.blocks = nnx.List([Block(d, heads, small, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))


def gpt(data, seed, report):
    model = GPT(256, data.x.shape[1], nnx.Rngs(seed))
    return train(model, optax.adamw(1e-3, weight_decay=0.1), data, report)
