"""Equinox: a filtered jit that donates all it is given."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

he_normal = jax.nn.initializers.he_normal()


def train(model, optimizer, data, report):
    def loss_fn(model, x, y):
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @eqx.filter_jit(donate="all")
    def make_step(model, opt_state, x, y):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    opt_state = eqx.filter_jit(optimizer.init)(eqx.filter(model, eqx.is_array))
    for batches in data.order:
        losses = []
        for rows in batches:
            model, opt_state, loss = make_step(model, opt_state, data.x[rows], data.y[rows])
            losses.append(loss)
        report(np.mean(jax.device_get(losses)), eqx.filter_jit(jax.vmap(model)))
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def with_weight(layer, weight):
    layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)
    return eqx.tree_at(lambda layer: layer.bias, layer, jnp.zeros_like(layer.bias))


def he(layer, key):
    """Weights are `[outputs, inputs, *window]`."""
    shape = layer.weight.shape
    inputs = int(np.prod(shape[1:]))
    return with_weight(layer, he_normal(key, (inputs, shape[0])).T.reshape(shape))


def mlp(data, seed, report):
    @eqx.filter_jit
    def make(key):
        keys = iter(jax.random.split(key, 6))
        first, second, classes = data.widths.tolist()
        linear = lambda i, o: he(eqx.nn.Linear(i, o, key=next(keys)), next(keys))
        return eqx.nn.Sequential(
            [
                linear(data.x.shape[1], first),
                eqx.nn.Lambda(jax.nn.relu),
                linear(first, second),
                eqx.nn.Lambda(jax.nn.relu),
                linear(second, classes),
            ]
        )

    return train(make(jax.random.key(seed)), optax.adam(1e-3), data, report)


digits = large = mlp


def cnn(data, seed, report):
    # Its convolutions take channels first.
    data.x, data.test_x = (a.transpose(0, 3, 1, 2) for a in (data.x, data.test_x))

    @eqx.filter_jit
    def make(key):
        keys = iter(jax.random.split(key, 6))
        conv = lambda i, o: he(eqx.nn.Conv2d(i, o, 3, padding=1, key=next(keys)), next(keys))
        return eqx.nn.Sequential(
            [
                conv(1, 32),
                eqx.nn.Lambda(jax.nn.relu),
                conv(32, 64),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Lambda(jnp.ravel),
                he(eqx.nn.Linear(12 * 12 * 64, 10, key=next(keys)), next(keys)),
            ]
        )

    return train(make(jax.random.key(seed)), optax.adam(1e-3), data, report)


def normal(inputs, outputs, key, deviation=0.02):
    weight = deviation * jax.random.normal(key, (outputs, inputs))
    return with_weight(eqx.nn.Linear(inputs, outputs, key=key), weight)


class Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    qkv: eqx.nn.Linear
    output: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    heads: int

    def __init__(self, d, heads, small, key):
        keys = jax.random.split(key, 4)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(d), eqx.nn.LayerNorm(d)
        self.qkv = normal(d, 3 * d, keys[0])
        self.output = normal(d, d, keys[1], small)
        self.up = normal(d, 4 * d, keys[2])
        self.down = normal(4 * d, d, keys[3], small)
        self.heads = heads

    def __call__(self, x):
        qkv = jax.vmap(self.qkv)(jax.vmap(self.norm1)(x)).reshape(len(x), 3 * self.heads, -1)
        mixed = jax.nn.dot_product_attention(*jnp.split(qkv, 3, axis=1), is_causal=True)
        x = x + jax.vmap(self.output)(mixed.reshape(x.shape))
        h = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x)))
        return x + jax.vmap(self.down)(h)


class GPT(eqx.Module):
    tokens: eqx.nn.Embedding
    positions: jax.Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm

    def __init__(self, vocabulary, longest, key, depth=4, d=128, heads=4):
        keys = jax.random.split(key, 2 + depth)
        small = 0.02 / (2 * depth) ** 0.5
        self.tokens = eqx.nn.Embedding(weight=0.02 * jax.random.normal(keys[0], (vocabulary, d)))
        self.positions = 0.02 * jax.random.normal(keys[1], (longest, d))
        self.blocks = [Block(d, heads, small, k) for k in keys[2:]]
        self.norm = eqx.nn.LayerNorm(d)

    def __call__(self, tokens):
        x = jax.vmap(self.tokens)(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.tokens.weight.T


def gpt(data, seed, report):
    model = eqx.filter_jit(GPT)(256, data.x.shape[1], jax.random.key(seed))
    return train(model, optax.adamw(1e-3, weight_decay=0.1), data, report)
