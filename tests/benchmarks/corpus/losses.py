"""Losses: a scalar from outputs and targets."""

import jax
import jax.numpy as jnp

from tests.benchmarks.corpus.operation import Operation, changed, mutant, normal


def cross_entropy(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()


def cross_entropy_bwd(args, y, dy):
    logits, labels = args
    p = jax.nn.softmax(logits)
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return dy * (p - onehot) / logits.shape[0], None


def cross_entropy_no_onehot(args, y, dy):
    logits, _ = args
    return dy * jax.nn.softmax(logits) / logits.shape[0], None


def cross_entropy_onehot_only(args, y, dy):
    logits, labels = args
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -dy * onehot / logits.shape[0], None


def soft_cross_entropy(logits, targets):
    return -(targets * jax.nn.log_softmax(logits)).sum(-1)


def soft_cross_entropy_bwd(args, y, dy):
    logits, targets = args
    p = jax.nn.softmax(logits)
    total = targets.sum(-1, keepdims=True)
    return dy[:, None] * (p * total - targets), -dy[:, None] * jax.nn.log_softmax(logits)


def mean_squared(x, t):
    return ((x - t) ** 2).mean()


def mean_squared_bwd(args, y, dy):
    x, t = args
    g = dy * 2 * (x - t) / x.size
    return g, -g


def binary(z, t):
    return (jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z)))).sum()


def binary_bwd(args, y, dy):
    z, t = args
    return dy * (jax.nn.sigmoid(z) - t), -dy * z


def huber(x, t):
    r = x - t
    return jnp.where(jnp.abs(r) <= 1, 0.5 * r * r, jnp.abs(r) - 0.5).sum()


def huber_bwd(args, y, dy):
    x, t = args
    g = dy * jnp.clip(x - t, -1, 1)
    return g, -g


def weighted(x, t, w):
    return (w * (x - t) ** 2).sum() / w.sum()


def weighted_bwd(args, y, dy):
    x, t, w = args
    r = x - t
    g = dy * 2 * w * r / w.sum()
    return g, -g, dy * (r * r - y) / w.sum()


def logits_and_labels(rng):
    logits = jnp.asarray(rng.standard_normal((6, 4)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, 4, 6), jnp.int32)


def logits_and_targets(rng):
    logits = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    return logits, jnp.asarray(rng.dirichlet([1.0] * 4, 5), jnp.float32)


def weights_too(rng):
    x, t = normal((4, 3), (4, 3))(rng)
    return x, t, jnp.asarray(rng.uniform(0.1, 2, (4, 3)), jnp.float32)


def probabilities(rng):
    z = jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
    return z, jnp.asarray(rng.uniform(0, 1, (4, 3)), jnp.float32)


OPERATIONS = [
    Operation("cross-entropy", cross_entropy, cross_entropy_bwd, logits_and_labels, (
        mutant("not divided by the batch", changed(cross_entropy_bwd, 0, lambda g: 6 * g), "logits", "factor"),
        mutant("divided by the classes too", changed(cross_entropy_bwd, 0, lambda g: g / 4), "logits", "factor"),
        mutant("label's term forgotten", cross_entropy_no_onehot, "logits", "missing term"),
        mutant("only the label's term", cross_entropy_onehot_only, "logits", "missing term", "overwritten"),
        mutant("label shifted by one", lambda a, y, dy: cross_entropy_bwd((a[0], (a[1] + 1) % 4), y, dy), "logits", "unknown", "shifted"),
        mutant("sign", changed(cross_entropy_bwd, 0, lambda g: -g), "logits", "sign"),
        mutant("last example left out", changed(cross_entropy_bwd, 0, lambda g: g.at[-1].set(0)), "logits", "region"),
        mutant("cotangent forgotten", lambda a, y, dy: cross_entropy_bwd(a, y, jnp.ones_like(dy)), "logits", "ignores the cotangent"),
    )),
    Operation("soft cross-entropy", soft_cross_entropy, soft_cross_entropy_bwd, logits_and_targets, (
        mutant("dtargets zero", changed(soft_cross_entropy_bwd, 1, jnp.zeros_like), "targets", "zero"),
        mutant("dtargets of probabilities", lambda a, y, dy: (soft_cross_entropy_bwd(a, y, dy)[0], -dy[:, None] * jax.nn.softmax(a[0])), "targets", "unknown", "stale"),
        mutant("rows mixed", lambda a, y, dy: (soft_cross_entropy_bwd(a, y, dy.sum() + 0 * dy)[0], soft_cross_entropy_bwd(a, y, dy)[1]), "logits", "leak"),
    )),
    Operation("mean squared", mean_squared, mean_squared_bwd, normal((4, 3), (4, 3)), (
        mutant("two forgotten", changed(mean_squared_bwd, 0, lambda g: g / 2), "x", "factor"),
        mutant("divided by the batch only", changed(mean_squared_bwd, 0, lambda g: 3 * g), "x", "factor"),
        mutant("target's sign", changed(mean_squared_bwd, 1, lambda g: -g), "t", "sign"),
        mutant("absolute difference", lambda a, y, dy: (jnp.abs(mean_squared_bwd(a, y, dy)[0]), mean_squared_bwd(a, y, dy)[1]), "x", "not linear", "region"),
        mutant("target forgotten", lambda a, y, dy: (dy * 2 * a[0] / 12, mean_squared_bwd(a, y, dy)[1]), "x", "stale"),
    ), (0,)),
    Operation("binary cross-entropy", binary, binary_bwd, probabilities, (
        mutant("target forgotten", lambda a, y, dy: (dy * jax.nn.sigmoid(a[0]), binary_bwd(a, y, dy)[1]), "z", "missing term", "stale"),
        mutant("no sigmoid", lambda a, y, dy: (dy * (a[0] - a[1]), binary_bwd(a, y, dy)[1]), "z", "unknown", "stale"),
        mutant("averaged", changed(binary_bwd, 0, lambda g: g / 12), "z", "factor"),
    )),
    Operation("huber", huber, huber_bwd, lambda rng: (2 * normal((4, 3))(rng)[0], normal((4, 3))(rng)[0]), (
        mutant("not clipped", lambda a, y, dy: (dy * (a[0] - a[1]), huber_bwd(a, y, dy)[1]), "x", "region", "unknown"),
        mutant("target's gradient zero", changed(huber_bwd, 1, jnp.zeros_like), "t", "zero"),
        mutant("the same for both", lambda a, y, dy: (huber_bwd(a, y, dy)[0],) * 2, "t", "sign", "swapped"),
    ), (0,)),
    Operation("weighted squares", weighted, weighted_bwd, weights_too, (
        mutant("divided by the count", lambda a, y, dy: (dy * 2 * a[2] * (a[0] - a[1]) / 12, *weighted_bwd(a, y, dy)[1:]), "x", "stale", "unknown", "factor"),
        mutant("weights forgotten", lambda a, y, dy: (dy * 2 * (a[0] - a[1]) / a[2].sum(), *weighted_bwd(a, y, dy)[1:]), "x", "factor", "stale"),
        mutant("weights' denominator forgotten", lambda a, y, dy: (*weighted_bwd(a, y, dy)[:2], dy * (a[0] - a[1]) ** 2 / a[2].sum()), "w", "missing term"),
        mutant("weights applied twice", lambda a, y, dy: (weighted_bwd(a, y, dy)[0] * a[2], *weighted_bwd(a, y, dy)[1:]), "x", "factor"),
    ), (0,)),
]  # fmt: skip
