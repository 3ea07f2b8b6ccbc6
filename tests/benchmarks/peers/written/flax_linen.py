"""Flax Linen: a TrainState and a jitted train_step."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training.train_state import TrainState

he_normal = nn.initializers.he_normal()


def train(model, optimizer, data, seed, report):
    params = jax.jit(model.init)(jax.random.key(seed), data.x[:1])["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    @partial(jax.jit, donate_argnums=0)
    def train_step(state, x, y):
        def loss_fn(params):
            logits = state.apply_fn({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    for batches in data.order:
        losses = []
        for rows in batches:
            state, loss = train_step(state, data.x[rows], data.y[rows])
            losses.append(loss)
        report(
            np.mean(jax.device_get(losses)),
            partial(jax.jit(model.apply), {"params": state.params}),
        )
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


class MLP(nn.Module):
    widths: tuple

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width, kernel_init=he_normal)(x))
        return nn.Dense(self.widths[-1], kernel_init=he_normal)(x)


def mlp(data, seed, report):
    model = MLP(tuple(data.widths.tolist()))
    return train(model, optax.adam(1e-3), data, seed, report)


digits = large = mlp


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3), kernel_init=he_normal)(x))
        x = nn.relu(nn.Conv(64, (3, 3), kernel_init=he_normal)(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10, kernel_init=he_normal)(x.reshape(len(x), -1))


def cnn(data, seed, report):
    return train(CNN(), optax.adam(1e-3), data, seed, report)


class Block(nn.Module):
    d: int
    heads: int
    small: float

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal
        mask = nn.make_causal_mask(x[..., 0])
        h = nn.LayerNorm(epsilon=1e-5)(x)
        x = x + nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=normal(0.02), out_kernel_init=normal(self.small)
        )(h, mask=mask)
        h = nn.LayerNorm(epsilon=1e-5)(x)
        h = nn.gelu(nn.Dense(4 * self.d, kernel_init=normal(0.02))(h))
        return x + nn.Dense(self.d, kernel_init=normal(self.small))(h)


class GPT(nn.Module):
    vocabulary: int
    longest: int
    depth: int = 4
    d: int = 128
    heads: int = 4

    @nn.compact
    def __call__(self, tokens):
        normal = nn.initializers.normal(0.02)
        table = nn.Embed(self.vocabulary, self.d, embedding_init=normal)
        x = table(tokens) + self.param("positions", normal, (self.longest, self.d))
        for _ in range(self.depth):
            x = Block(self.d, self.heads, 0.02 / (2 * self.depth) ** 0.5)(x)
        return table.attend(nn.LayerNorm(epsilon=1e-5)(x))


def gpt(data, seed, report):
    model = GPT(256, data.x.shape[1])
    return train(model, optax.adamw(1e-3, weight_decay=0.1), data, seed, report)
