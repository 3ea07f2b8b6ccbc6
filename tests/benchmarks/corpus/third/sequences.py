"""Recurrences in scans and loops, losses with ignored labels, dropout with keys."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.third.case import case, floats


def linear_recurrence(decay, x):
    """H_t = decay_t h_{t-1} + x_t."""

    def step(h, now):
        a, v = now
        h = a * h + v
        return h, h

    return jax.lax.scan(step, jnp.zeros(x.shape[1:], x.dtype), (decay, x))[1]


def linear_recurrence_bwd(wrong, args, y, dy):
    decay, x = args
    later = jnp.concatenate([decay[1:], jnp.zeros_like(decay[:1])])
    if wrong == "decay not shifted":
        later = decay

    def step(g, now):
        a, d = now
        g = d + a * g
        return g, g

    reverse = wrong != "forwards in time"
    dx = jax.lax.scan(step, jnp.zeros_like(x[0]), (later, dy), reverse=reverse)[1]
    before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
    if wrong == "state after for state before":
        before = y
    if wrong == "carried gradient forgotten in decay":
        return dy * before, dx
    return dx * before, dx


def elman(x, w, u):
    """The last state of h = tanh(x_t w + h u)."""

    def step(h, v):
        return jnp.tanh(v @ w + h @ u), None

    return jax.lax.scan(step, jnp.zeros(u.shape[0], x.dtype), x)[0]


def elman_bwd(wrong, args, y, dy):
    x, w, u = args

    def forward(h, v):
        after = jnp.tanh(v @ w + h @ u)
        return after, (h, after)

    _, (before, after) = jax.lax.scan(forward, jnp.zeros(u.shape[0], x.dtype), x)

    def step(carry, now):
        dh, dw, du = carry
        v, h, g = now
        d = dh * (1 - g * g)
        if wrong == "slope of the state before":
            d = dh * (1 - h * h)
        du_now = jnp.outer(g if wrong == "state after for du" else h, d)
        back = d @ (u if wrong == "u not transposed" else u.T)
        du_new = du_now if wrong == "du of the first step alone" else du + du_now
        return (back, dw + jnp.outer(v, d), du_new), d @ w.T

    start = dy, jnp.zeros_like(w), jnp.zeros_like(u)
    (_, dw, du), dx = jax.lax.scan(step, start, (x, before, after), reverse=True)
    return dx, dw, du


def power_iteration(a, v):
    """Ten rounds in a while loop."""

    def step(state):
        n, v = state
        v = a @ v
        return n + 1, v / jnp.sqrt(v @ v)

    return jax.lax.while_loop(lambda s: s[0] < 10, step, (0, v))[1]


def power_iteration_bwd(wrong, args, y, dy):
    a, v = args

    def forward(v, _):
        z = a @ v
        return z / jnp.sqrt(z @ z), (v, z)

    rounds = 10
    _, (before, raw) = jax.lax.scan(forward, v, None, length=rounds)

    def step(carry, now):
        d, da = carry
        v, z = now
        r = 1 / jnp.sqrt(z @ z)
        n = z * r
        if wrong == "norm held still":
            g = d * r
        else:
            g = r * (d - n * (n @ d))
        return (g @ (a.T if wrong == "not transposed" else a), da + jnp.outer(g, v)), None

    if wrong == "one round too few":
        before, raw = before[1:], raw[1:]
    (dv, da), _ = jax.lax.scan(step, (dy, jnp.zeros_like(a)), (before, raw), reverse=True)
    return da, dv


def exponential_average(x, rate):
    def step(m, v):
        m = rate * m + (1 - rate) * v
        return m, m

    return jax.lax.scan(step, jnp.zeros_like(x[0]), x)[1]


def exponential_average_bwd(wrong, args, y, dy):
    x, rate = args

    def step(g, d):
        g = d + rate * g
        return g, g

    total = jax.lax.scan(step, jnp.zeros_like(x[0]), dy, reverse=True)[1]
    before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
    dx, drate = (1 - rate) * total, (total * (before - x)).sum()
    if wrong == "share of the new forgotten":
        dx = total
    if wrong == "shares swapped":
        dx = rate * total
    if wrong == "x's term forgotten in rate":
        drate = (total * before).sum()
    if wrong == "state after in rate":
        drate = (total * (y - x)).sum()
    return dx, drate


def state_space(x, a, b, c):
    """Y_t = c . h_t, h_t = a h_{t-1} + b x_t, for a sequence of numbers."""

    def step(h, v):
        h = a * h + b * v
        return h, c @ h

    return jax.lax.scan(step, jnp.zeros_like(a), x)[1]


def state_space_bwd(wrong, args, y, dy):
    x, a, b, c = args

    def forward(h, v):
        after = a * h + b * v
        return after, (h, after)

    _, (before, after) = jax.lax.scan(forward, jnp.zeros_like(a), x)

    def step(g, d):
        g = g * a + c * d
        return g, g

    g = jax.lax.scan(step, jnp.zeros_like(a), dy, reverse=True)[1]
    dx, da, db, dc = g @ b, (g * before).sum(0), x @ g, dy @ after
    if wrong == "c of the state before":
        dc = dy @ before
    if wrong == "a of the state after":
        da = (g * after).sum(0)
    if wrong == "x directly alone":
        dx = dy * (b @ c)
    if wrong == "b without the past":
        db = x @ (dy[:, None] * c)
    return dx, da, db, dc


def gru_step(h, z, r, n):
    """One step of gates: (1 - sigmoid(z)) tanh(n + sigmoid(r) h) + sigmoid(z) h."""
    gate = jax.nn.sigmoid(z)
    return (1 - gate) * jnp.tanh(n + jax.nn.sigmoid(r) * h) + gate * h


def gru_step_bwd(wrong, args, y, dy):
    h, z, r, n = args
    gate, reset = jax.nn.sigmoid(z), jax.nn.sigmoid(r)
    new = jnp.tanh(n + reset * h)
    dn = dy * (1 - gate) * (1 - new**2)
    dh = dn * reset + dy * gate
    dz = dy * (h - new) * gate * (1 - gate)
    dr = dn * h * reset * (1 - reset)
    if wrong == "through the candidate forgotten":
        dh = dy * gate
    if wrong == "sign of the update gate":
        dz = -dz
    if wrong == "slope of sigmoid forgotten":
        dr = dn * h
    if wrong == "gate for its complement":
        dn = dy * gate * (1 - new**2)
    return dh, dz, dr, dn


LABELS = np.array([2, -100, 0, 4, -100, 1], np.int32)


def cross_entropy(logits, labels):
    """Mean over labels that are not -100."""
    valid = labels >= 0
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(valid, labels, 0)[:, None], 1)
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
    case(linear_recurrence, linear_recurrence_bwd, floats((6, 2), (6, 2)),
        ("decay not shifted", "decay x", "off by one in time"), ("forwards in time", "decay x", "order of time"),
        ("state after for state before", "decay", "off by one in time"),
        ("carried gradient forgotten in decay", "decay", "term forgotten")),
    case(elman, elman_bwd, floats((5, 3), (3, 4), (4, 4)),
        ("slope of the state before", "x w u", "off by one in time"), ("state after for du", "u", "off by one in time"),
        ("u not transposed", "x w u", "transpose forgotten"), ("du of the first step alone", "u", "sum over time forgotten")),
    case(power_iteration, power_iteration_bwd, floats((3, 3), (3,)),
        ("norm held still", "a v", "term forgotten"), ("not transposed", "a v", "transposed"),
        ("one round too few", "a v", "off by one in time")),
    case(exponential_average, exponential_average_bwd, lambda rng: (*floats((6, 2))(rng), jnp.float32(0.8)),
        ("share of the new forgotten", "x", "factor"), ("shares swapped", "x", "factor"),
        ("x's term forgotten in rate", "rate", "term forgotten"), ("state after in rate", "rate", "off by one in time")),
    case(state_space, state_space_bwd, lambda rng: tuple(0.6 * a for a in floats((6,), (3,), (3,), (3,))(rng)),
        ("c of the state before", "c", "off by one in time"), ("a of the state after", "a", "off by one in time"),
        ("x directly alone", "x", "past forgotten"), ("b without the past", "b", "past forgotten")),
    case(gru_step, gru_step_bwd, floats((5,), (5,), (5,), (5,)),
        ("through the candidate forgotten", "h", "term forgotten"), ("sign of the update gate", "z", "sign"),
        ("slope of sigmoid forgotten", "r", "factor forgotten"), ("gate for its complement", "n", "wrong factor")),
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
