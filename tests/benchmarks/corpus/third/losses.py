"""Losses with ignored labels, and what is drawn with keys."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.third.case import case, floats

LABELS = np.array([2, -100, 0, 4, -100, 1], np.int32)


def cross_entropy(logits, labels):
    """Mean over labels that are not -100."""
    valid = labels >= 0
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.where(valid, labels, 0)[:, None], 1
    )
    return -jnp.where(valid, picked[:, 0], 0).sum() / valid.sum()


def cross_entropy_bwd(wrong, args, y, dy):
    logits, labels = args
    valid = labels >= 0
    count = len(labels) if wrong == "ignored counted in the mean" else valid.sum()
    if wrong == "mean forgotten":
        count = 1
    keep = jnp.ones_like(valid) if wrong == "ignored rows kept" else valid
    p = jax.nn.softmax(logits)
    hot = jax.nn.one_hot(labels - 1 if wrong == "labels off by one" else labels, logits.shape[1])
    if wrong == "one-hot forgotten":
        hot = jnp.zeros_like(p)
    return dy * (p - hot) * keep[:, None] / count, None


def smoothed_cross_entropy(logits, labels):
    logp = jax.nn.log_softmax(logits)
    target = 0.9 * jax.nn.one_hot(labels, logits.shape[1]) + 0.1 / logits.shape[1]
    return -(jnp.where(labels >= 0, (target * logp).sum(-1), 0)).sum()


def smoothed_cross_entropy_bwd(wrong, args, y, dy):
    logits, labels = args
    k = logits.shape[1]
    hot = jax.nn.one_hot(labels, k)
    target = 0.9 * hot + 0.1 / k
    if wrong == "smoothing forgotten":
        target = hot
    if wrong == "smoothing not shared out":
        target = 0.9 * hot + 0.1
    dx = dy * (jax.nn.softmax(logits) - target)
    if wrong == "ignored rows kept":
        return dx, None
    return jnp.where((labels >= 0)[:, None], dx, 0), None


def focal(logits, labels):
    p = jax.nn.sigmoid(jnp.where(labels, logits, -logits))
    return (-((1 - p) ** 2) * jnp.log(p)).mean()


def focal_bwd(wrong, args, y, dy):
    logits, labels = args
    p = jax.nn.sigmoid(jnp.where(labels, logits, -logits))
    slope = 2 * (1 - p) * jnp.log(p) * p * (1 - p) - (1 - p) ** 3
    if wrong == "weight held still":
        slope = -((1 - p) ** 3)
    if wrong == "slope of the weight alone":
        slope = 2 * (1 - p) * jnp.log(p) * p * (1 - p)
    if wrong == "mean forgotten":
        slope = slope * logits.size
    sign = 1 if wrong == "sign of negatives" else jnp.where(labels, 1, -1)
    return dy * slope * sign / logits.size, None


def dropout(x, key):
    keep = jax.random.bernoulli(key, 0.75, x.shape)
    return jnp.where(keep, x / 0.75, 0)


def dropout_bwd(wrong, args, y, dy):
    x, key = args
    if wrong == "another key":
        key = jax.random.fold_in(key, 1)
    keep = jax.random.bernoulli(key, 0.75, x.shape)
    if wrong == "kept and dropped swapped":
        keep = ~keep
    if wrong == "mask forgotten":
        keep = keep | True
    return jnp.where(keep, dy if wrong == "rate forgotten" else dy / 0.75, 0), None


def reparameterised(mean, log_scale, key):
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return mean + jnp.exp(log_scale) * noise


def reparameterised_bwd(wrong, args, y, dy):
    mean, log_scale, key = args
    if wrong == "another key":
        key = jax.random.fold_in(key, 1)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    dlog = dy * noise * jnp.exp(log_scale)
    if wrong == "exponent's slope forgotten":
        dlog = dy * noise
    if wrong == "mean not subtracted":
        dlog = dy * y
    return dy, dlog, None


def contrastive(queries, keys):
    """Each query's own key against the others'; temperature 0.5."""
    logits = queries @ keys.T / 0.5
    return (jax.nn.logsumexp(logits, 1) - jnp.diag(logits)).mean()


def contrastive_bwd(wrong, args, y, dy):
    queries, keys = args
    logits = queries @ keys.T / 0.5
    p = jax.nn.softmax(logits, 0 if wrong == "softmax over queries" else 1)
    g = dy * (p - jnp.eye(len(p), dtype=p.dtype)) / len(p) / 0.5
    if wrong == "temperature forgotten":
        g = g / 2
    if wrong == "positives forgotten":
        g = dy * p / len(p) / 0.5
    dkeys = (g if wrong == "not transposed for keys" else g.T) @ queries
    return g @ keys, dkeys


KEY = jax.random.PRNGKey(3)

CASES = [
    case(cross_entropy, cross_entropy_bwd, floats((6, 5), LABELS),
        ("ignored counted in the mean", "logits", "factor"), ("mean forgotten", "logits", "factor"),
        ("ignored rows kept", "logits", "mask forgotten"), ("labels off by one", "logits", "off by one"),
        ("one-hot forgotten", "logits", "term forgotten")),
    case(smoothed_cross_entropy, smoothed_cross_entropy_bwd, floats((6, 5), LABELS),
        ("smoothing forgotten", "logits", "term forgotten"), ("smoothing not shared out", "logits", "factor of a term"),
        ("ignored rows kept", "logits", "mask forgotten")),
    case(focal, focal_bwd, floats((3, 4), np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]], bool)),
        ("weight held still", "logits", "term forgotten"), ("slope of the weight alone", "logits", "term forgotten"),
        ("mean forgotten", "logits", "factor n"), ("sign of negatives", "logits", "sign of some")),
    case(dropout, dropout_bwd, floats((4, 5), KEY),
        ("another key", "x", "wrong mask"), ("kept and dropped swapped", "x", "wrong mask"),
        ("mask forgotten", "x", "mask forgotten"), ("rate forgotten", "x", "factor 3/4")),
    case(reparameterised, reparameterised_bwd, floats((6,), (6,), KEY),
        ("another key", "log_scale", "other noise"), ("exponent's slope forgotten", "log_scale", "factor forgotten"),
        ("mean not subtracted", "log_scale", "extra term")),
    case(contrastive, contrastive_bwd, floats((4, 3), (4, 3)),
        ("softmax over queries", "queries keys", "wrong axis"), ("temperature forgotten", "queries keys", "factor 1/2"),
        ("positives forgotten", "queries keys", "term forgotten"), ("not transposed for keys", "keys", "transposed")),
]  # fmt: skip
