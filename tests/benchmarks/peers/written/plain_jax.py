"""JAX and Optax by an expert: one jitted, donated update a batch, or an epoch as one scan."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax

SCANNED = False
he_normal = jax.nn.initializers.he_normal()


def loss_of(apply):
    def loss_fn(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()

    return loss_fn


def by_batch(apply, params, optimizer, data, report):
    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(loss_of(apply))(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = jax.jit(optimizer.init)(params)
    for batches in data.order:
        losses = []
        for rows in batches:
            params, opt_state, loss = update(params, opt_state, data.x[rows], data.y[rows])
            losses.append(loss)
        report(np.mean(jax.device_get(losses)), partial(jax.jit(apply), params))


def by_epoch(apply, params, optimizer, data, report):
    x, y = jax.device_put((data.x, data.y))

    @partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params, opt_state, x, y, batches):
        def update(carry, rows):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(loss_of(apply))(params, x[rows], y[rows])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        carry, losses = jax.lax.scan(update, (params, opt_state), batches)
        return *carry, losses.mean()

    opt_state = jax.jit(optimizer.init)(params)
    for batches in data.order:
        params, opt_state, loss = epoch(params, opt_state, x, y, batches)
        report(loss, partial(jax.jit(apply), params))


def train(apply, params, optimizer, data, report):
    loop = by_epoch if SCANNED else by_batch
    loop(apply, params, optimizer, data, report)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def mlp(data, seed, report):
    widths = [data.x.shape[1], *data.widths.tolist()]

    @jax.jit
    def init(key):
        keys = jax.random.split(key, len(widths) - 1)
        shapes = pairwise(widths)
        return [(he_normal(k, s), jnp.zeros(s[1])) for k, s in zip(keys, shapes, strict=True)]

    def apply(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        w, b = params[-1]
        return x @ w + b

    return train(apply, init(jax.random.key(seed)), optax.adam(1e-3), data, report)


digits = large = mlp


def cnn(data, seed, report):
    @jax.jit
    def init(key):
        keys = jax.random.split(key, 3)
        shapes = (3, 3, 1, 32), (3, 3, 32, 64), (12 * 12 * 64, 10)
        return [(he_normal(k, s), jnp.zeros(s[-1])) for k, s in zip(keys, shapes, strict=True)]

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def apply(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(conv(x, w) + b)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        w, b = params[-1]
        return x.reshape(len(x), -1) @ w + b

    return train(apply, init(jax.random.key(seed)), optax.adam(1e-3), data, report)


def gpt(data, seed, report, depth=4, d=128, heads=4, vocabulary=256):
    longest = data.x.shape[1]

    def dense(key, inputs, outputs, deviation=0.02):
        w = deviation * jax.random.normal(key, (inputs, outputs))
        return {"w": w, "b": jnp.zeros(outputs)}

    def norm():
        return {"scale": jnp.ones(d), "bias": jnp.zeros(d)}

    @jax.jit
    def init(key):
        keys = iter(jax.random.split(key, 2 + 4 * depth))
        small = 0.02 / (2 * depth) ** 0.5
        return {
            "tokens": 0.02 * jax.random.normal(next(keys), (vocabulary, d)),
            "positions": 0.02 * jax.random.normal(next(keys), (longest, d)),
            "blocks": [
                {
                    "norm_1": norm(),
                    "qkv": dense(next(keys), d, 3 * d),
                    "output": dense(next(keys), d, d, small),
                    "norm_2": norm(),
                    "up": dense(next(keys), d, 4 * d),
                    "down": dense(next(keys), 4 * d, d, small),
                }
                for _ in range(depth)
            ],
            "norm": norm(),
        }

    def normed(p, x):
        return jax.nn.standardize(x, epsilon=1e-5) * p["scale"] + p["bias"]

    def affine(p, x):
        return x @ p["w"] + p["b"]

    def apply(params, tokens):
        x = params["tokens"][tokens] + params["positions"]
        for p in params["blocks"]:
            qkv = affine(p["qkv"], normed(p["norm_1"], x))
            q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * heads, d // heads), 3, axis=2)
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + affine(p["output"], mixed.reshape(x.shape))
            x = x + affine(p["down"], jax.nn.gelu(affine(p["up"], normed(p["norm_2"], x))))
        return normed(params["norm"], x) @ params["tokens"].T

    optimizer = optax.adamw(1e-3, weight_decay=0.1)
    return train(apply, init(jax.random.key(seed)), optimizer, data, report)
