"""Attention with masks and positions, and normalisations of groups."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.third.case import case, floats

N = 5
FAR = jnp.arange(N)[:, None] - jnp.arange(N)


def attend(q, k, v, bias, mask):
    scores = q @ k.T / np.sqrt(q.shape[-1]) + bias
    return jax.nn.softmax(jnp.where(mask, scores, -1e30)) @ v


def attend_bwd(q, k, v, bias, mask, dy, wrong):
    scale = 1 / np.sqrt(q.shape[-1])
    p = jax.nn.softmax(jnp.where(mask, q @ k.T * scale + bias, -1e30))
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    if wrong == "row sum forgotten":
        ds = p * dp
    ds = jnp.where(mask, ds, 0)
    if wrong == "scale forgotten":
        scale = 1.0
    dv = (p if wrong == "probabilities not transposed" else p.T) @ dy
    return ds @ k * scale, ds.T @ q * scale, dv, ds


def windowed(q, k, v):
    """Each place sees itself and two before."""
    return attend(q, k, v, 0.0, (FAR >= 0) & (FAR < 3))


def windowed_bwd(wrong, args, y, dy):
    mask = (FAR >= 0) & (FAR < 3)
    if wrong == "window of four":
        mask = (FAR >= 0) & (FAR < 4)
    if wrong == "causal without window":
        mask = FAR >= 0
    if wrong == "strictly before":
        mask = (FAR > 0) & (FAR < 3)
    if wrong == "on both sides":
        mask = abs(FAR) < 3
    return attend_bwd(*args, 0.0, mask, dy, wrong)[:3]


def alibi(q, k, v, slope):
    return attend(q, k, v, -slope * FAR.astype(q.dtype), FAR >= 0)


def alibi_bwd(wrong, args, y, dy):
    q, k, v, slope = args
    far = FAR.astype(q.dtype)
    bias = 0.0 if wrong == "bias not recomputed" else -slope * far
    if wrong == "bias of the wrong sign":
        bias = slope * far
    dq, dk, dv, ds = attend_bwd(q, k, v, bias, FAR >= 0, dy, wrong)
    dslope = -(ds * jnp.where(FAR >= 0, far, 0)).sum()
    return dq, dk, dv, -dslope if wrong == "sign of the slope" else dslope


def padded(q, k, v, lengths):
    return attend(q, k, v, 0.0, jnp.arange(N) < lengths)


def padded_bwd(wrong, args, y, dy):
    q, k, v, lengths = args
    mask = jnp.arange(N) < lengths
    if wrong == "padding seen":
        mask = mask | True
    if wrong == "one key too many":
        mask = jnp.arange(N) <= lengths
    return *attend_bwd(q, k, v, 0.0, mask, dy, wrong)[:3], None


def grouped_queries(q, k, v):
    """Four heads of queries, two of keys: [H, N, D] and [G, N, D]."""
    k, v = jnp.repeat(k, 2, 0), jnp.repeat(v, 2, 0)
    return jax.vmap(lambda q, k, v: attend(q, k, v, 0.0, True))(q, k, v)


def grouped_queries_bwd(wrong, args, y, dy):
    q, k, v = args
    inner = lambda q, k, v, d: attend_bwd(q, k, v, 0.0, True, d, wrong)[:3]
    dq, dk, dv = jax.vmap(inner)(q, jnp.repeat(k, 2, 0), jnp.repeat(v, 2, 0), dy)
    dk, dv = (g.reshape(2, 2, *g.shape[1:]) for g in (dk, dv))
    if wrong == "keys averaged over the group":
        return dq, dk.mean(1), dv.sum(1)
    if wrong == "heads interleaved":
        return dq, dk.sum(1), dv.sum(0)
    if wrong == "first head of each group":
        return dq, dk[:, 0], dv.sum(1)
    return dq, dk.sum(1), dv.sum(1)


def rotary(x):
    """Halves turned by place / 10^(2i)."""
    half = x.shape[-1] // 2
    angle = (jnp.arange(x.shape[0])[:, None] / 10.0 ** jnp.arange(half)).astype(x.dtype)
    c, s = jnp.cos(angle), jnp.sin(angle)
    a, b = x[:, :half], x[:, half:]
    return jnp.concatenate([a * c - b * s, a * s + b * c], -1)


def rotary_bwd(wrong, args, y, dy):
    half = dy.shape[-1] // 2
    place = jnp.arange(dy.shape[0]) + (wrong == "places from one")
    angle = (place[:, None] / 10.0 ** jnp.arange(half)).astype(dy.dtype)
    c, s = jnp.cos(angle), jnp.sin(angle)
    if wrong == "turned forwards":
        s = -s
    a, b = dy[:, :half], dy[:, half:]
    if wrong == "neighbours for halves":
        a, b = dy[:, ::2], dy[:, 1::2]
    if wrong == "sine forgotten":
        s = jnp.zeros_like(s)
    return (jnp.concatenate([a * c + b * s, b * c - a * s], -1),)


def softcapped(q, k):
    """Scores held within -2 and 2 by tanh."""
    return 2 * jnp.tanh(q @ k.T / 2)


def softcapped_bwd(wrong, args, y, dy):
    q, k = args
    g = dy * (1 - (y / 2) ** 2)
    if wrong == "cap forgotten":
        g = dy
    if wrong == "output not divided":
        g = dy * (1 - y**2)
    if wrong == "cap left in":
        g = g * 2
    return g @ k, (g if wrong == "not transposed" else g.T) @ q


def group_norm(x, scale):
    """[B, C, N] in two groups of channels."""
    b, c, n = x.shape
    g = x.reshape(b, 2, -1)
    g = (g - g.mean(-1, keepdims=True)) * jax.lax.rsqrt(g.var(-1, keepdims=True) + 1e-5)
    return g.reshape(b, c, n) * scale[:, None]


def group_norm_bwd(wrong, args, y, dy):
    x, scale = args
    b, c, n = x.shape
    g = x.reshape(b, 2, -1)
    r = jax.lax.rsqrt(g.var(-1, keepdims=True) + 1e-5)
    z = (g - g.mean(-1, keepdims=True)) * r
    d = (dy * scale[:, None]).reshape(b, 2, -1)
    mean = lambda a: a.mean(-1, keepdims=True)
    if wrong == "means over all groups":
        mean = lambda a: a.mean((1, 2), keepdims=True)
    dx = r * (d - mean(d) - z * mean(d * z))
    if wrong == "mean held still":
        dx = r * (d - z * mean(d * z))
    if wrong == "variance held still":
        dx = r * (d - mean(d))
    dscale = (dy * z.reshape(x.shape)).sum((0, 2))
    if wrong == "scale summed over the batch alone":
        dscale = (dy * z.reshape(x.shape))[..., 0].sum(0)
    return dx.reshape(x.shape), dscale


def weight_norm(v, g):
    return g * v / jnp.sqrt((v * v).sum(0))


def weight_norm_bwd(wrong, args, y, dy):
    v, g = args
    n = jnp.sqrt((v * v).sum(0))
    along = (dy * v).sum(0)
    dv = g / n * (dy - v * along / n**2)
    if wrong == "projection forgotten":
        dv = g / n * dy
    if wrong == "norm for its square":
        dv = g / n * (dy - v * along / n)
    if wrong == "g forgotten":
        dv = dv / g
    return dv, along if wrong == "norm forgotten in g" else along / n


def masked_batch_norm(x, mask):
    """Statistics over the rows that are real."""
    m = mask[:, None].astype(x.dtype)
    count = m.sum()
    mean = (m * x).sum(0) / count
    var = (m * (x - mean) ** 2).sum(0) / count
    return m * (x - mean) * jax.lax.rsqrt(var + 1e-3)


def masked_batch_norm_bwd(wrong, args, y, dy):
    x, mask = args
    m = mask[:, None].astype(x.dtype)
    count = x.shape[0] if wrong == "count of all rows" else m.sum()
    mean = (m * x).sum(0) / m.sum()
    r = jax.lax.rsqrt((m * (x - mean) ** 2).sum(0) / m.sum() + 1e-3)
    d = dy if wrong == "mask forgotten on dy" else m * dy
    z = m * (x - mean) * r
    dx = r * (d - d.sum(0) / count - z * (d * z).sum(0) / count)
    if wrong == "mask forgotten on dx":
        return dx, None
    if wrong == "statistics held still":
        return m * r * d, None
    return m * dx, None


def unit_rows(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def unit_rows_bwd(wrong, args, y, dy):
    (x,) = args
    n = jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)
    if wrong == "projection forgotten":
        return (dy / n,)
    if wrong == "x for y":
        return ((dy - x * (x * dy).sum(-1, keepdims=True)) / n,)
    if wrong == "norm forgotten":
        return (dy - y * (y * dy).sum(-1, keepdims=True),)
    return ((dy - y * (y * dy).sum(-1, keepdims=True)) / n,)


QKV = ((N, 4), (N, 4), (N, 3))
REAL = np.array([1, 1, 0, 1, 0, 1, 1], bool)

CASES = [
    case(windowed, windowed_bwd, floats(*QKV),
        ("window of four", "q k v", "wrong mask by one"), ("causal without window", "q k v", "wrong mask"),
        ("strictly before", "q k v", "wrong mask by one"), ("on both sides", "q k v", "wrong mask"),
        ("row sum forgotten", "q k", "term forgotten"), ("scale forgotten", "q k", "factor 2")),
    case(alibi, alibi_bwd, lambda rng: (*floats(*QKV)(rng), jnp.float32(0.5)),
        ("bias not recomputed", "q k v slope", "term forgotten in the recomputed"),
        ("bias of the wrong sign", "q k v slope", "sign in the recomputed"), ("sign of the slope", "slope", "sign")),
    case(padded, padded_bwd, floats(*QKV, np.int32(3)),
        ("padding seen", "q k v", "mask forgotten"), ("one key too many", "q k v", "mask off by one"),
        ("probabilities not transposed", "v", "transpose forgotten")),
    case(grouped_queries, grouped_queries_bwd, floats((4, 3, 2), (2, 3, 2), (2, 3, 2)),
        ("keys averaged over the group", "k", "factor 1/2"), ("heads interleaved", "v", "wrong reshape"),
        ("first head of each group", "k", "sum over heads forgotten")),
    case(rotary, rotary_bwd, floats((5, 4)),
        ("places from one", "x", "off by one"), ("turned forwards", "x", "not inverted"),
        ("neighbours for halves", "x", "wrong layout"), ("sine forgotten", "x", "term forgotten")),
    case(softcapped, softcapped_bwd, floats((4, 3), (4, 3)),
        ("cap forgotten", "q k", "factor forgotten"), ("output not divided", "q k", "factor of a term"),
        ("cap left in", "q k", "factor 2"), ("not transposed", "k", "transposed")),
    case(group_norm, group_norm_bwd, floats((2, 4, 3), (4,)),
        ("means over all groups", "x", "wrong axis"), ("mean held still", "x", "term forgotten"),
        ("variance held still", "x", "term forgotten"), ("scale summed over the batch alone", "scale", "sum over an axis forgotten")),
    case(weight_norm, weight_norm_bwd, floats((4, 3), (3,)),
        ("projection forgotten", "v", "term forgotten"), ("norm for its square", "v", "factor of a term"),
        ("g forgotten", "v", "factor by column"), ("norm forgotten in g", "g", "factor by column")),
    case(masked_batch_norm, masked_batch_norm_bwd, floats((7, 3), REAL),
        ("count of all rows", "x", "factor of a term"), ("mask forgotten on dy", "x", "mask forgotten"),
        ("mask forgotten on dx", "x", "mask forgotten"), ("statistics held still", "x", "term forgotten")),
    case(unit_rows, unit_rows_bwd, floats((4, 5)),
        ("projection forgotten", "x", "term forgotten"), ("x for y", "x", "factor of a term"),
        ("norm forgotten", "x", "factor by row")),
]  # fmt: skip
