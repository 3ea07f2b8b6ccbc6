"""Normalisations."""

import jax
import jax.numpy as jnp

from tests.benchmarks.corpus.operation import Operation, changed, mutant, normal

EPS = 1e-5


def layer_norm(x, gamma, beta):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + EPS) * gamma + beta


def parts(x):
    centred = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + EPS)
    return centred * inverse, inverse


def layer_norm_bwd(args, y, dy, mean_term=1.0, variance_term=1.0):
    x, gamma, _ = args
    n, inverse = parts(x)
    g = dy * gamma
    mean = g.mean(-1, keepdims=True)
    projected = n * (g * n).mean(-1, keepdims=True)
    dx = inverse * (g - mean_term * mean - variance_term * projected)
    return dx, (dy * n).sum(0), dy.sum(0)


def layer_norm_no_gamma(args, y, dy):
    x, gamma, beta = args
    return layer_norm_bwd((x, jnp.ones_like(gamma), beta), y, dy)[0], *layer_norm_bwd(args, y, dy)[
        1:
    ]


def layer_norm_sums(args, y, dy):
    x, gamma, _ = args
    n, inverse = parts(x)
    g = dy * gamma
    dx = inverse * (g - g.sum(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))
    return dx, *layer_norm_bwd(args, y, dy)[1:]


def layer_norm_gamma_of_y(args, y, dy):
    dx, _, dbeta = layer_norm_bwd(args, y, dy)
    return dx, (dy * y).sum(0), dbeta


def layer_norm_no_inverse(args, y, dy):
    x, _, _ = args
    dx, *rest = layer_norm_bwd(args, y, dy)
    return dx / parts(x)[1], *rest


def rms_norm(x, gamma):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * gamma


def rms_norm_bwd(args, y, dy, term=1.0):
    x, gamma = args
    inverse = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS)
    n, g = x * inverse, dy * gamma
    return inverse * (g - term * n * (g * n).mean(-1, keepdims=True)), (dy * n).sum(0)


def batch_norm(x, gamma, beta):
    centred = x - x.mean(0)
    return centred * jax.lax.rsqrt((centred**2).mean(0) + EPS) * gamma + beta


def batch_norm_bwd(args, y, dy, mean_term=1.0, variance_term=1.0):
    x, gamma, _ = args
    centred = x - x.mean(0)
    inverse = jax.lax.rsqrt((centred**2).mean(0) + EPS)
    n, g = centred * inverse, dy * gamma
    dx = inverse * (g - mean_term * g.mean(0) - variance_term * n * (g * n).mean(0))
    return dx, (dy * n).sum(0), dy.sum(0)


def batch_norm_as_layer_norm(args, y, dy):
    x, gamma, _ = args
    centred = x - x.mean(0)
    inverse = jax.lax.rsqrt((centred**2).mean(0) + EPS)
    n, g = centred * inverse, dy * gamma
    dx = inverse * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(0))
    return dx, *batch_norm_bwd(args, y, dy)[1:]


def l2_normalize(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + EPS)


def l2_normalize_bwd(args, y, dy, term=1.0):
    (x,) = args
    norm = jnp.sqrt((x * x).sum(-1, keepdims=True) + EPS)
    return ((dy - term * y * (y * dy).sum(-1, keepdims=True)) / norm,)


def weight_norm(v, g):
    return g * v / jnp.sqrt((v * v).sum(0))


def weight_norm_bwd(args, y, dy, term=1.0):
    v, g = args
    norm = jnp.sqrt((v * v).sum(0))
    u = v / norm
    along = (dy * u).sum(0)
    return g / norm * (dy - term * u * along), along


OPERATIONS = [
    Operation("layer norm", layer_norm, layer_norm_bwd, normal((4, 6), (6,), (6,)), (
        mutant("mean's term forgotten", lambda a, y, dy: layer_norm_bwd(a, y, dy, 0.0), "x", "missing term"),
        mutant("variance's term forgotten", lambda a, y, dy: layer_norm_bwd(a, y, dy, 1.0, 0.0), "x", "missing term"),
        mutant("both terms forgotten", lambda a, y, dy: layer_norm_bwd(a, y, dy, 0.0, 0.0), "x", "missing term"),
        mutant("variance's term halved", lambda a, y, dy: layer_norm_bwd(a, y, dy, 1.0, 0.5), "x", "factor of a term"),
        mutant("gamma forgotten", layer_norm_no_gamma, "x", "stale", "factor", "left out"),
        mutant("sum for a mean inside", layer_norm_sums, "x", "factor of a term"),
        mutant("dgamma from the output", layer_norm_gamma_of_y, "gamma", "stale"),
        mutant("dbeta averaged", changed(layer_norm_bwd, 2, lambda g: g / 4), "beta", "factor"),
        mutant("deviation forgotten", layer_norm_no_inverse, "x", "stale", "unknown", "factor"),
        mutant("gamma's gradient for beta's", lambda a, y, dy: (layer_norm_bwd(a, y, dy)[0], *layer_norm_bwd(a, y, dy)[:0:-1]), "gamma beta", "swapped"),
    )),
    Operation("rms norm", rms_norm, rms_norm_bwd, normal((4, 6), (6,)), (
        mutant("second term forgotten", lambda a, y, dy: rms_norm_bwd(a, y, dy, 0.0), "x", "missing term"),
        mutant("second term's sign", lambda a, y, dy: rms_norm_bwd(a, y, dy, -1.0), "x", "sign of a term"),
        mutant("dgamma with x for its normalised", lambda a, y, dy: (rms_norm_bwd(a, y, dy)[0], (dy * a[0]).sum(0)), "gamma", "stale"),
    )),
    Operation("batch norm", batch_norm, batch_norm_bwd, normal((6, 4), (4,), (4,)), (
        mutant("as if statistics were constant", lambda a, y, dy: batch_norm_bwd(a, y, dy, 0.0, 0.0), "x", "missing term"),
        mutant("variance's term forgotten", lambda a, y, dy: batch_norm_bwd(a, y, dy, 1.0, 0.0), "x", "missing term"),
        mutant("mean over the features", batch_norm_as_layer_norm, "x", "wrong axis", "leak"),
        mutant("gamma averaged", changed(batch_norm_bwd, 1, lambda g: g / 6), "gamma", "factor"),
    )),
    Operation("l2 normalise", l2_normalize, l2_normalize_bwd, normal((4, 5)), (
        mutant("projection forgotten", lambda a, y, dy: l2_normalize_bwd(a, y, dy, 0.0), "x", "missing term"),
        mutant("projection twice", lambda a, y, dy: l2_normalize_bwd(a, y, dy, 2.0), "x", "counted twice"),
        mutant("norm forgotten", lambda a, y, dy: (l2_normalize_bwd(a, y, dy)[0] * jnp.sqrt((a[0] ** 2).sum(-1, keepdims=True) + EPS),), "x", "unknown", "stale", "factor"),
        mutant("projection over the batch", lambda a, y, dy: ((dy - y * (y * dy).sum(0)) / jnp.sqrt((a[0] ** 2).sum(-1, keepdims=True) + EPS),), "x", "wrong axis"),
    )),
    Operation("weight norm", weight_norm, weight_norm_bwd, normal((5, 3), (3,)), (
        mutant("projection forgotten", lambda a, y, dy: weight_norm_bwd(a, y, dy, 0.0), "v", "missing term"),
        mutant("g not normalised", lambda a, y, dy: (weight_norm_bwd(a, y, dy)[0], (dy * a[0]).sum(0)), "g", "stale", "unknown", "factor", "left out"),
        mutant("g forgotten", lambda a, y, dy: (weight_norm_bwd((a[0], jnp.ones_like(a[1])), y, dy)[0], weight_norm_bwd(a, y, dy)[1]), "v", "stale", "factor"),
    )),
]  # fmt: skip
