"""Whole small models: several layers, shared weights, recurrences."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.benchmarks.corpus.operation import Operation, mutant, normal


def mlp(params, x):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    return h @ params["w2"] + params["b2"]


def mlp_bwd(args, y, dy, *, slope=lambda z, h: 1 - h * h, skip=None):
    params, x = args
    z = x @ params["w1"] + params["b1"]
    h = jnp.tanh(z)
    dh = dy @ params["w2"].T
    dz = dh * slope(z, h)
    grads = {"w1": x.T @ dz, "b1": dz.sum(0), "w2": h.T @ dy, "b2": dy.sum(0)}
    if skip:
        grads[skip] = jnp.zeros_like(grads[skip])
    return grads, dz @ params["w1"].T


def mlp_w2_of_z(args, y, dy):
    params, x = args
    grads, dx = mlp_bwd(args, y, dy)
    return {**grads, "w2": (x @ params["w1"] + params["b1"]).T @ dy}, dx


def mlp_one_percent(args, y, dy):
    grads, dx = mlp_bwd(args, y, dy)
    return {**grads, "b1": 1.01 * grads["b1"]}, dx


def mlp_bias_mean(args, y, dy):
    grads, dx = mlp_bwd(args, y, dy)
    return {**grads, "b1": grads["b1"] / x_rows(args)}, dx


def x_rows(args):
    return args[1].shape[0]


def mlp_low_precision(args, y, dy):
    grads, dx = mlp_bwd(args, y, dy)
    return grads, dx.astype(jnp.bfloat16).astype(dx.dtype)


def mlp_loss(params, x, labels):
    logits = mlp(params, x)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None], 1).sum()


def mlp_loss_bwd(args, y, dy, *, change=lambda d: d):
    params, x, labels = args
    logits = mlp(params, x)
    d = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return *mlp_bwd((params, x), None, dy * change(d)), None


def residual(x, w, v):
    return x + jnp.tanh(x @ w) @ v


def residual_bwd(args, y, dy, skip=1.0, inner=1.0):
    x, w, v = args
    h = jnp.tanh(x @ w)
    dz = (dy @ v.T) * (1 - h * h)
    return skip * dy + inner * dz @ w.T, x.T @ dz, h.T @ dy


def tied(x, w):
    return jnp.tanh(x @ w) @ w.T


def tied_bwd(args, y, dy, first=1.0, second=1.0):
    x, w = args
    h = jnp.tanh(x @ w)
    dz = (dy @ w) * (1 - h * h)
    return dz @ w.T, first * x.T @ dz + second * dy.T @ h


def rnn(x, h, wx, wh, b):
    def step(h, xt):
        h = jnp.tanh(xt @ wx + h @ wh + b)
        return h, h

    return lax.scan(step, h, x)[1]


def rnn_bwd(args, y, dy, *, through_time=True, sum_h=True, stale=False):
    x, h0, wx, wh, b = args
    before = jnp.concatenate([h0[None], y[:-1]])

    def step(carry, inputs):
        dh, dwx, dwh, db = carry
        xt, h, h_before, dyt = inputs
        dz = (dh + dyt) * (1 - h * h)
        h_used = h if stale else h_before
        new = h_used.T @ dz
        dwh = dwh + new if sum_h else new
        back = dz @ wh.T
        return (back if through_time else 0 * back, dwx + xt.T @ dz, dwh, db + dz.sum(0)), dz @ wx.T

    start = (jnp.zeros_like(h0), jnp.zeros_like(wx), jnp.zeros_like(wh), jnp.zeros_like(b))
    (dh, dwx, dwh, db), dx = lax.scan(step, start, (x, y, before, dy), reverse=True)
    return dx, dh, dwx, dwh, db


def gru_cell(x, h, w, u):
    z = jax.nn.sigmoid(x @ w)
    n = jnp.tanh(h @ u)
    return (1 - z) * n + z * h


def gru_cell_bwd(args, y, dy, direct=1.0, gate=1.0):
    x, h, w, u = args
    z, n = jax.nn.sigmoid(x @ w), jnp.tanh(h @ u)
    dz = dy * (gate * h - n) * z * (1 - z)
    dn = dy * (1 - z) * (1 - n * n)
    return dz @ w.T, direct * dy * z + dn @ u.T, x.T @ dz, h.T @ dn


def deep(params, x):
    for w in params:
        x = jax.nn.relu(x @ w)
    return x


def deep_bwd(args, y, dy, *, wrong=-1, change=lambda g, i, o, d: g):
    params, x = args
    inputs, outputs = [], []
    for w in params:
        inputs.append(x)
        x = jax.nn.relu(x @ w)
        outputs.append(x)
    grads = []
    for i in reversed(range(len(params))):
        dy = jnp.where(outputs[i] > 0, dy, 0)
        g = inputs[i].T @ dy
        grads.append(change(g, inputs[i], outputs[i], dy) if i == wrong else g)
        dy = dy @ params[i].T
    return grads[::-1], dy


def language_model(table, w, ids):
    h = jnp.tanh(table[ids] @ w)
    return h @ table.T


def language_model_bwd(args, y, dy, embed=1.0, head=1.0):
    table, w, ids = args
    e = table[ids]
    h = jnp.tanh(e @ w)
    dz = (dy @ table) * (1 - h * h)
    d_table = head * jnp.einsum("tv,td->vd", dy, h)
    return d_table + embed * jnp.zeros_like(table).at[ids].add(dz @ w.T), e.T @ dz, None


def language_model_set(args, y, dy):
    table, w, ids = args
    h = jnp.tanh(table[ids] @ w)
    dz = (dy @ table) * (1 - h * h)
    d_table = jnp.einsum("tv,td->vd", dy, h)
    return d_table.at[ids].set(dz @ w.T), *language_model_bwd(args, y, dy)[1:]


def mlp_inputs(rng):
    shapes = {"w1": (5, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}
    params = {k: jnp.asarray(rng.standard_normal(s) / 2, jnp.float32) for k, s in shapes.items()}
    return params, jnp.asarray(rng.standard_normal((6, 5)), jnp.float32)


def mlp_loss_inputs(rng):
    return *mlp_inputs(rng), jnp.asarray(rng.integers(0, 3, 6), jnp.int32)


def deep_inputs(rng):
    params = [jnp.asarray(rng.standard_normal((6, 6)) / 2, jnp.float32) for _ in range(4)]
    return params, jnp.asarray(rng.standard_normal((5, 6)), jnp.float32)


def language_inputs(rng):
    table, w = normal((9, 4), (4, 4))(rng)
    return table, w, jnp.asarray(np.array([1, 4, 4, 0, 8, 1]), jnp.int32)


OPERATIONS = [
    Operation("two-layer network", mlp, mlp_bwd, mlp_inputs, (
        mutant("slope at the pre-activation", lambda a, y, dy: mlp_bwd(a, y, dy, slope=lambda z, h: 1 - z * z), "params/w1 params/b1 x", "stale", "unknown"),
        mutant("slope forgotten", lambda a, y, dy: mlp_bwd(a, y, dy, slope=lambda z, h: 1.0), "params/w1 params/b1 x", "stale", "missing factor"),
        mutant("second weight's gradient from the pre-activation", mlp_w2_of_z, "params/w2", "stale"),
        mutant("one bias one percent off", mlp_one_percent, "params/b1", "factor"),
        mutant("one bias averaged", mlp_bias_mean, "params/b1", "factor"),
        mutant("one bias without a gradient", lambda a, y, dy: mlp_bwd(a, y, dy, skip="b1"), "params/b1", "zero"),
        mutant("dx rounded to bfloat16", mlp_low_precision, "x", "precision"),
        mutant("slope at the output's tanh", lambda a, y, dy: mlp_bwd(a, y, dy, slope=lambda z, h: 1 - jnp.tanh(h) ** 2), "params/w1 params/b1 x", "stale"),
    ), (1,)),
    Operation("network and loss", mlp_loss, mlp_loss_bwd, mlp_loss_inputs, (
        mutant("averaged", lambda a, y, dy: mlp_loss_bwd(a, y, dy, change=lambda d: d / 6), "params/w1 params/b1 params/w2 params/b2 x", "factor"),
        mutant("last example left out", lambda a, y, dy: mlp_loss_bwd(a, y, dy, change=lambda d: d.at[-1].set(0)), "params/w1 params/b1 params/w2 params/b2 x", "region", "missing term", "unknown"),
        mutant("label's term twice", lambda a, y, dy: mlp_loss_bwd(a, y, dy, change=lambda d: jnp.where(d < 0, d - 1, d)), "params/w1 params/b1 params/w2 params/b2 x", "counted twice"),
    ), (1,)),
    Operation("residual block", residual, residual_bwd, normal((4, 5), (5, 5), (5, 5)), (
        mutant("skip forgotten", lambda a, y, dy: residual_bwd(a, y, dy, 0.0), "x", "missing term"),
        mutant("only the skip", lambda a, y, dy: residual_bwd(a, y, dy, 1.0, 0.0), "x", "missing term", "overwritten"),
        mutant("skip twice", lambda a, y, dy: residual_bwd(a, y, dy, 2.0), "x", "counted twice"),
        mutant("skip halved", lambda a, y, dy: residual_bwd(a, y, dy, 0.5), "x", "factor of a term"),
    )),
    Operation("tied autoencoder", tied, tied_bwd, normal((4, 5), (5, 3)), (
        mutant("only the encoder's use", lambda a, y, dy: tied_bwd(a, y, dy, 1.0, 0.0), "w", "missing term", "overwritten"),
        mutant("only the decoder's use", lambda a, y, dy: tied_bwd(a, y, dy, 0.0, 1.0), "w", "missing term", "overwritten"),
        mutant("averaged over the uses", lambda a, y, dy: tied_bwd(a, y, dy, 0.5, 0.5), "w", "factor"),
        mutant("difference for a sum", lambda a, y, dy: tied_bwd(a, y, dy, 1.0, -1.0), "w", "sign of a term"),
    )),
    Operation("recurrent network", rnn, rnn_bwd, normal((4, 2, 3), (2, 5), (3, 5), (5, 5), (5,)), (
        mutant("not through time", lambda a, y, dy: rnn_bwd(a, y, dy, through_time=False), "x h wx wh b", "zero", "missing term", "one term", "unknown", "stale", "region"),
        mutant("hidden weight overwritten", lambda a, y, dy: rnn_bwd(a, y, dy, sum_h=False), "wh", "overwritten"),
        mutant("state after instead of before", lambda a, y, dy: rnn_bwd(a, y, dy, stale=True), "wh", "stale", "unknown"),
    ), ()),
    Operation("gated cell", gru_cell, gru_cell_bwd, normal((4, 3), (4, 5), (3, 5), (5, 5)), (
        mutant("direct path forgotten", lambda a, y, dy: gru_cell_bwd(a, y, dy, 0.0), "h", "missing term"),
        mutant("gate's second term forgotten", lambda a, y, dy: gru_cell_bwd(a, y, dy, 1.0, 0.0), "x w", "missing term"),
    ), (0,)),
    Operation("four relu layers", deep, deep_bwd, deep_inputs, (
        mutant("third weight with its output", lambda a, y, dy: deep_bwd(a, y, dy, wrong=2, change=lambda g, i, o, d: o.T @ d), "params/2", "stale"),
        mutant("second weight transposed", lambda a, y, dy: deep_bwd(a, y, dy, wrong=1, change=lambda g, i, o, d: g.T), "params/1", "transposed"),
        mutant("first weight half a percent off", lambda a, y, dy: deep_bwd(a, y, dy, wrong=0, change=lambda g, i, o, d: 1.005 * g), "params/0", "factor"),
        mutant("last weight's last row zero", lambda a, y, dy: deep_bwd(a, y, dy, wrong=3, change=lambda g, i, o, d: g.at[-1].set(0)), "params/3", "region"),
    ), (1,)),
    Operation("tied language model", language_model, language_model_bwd, language_inputs, (
        mutant("embedding's use forgotten", lambda a, y, dy: language_model_bwd(a, y, dy, 0.0), "table", "missing term", "overwritten", "region"),
        mutant("head's use forgotten", lambda a, y, dy: language_model_bwd(a, y, dy, 1.0, 0.0), "table", "missing term", "overwritten"),
        mutant("embedding overwrites the head", language_model_set, "table", "overwritten", "region", "unknown"),
    ), ()),
]  # fmt: skip
