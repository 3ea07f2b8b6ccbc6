"""The softmax family, maxima and pooling."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.operation import Operation, changed, mutant, normal


def softmax(x):
    return jax.nn.softmax(x, -1)


def softmax_bwd(args, y, dy):
    return (y * (dy - (y * dy).sum(-1, keepdims=True)),)


def log_softmax(x):
    return x - jax.scipy.special.logsumexp(x, -1, keepdims=True)


def log_softmax_bwd(args, y, dy):
    return (dy - jnp.exp(y) * dy.sum(-1, keepdims=True),)


def logsumexp(x):
    return jax.scipy.special.logsumexp(x, -1)


def logsumexp_bwd(args, y, dy):
    return (dy[:, None] * jnp.exp(args[0] - y[:, None]),)


def max_reduce(x):
    return x.max(-1)


def max_reduce_bwd(args, y, dy):
    return (dy[:, None] * jax.nn.one_hot(args[0].argmax(-1), args[0].shape[-1], dtype=dy.dtype),)


def mean(x):
    return x.mean(0)


def mean_bwd(args, y, dy):
    (x,) = args
    return (jnp.broadcast_to(dy / x.shape[0], x.shape),)


def variance(x):
    return x.var(-1)


def variance_bwd(args, y, dy):
    (x,) = args
    return (dy[:, None] * 2 * (x - x.mean(-1, keepdims=True)) / x.shape[-1],)


def max_pool(x):
    return x.reshape(x.shape[0], -1, 2).max(-1)


def max_pool_bwd(args, y, dy):
    (x,) = args
    windows = x.reshape(x.shape[0], -1, 2)
    first = windows[..., 0] >= windows[..., 1]
    return (jnp.stack([jnp.where(first, dy, 0), jnp.where(first, 0, dy)], -1).reshape(x.shape),)


def max_pool_all_first(args, y, dy):
    return (jnp.stack([dy, jnp.zeros_like(dy)], -1).reshape(args[0].shape),)


def average_pool(x):
    b, h, w = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2).mean((2, 4))


def average_pool_bwd(args, y, dy):
    return (jnp.repeat(jnp.repeat(dy, 2, 1), 2, 2) / 4,)


def masked_mean(x, mask):
    return (x * mask).sum(-1) / mask.sum(-1)


def masked_mean_bwd(args, y, dy):
    x, mask = args
    count = mask.sum(-1, keepdims=True)
    return dy[:, None] * mask / count, dy[:, None] * (x - y[:, None]) / count


def product(x):
    return x.prod(-1)


def product_bwd(args, y, dy):
    (x,) = args
    n = x.shape[-1]
    others = jnp.stack([jnp.delete(x, i, -1).prod(-1) for i in range(n)], -1)
    return (dy[:, None] * others,)


def norm_reduce(x):
    return jnp.sqrt((x * x).sum(-1))


def norm_reduce_bwd(args, y, dy):
    return (dy[:, None] * args[0] / y[:, None],)


def masked(rng):
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], np.float32)
    return jnp.asarray(rng.standard_normal((3, 4)), jnp.float32), jnp.asarray(mask)


def rounded(*shape):
    return lambda rng: (jnp.round(jnp.asarray(rng.standard_normal(shape), jnp.float32)),)


def expanded(change):
    return lambda args, y, dy: (change(args, y, dy),)


OPERATIONS = [
    Operation("softmax", softmax, softmax_bwd, normal((4, 6)), (
        mutant("sum forgotten", lambda a, y, dy: (y * dy,), "x", "missing term"),
        mutant("summed over the wrong axis", lambda a, y, dy: (y * (dy - (y * dy).sum(0, keepdims=True)),), "x", "wrong axis"),
        mutant("averaged, not summed", lambda a, y, dy: (y * (dy - (y * dy).mean(-1, keepdims=True)),), "x", "factor of a term"),
        mutant("summed over everything", lambda a, y, dy: (y * (dy - (y * dy).sum()),), "x", "leak"),
        mutant("y forgotten in the sum", lambda a, y, dy: (y * (dy - dy.sum(-1, keepdims=True)),), "x", "unknown", "stale"),
        mutant("sign of the sum", lambda a, y, dy: (y * (dy + (y * dy).sum(-1, keepdims=True)),), "x", "sign of a term"),
        mutant("stale: softmax of the output", lambda a, y, dy: softmax_bwd(a, softmax(y), dy), "x", "stale"),
    )),
    Operation("log-softmax", log_softmax, log_softmax_bwd, normal((4, 6)), (
        mutant("sum forgotten", lambda a, y, dy: (dy,), "x", "missing term"),
        mutant("y for its exponential", lambda a, y, dy: (dy - y * dy.sum(-1, keepdims=True),), "x", "stale", "unknown"),
        mutant("averaged", lambda a, y, dy: (dy - jnp.exp(y) * dy.mean(-1, keepdims=True),), "x", "factor of a term"),
        mutant("sum over the batch", lambda a, y, dy: (dy - jnp.exp(y) * dy.sum(0, keepdims=True),), "x", "wrong axis"),
    )),
    Operation("logsumexp", logsumexp, logsumexp_bwd, normal((4, 6)), (
        mutant("uniform", lambda a, y, dy: (jnp.broadcast_to(dy[:, None] / 6, a[0].shape),), "x", "wrong axis", "stale", "unknown"),
        mutant("cotangent forgotten", lambda a, y, dy: (jnp.exp(a[0] - y[:, None]),), "x", "ignores the cotangent"),
        mutant("not normalised", lambda a, y, dy: (dy[:, None] * jnp.exp(a[0]),), "x", "unknown", "factor", "stale", "missing term"),
    )),
    Operation("maximum", max_reduce, max_reduce_bwd, normal((4, 5)), (
        mutant("to all", lambda a, y, dy: (jnp.broadcast_to(dy[:, None], a[0].shape),), "x", "wrong axis"),
        mutant("to the minimum", lambda a, y, dy: max_reduce_bwd((-a[0],), y, dy), "x", "unknown", "stale"),
        mutant("to the next", lambda a, y, dy: (jnp.roll(max_reduce_bwd(a, y, dy)[0], 1, 1),), "x", "shifted"),
        mutant("to the first", lambda a, y, dy: (jnp.zeros_like(a[0]).at[:, 0].set(dy),), "x", "unknown", "stale", "region"),
    ), (0,), rounded(4, 5)),
    Operation("mean", mean, mean_bwd, normal((6, 3)), (
        mutant("summed", lambda a, y, dy: (jnp.broadcast_to(dy, a[0].shape),), "x", "factor"),
        mutant("to the first row", lambda a, y, dy: (jnp.zeros_like(a[0]).at[0].set(dy),), "x", "region", "unknown"),
        mutant("divided by the other axis", lambda a, y, dy: (jnp.broadcast_to(dy / 3, a[0].shape),), "x", "factor"),
    )),
    Operation("variance", variance, variance_bwd, normal((4, 6)), (
        mutant("two forgotten", changed(variance_bwd, 0, lambda g: g / 2), "x", "factor"),
        mutant("mean not subtracted", lambda a, y, dy: (dy[:, None] * 2 * a[0] / 6,), "x", "stale", "missing term", "left out"),
        mutant("n - 1", changed(variance_bwd, 0, lambda g: g * 6 / 5), "x", "factor"),
    )),
    Operation("max pooling", max_pool, max_pool_bwd, normal((3, 8)), (
        mutant("to the first of each window", max_pool_all_first, "x", "unknown", "region", "stale"),
        mutant("to both", lambda a, y, dy: (jnp.repeat(dy, 2, 1),), "x", "unknown", "region"),
        mutant("last window left out", changed(max_pool_bwd, 0, lambda g: g.at[:, -2:].set(0)), "x", "region"),
        mutant("windows shifted", changed(max_pool_bwd, 0, lambda g: jnp.roll(g, 1, 1)), "x", "shifted"),
    ), (0,), rounded(3, 8)),
    Operation("average pooling", average_pool, average_pool_bwd, normal((2, 4, 6)), (
        mutant("not divided", changed(average_pool_bwd, 0, lambda g: 4 * g), "x", "factor"),
        mutant("tiled, not repeated", lambda a, y, dy: (jnp.tile(dy, (1, 2, 2)) / 4,), "x", "unknown", "transposed"),
        mutant("axes swapped", lambda a, y, dy: (jnp.swapaxes(average_pool_bwd(a, y, dy)[0], 1, 2).reshape(a[0].shape),), "x", "transposed"),
        mutant("one corner of each window", lambda a, y, dy: (jnp.zeros_like(a[0]).at[:, ::2, ::2].set(dy / 4),), "x", "region", "unknown"),
    )),
    Operation("masked mean", masked_mean, masked_mean_bwd, masked, (
        mutant("divided by the length", lambda a, y, dy: (dy[:, None] * a[1] / 4, masked_mean_bwd(a, y, dy)[1]), "x", "stale", "region", "unknown", "factor"),
        mutant("mask forgotten", lambda a, y, dy: (jnp.broadcast_to(dy[:, None], a[0].shape) / a[1].sum(-1, keepdims=True), masked_mean_bwd(a, y, dy)[1]), "x", "region"),
        mutant("count forgotten", lambda a, y, dy: (dy[:, None] * a[1], masked_mean_bwd(a, y, dy)[1]), "x", "unknown", "stale", "region", "left out"),
    )),
    Operation("product", product, product_bwd, normal((4, 5)), (
        mutant("y over x, NaN at zero", lambda a, y, dy: (dy[:, None] * y[:, None] / a[0],), "x", "NaN"),
        mutant("the whole product", lambda a, y, dy: (jnp.broadcast_to((dy * y)[:, None], a[0].shape),), "x", "factor"),
    )),
    Operation("euclidean norm", norm_reduce, norm_reduce_bwd, normal((4, 5)), (
        mutant("not normalised", lambda a, y, dy: (dy[:, None] * a[0],), "x", "unknown", "stale", "factor"),
        mutant("twice", changed(norm_reduce_bwd, 0, lambda g: 2 * g), "x", "factor"),
        mutant("squared norm", lambda a, y, dy: (dy[:, None] * a[0] / y[:, None] ** 2,), "x", "unknown", "stale", "factor"),
    )),
]  # fmt: skip
