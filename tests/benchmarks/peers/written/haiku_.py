"""Haiku: transformed functions, one jitted, donated update a batch."""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

he_normal = hk.initializers.VarianceScaling(2.0, "fan_in", "truncated_normal")


def train(forward, optimizer, data, seed, report):
    model = hk.without_apply_rng(hk.transform(forward))
    params = jax.jit(model.init)(jax.random.key(seed), data.x[:1])
    opt_state = jax.jit(optimizer.init)(params)

    def loss_fn(params, x, y):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    for batches in data.order:
        losses = []
        for rows in batches:
            params, opt_state, loss = update(params, opt_state, data.x[rows], data.y[rows])
            losses.append(loss)
        report(np.mean(jax.device_get(losses)), partial(jax.jit(model.apply), params))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def mlp(data, seed, report):
    def forward(x):
        return hk.nets.MLP(data.widths.tolist(), w_init=he_normal)(x)

    return train(forward, optax.adam(1e-3), data, seed, report)


digits = large = mlp


def cnn(data, seed, report):
    def forward(x):
        x = jax.nn.relu(hk.Conv2D(32, 3, w_init=he_normal)(x))
        x = jax.nn.relu(hk.Conv2D(64, 3, w_init=he_normal)(x))
        x = hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID")
        return hk.Linear(10, w_init=he_normal)(hk.Flatten()(x))

    return train(forward, optax.adam(1e-3), data, seed, report)


def block(x, heads, small):
    d, normal = x.shape[-1], hk.initializers.RandomNormal(0.02)
    h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
    # hk.MultiHeadAttention has one initialiser for what goes in and what goes out.
    qkv = hk.Linear(3 * d, w_init=normal)(h).reshape(*x.shape[:2], 3 * heads, d // heads)
    mixed = jax.nn.dot_product_attention(*jnp.split(qkv, 3, axis=2), is_causal=True)
    x = x + hk.Linear(d, w_init=small)(mixed.reshape(x.shape))
    h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
    h = jax.nn.gelu(hk.Linear(4 * d, w_init=normal)(h))
    return x + hk.Linear(d, w_init=small)(h)


def gpt(data, seed, report, depth=4, d=128, heads=4, vocabulary=256):
    def forward(tokens):
        normal = hk.initializers.RandomNormal(0.02)
        small = hk.initializers.RandomNormal(0.02 / (2 * depth) ** 0.5)
        table = hk.Embed(vocabulary, d, w_init=normal)
        positions = hk.get_parameter("positions", (data.x.shape[1], d), init=normal)
        x = table(tokens) + positions
        for _ in range(depth):
            x = block(x, heads, small)
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        return x @ table.embeddings.T

    return train(forward, optax.adamw(1e-3, weight_decay=0.1), data, seed, report)
