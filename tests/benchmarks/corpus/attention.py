"""Attention and what comes with it."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.operation import Operation, changed, mutant, normal


def scores(q, k):
    s = q @ k.T / math.sqrt(q.shape[-1])
    n = q.shape[0]
    return jnp.where(np.tril(np.ones((n, n), bool)), s, jnp.asarray(-1e9, s.dtype))


def attention(q, k, v):
    return jax.nn.softmax(scores(q, k)) @ v


def attention_bwd(args, y, dy, *, scale=None, sum_term=1.0, masked=True, p=None):
    q, k, v = args
    p = jax.nn.softmax(scores(q, k)) if p is None else p
    dp = dy @ v.T
    ds = p * (dp - sum_term * (p * dp).sum(-1, keepdims=True))
    if masked:
        ds = jnp.where(np.tril(np.ones(ds.shape, bool)), ds, 0)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return scale * ds @ k, scale * ds.T @ q, p.T @ dy


def attention_no_mask(args, y, dy):
    q, k, _ = args
    return attention_bwd(
        args, y, dy, masked=False, p=jax.nn.softmax(q @ k.T / math.sqrt(q.shape[-1]))
    )


def attention_k_of_q(args, y, dy):
    dq, _, dv = attention_bwd(args, y, dy)
    return dq, dq, dv


def rotary(x, cos, sin):
    a, b = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-b, a], -1) * sin


def rotary_bwd(args, y, dy):
    x, cos, sin = args
    a, b = jnp.split(x, 2, -1)
    c, d = jnp.split(dy * sin, 2, -1)
    return dy * cos + jnp.concatenate([d, -c], -1), dy * x, dy * jnp.concatenate([-b, a], -1)


def rotary_forward_again(args, y, dy):
    _, cos, sin = args
    return rotary(dy, cos, sin), *rotary_bwd(args, y, dy)[1:]


def dropout(x, key):
    return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0).astype(x.dtype)


def dropout_bwd(args, y, dy):
    x, key = args
    return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), dy / 0.7, 0).astype(dy.dtype), None


def dropout_other_mask(args, y, dy):
    x, key = args
    return dropout_bwd((x, jax.random.split(key)[0]), y, dy)


def alibi(q, k, slopes):
    n = q.shape[0]
    distance = jnp.asarray(np.arange(n)[:, None] - np.arange(n)[None, :], q.dtype)
    return jax.nn.softmax(q @ k.T - slopes * distance)


def alibi_bwd(args, y, dy):
    q, k, _ = args
    n = q.shape[0]
    distance = jnp.asarray(np.arange(n)[:, None] - np.arange(n)[None, :], q.dtype)
    ds = y * (dy - (y * dy).sum(-1, keepdims=True))
    return ds @ k, ds.T @ q, -(ds * distance).sum()


def with_key(rng):
    return jnp.asarray(rng.standard_normal((5, 6)), jnp.float32), jax.random.key(3)


def rotations(rng):
    x = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    angles = rng.uniform(0, 3, (5, 2))
    angles = np.concatenate([angles, angles], -1)
    return x, jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


OPERATIONS = [
    Operation("causal attention", attention, attention_bwd, normal((5, 4), (5, 4), (5, 4)), (
        mutant("scale forgotten", lambda a, y, dy: attention_bwd(a, y, dy, scale=1.0), "q k", "factor"),
        mutant("softmax's sum forgotten", lambda a, y, dy: attention_bwd(a, y, dy, sum_term=0.0), "q k", "missing term"),
        mutant("mask forgotten", attention_no_mask, "q k v", "leak", "wrong axis", "unknown", "stale"),
        mutant("dk is dq", attention_k_of_q, "k", "swapped"),
        mutant("dv without its transpose", lambda a, y, dy: (*attention_bwd(a, y, dy)[:2], jax.nn.softmax(scores(*a[:2])) @ dy), "v", "transposed", "stale", "unknown", "wrong axis", "leak"),
        mutant("last key left out", changed(attention_bwd, 1, lambda g: g.at[-1].set(0)), "k", "region"),
        mutant("scaled by d, not its root", lambda a, y, dy: attention_bwd(a, y, dy, scale=0.25), "q k", "factor"),
        mutant("value's first row left out", changed(attention_bwd, 2, lambda g: g.at[0].set(0)), "v", "region"),
    ), (2,)),
    Operation("rotary embedding", rotary, rotary_bwd, rotations, (
        mutant("rotated the same way", rotary_forward_again, "x", "sign of a term"),
        mutant("only the cosine", lambda a, y, dy: (dy * a[1], *rotary_bwd(a, y, dy)[1:]), "x", "missing term"),
        mutant("cosine and sine swapped", lambda a, y, dy: (rotary_bwd((a[0], a[2], a[1]), y, dy)[0], *rotary_bwd(a, y, dy)[1:]), "x", "unknown", "stale"),
    )),
    Operation("dropout", dropout, dropout_bwd, with_key, (
        mutant("another mask", dropout_other_mask, "x", "unknown"),
        mutant("not rescaled", changed(dropout_bwd, 0, lambda g: 0.7 * g), "x", "factor"),
        mutant("no mask", lambda a, y, dy: (dy / 0.7, None), "x", "region", "unknown", "stale"),
    )),
    Operation("biased attention weights", alibi, alibi_bwd, lambda rng: (*normal((5, 3), (5, 3))(rng), jnp.asarray(0.3, jnp.float32)), (
        mutant("bias's sign", changed(alibi_bwd, 2, lambda g: -g), "slopes", "sign"),
        mutant("bias zero", changed(alibi_bwd, 2, jnp.zeros_like), "slopes", "zero"),
        mutant("bias averaged", changed(alibi_bwd, 2, lambda g: g / 25), "slopes", "factor"),
        mutant("dk not transposed", lambda a, y, dy: (alibi_bwd(a, y, dy)[0], (y * (dy - (y * dy).sum(-1, keepdims=True))) @ a[0], alibi_bwd(a, y, dy)[2]), "k", "transposed", "unknown", "leak", "wrong axis"),
    ), ()),
]  # fmt: skip
