"""Recurrences in scans and loops."""

import jax
import jax.numpy as jnp

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
]  # fmt: skip
