"""Elementwise functions, and gated units made of them."""

import math

import jax
import jax.numpy as jnp

from tests.benchmarks.corpus.operation import Operation, changed, mutant, normal


def relu(x):
    return jnp.maximum(x, 0)


def relu_bwd(args, y, dy):
    return (jnp.where(args[0] > 0, dy, 0),)


def leaky_relu(x):
    return jnp.where(x >= 0, x, 0.1 * x)


def leaky_relu_bwd(args, y, dy):
    return (jnp.where(args[0] >= 0, dy, 0.1 * dy),)


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def sigmoid_bwd(args, y, dy):
    return (dy * y * (1 - y),)


def tanh(x):
    return jnp.tanh(x)


def tanh_bwd(args, y, dy):
    return (dy * (1 - y * y),)


C = math.sqrt(2 / math.pi)


def gelu(x):
    return 0.5 * x * (1 + jnp.tanh(C * (x + 0.044715 * x**3)))


def gelu_bwd(args, y, dy):
    (x,) = args
    t = jnp.tanh(C * (x + 0.044715 * x**3))
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * C * (1 + 3 * 0.044715 * x * x)),)


def gelu_no_cube(args, y, dy):
    (x,) = args
    t = jnp.tanh(C * (x + 0.044715 * x**3))
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * C),)


def gelu_no_inner(args, y, dy):
    (x,) = args
    return (dy * 0.5 * (1 + jnp.tanh(C * (x + 0.044715 * x**3))),)


def silu(x):
    return x * jax.nn.sigmoid(x)


def silu_bwd(args, y, dy):
    (x,) = args
    s = jax.nn.sigmoid(x)
    return (dy * (s + y * (1 - s)),)


def silu_no_product(args, y, dy):
    (x,) = args
    s = jax.nn.sigmoid(x)
    return (dy * x * s * (1 - s),)


def softplus(x):
    return jnp.logaddexp(x, 0.0)


def softplus_bwd(args, y, dy):
    return (dy * jax.nn.sigmoid(args[0]),)


def elu(x):
    return jnp.where(x > 0, x, jnp.expm1(jnp.where(x > 0, 0.0, x)))


def elu_bwd(args, y, dy):
    return (jnp.where(args[0] > 0, dy, dy * (y + 1)),)


def hard_tanh(x):
    return jnp.clip(x, -1, 1)


def hard_tanh_bwd(args, y, dy):
    return (jnp.where(jnp.abs(args[0]) < 1, dy, 0),)


def square_root(x):
    return jnp.sqrt(x)


def square_root_bwd(args, y, dy):
    return (dy / (2 * y),)


def absolute(x):
    return jnp.abs(x)


def absolute_bwd(args, y, dy):
    return (dy * jnp.sign(args[0]),)


def swiglu(x, w, v):
    return jax.nn.silu(x @ w) * (x @ v)


def swiglu_bwd(args, y, dy):
    x, w, v = args
    a, b = x @ w, x @ v
    s = jax.nn.sigmoid(a)
    da, db = dy * b * (s + a * s * (1 - s)), dy * a * s
    return da @ w.T + db @ v.T, x.T @ da, x.T @ db


def swiglu_gate_stale(args, y, dy):
    x, w, v = args
    a, b = x @ w, x @ v
    dx, _, dv = swiglu_bwd(args, y, dy)
    s = jax.nn.sigmoid(a)
    t = jax.nn.sigmoid(a * s)  # at the gate's output
    return dx, x.T @ (dy * b * (t + a * s * t * (1 - t))), dv


def swiglu_one_path(args, y, dy):
    x, w, v = args
    a, b = x @ w, x @ v
    s = jax.nn.sigmoid(a)
    da = dy * b * (s + a * s * (1 - s))
    return da @ w.T, *swiglu_bwd(args, y, dy)[1:]


def glu(x):
    a, b = jnp.split(x, 2, -1)
    return a * jax.nn.sigmoid(b)


def glu_bwd(args, y, dy):
    a, b = jnp.split(args[0], 2, -1)
    s = jax.nn.sigmoid(b)
    return (jnp.concatenate([dy * s, dy * a * s * (1 - s)], -1),)


def glu_swapped(args, y, dy):
    a, b = jnp.split(args[0], 2, -1)
    s = jax.nn.sigmoid(b)
    return (jnp.concatenate([dy * a * s * (1 - s), dy * s], -1),)


def glu_gate_slope_only(args, y, dy):
    a, b = jnp.split(args[0], 2, -1)
    s = jax.nn.sigmoid(b)
    return (jnp.concatenate([dy * s, dy * a * s], -1),)


def positive(*shape):
    return lambda rng: (jnp.asarray(rng.uniform(0.1, 3, shape), jnp.float32),)


def with_zeros(*shape):
    return lambda rng: (jnp.round(jnp.asarray(rng.standard_normal(shape), jnp.float32)),)


def elementwise(name, forward, backward, mutants, kinks=None, inputs=None):
    return Operation(name, forward, backward, inputs or normal((5, 6)), tuple(mutants), (0,), kinks)


bf16 = lambda g: g.astype(jnp.bfloat16).astype(g.dtype)

OPERATIONS = [
    elementwise("relu", relu, relu_bwd, [
        mutant("passes negatives", lambda a, y, dy: (dy,), "x", "region"),
        mutant("mask inverted", lambda a, y, dy: (jnp.where(a[0] > 0, 0, dy),), "x", "unknown", "region"),
        mutant("scaled by x", lambda a, y, dy: (jnp.where(a[0] > 0, dy * a[0], 0),), "x", "factor"),
        mutant("sign", lambda a, y, dy: (jnp.where(a[0] > 0, -dy, 0),), "x", "sign"),
        mutant("rounded to bfloat16", lambda a, y, dy: (bf16(jnp.where(a[0] > 0, dy, 0)),), "x", "precision"),
    ], with_zeros(5, 6)),
    elementwise("leaky relu", leaky_relu, leaky_relu_bwd, [
        mutant("slope forgotten", lambda a, y, dy: (jnp.where(a[0] >= 0, dy, 0),), "x", "region"),
        mutant("slope 0.01", lambda a, y, dy: (jnp.where(a[0] >= 0, dy, 0.01 * dy),), "x", "region"),
        mutant("dead above three", lambda a, y, dy: (jnp.where(a[0] >= 0, jnp.where(a[0] > 1.5, 0, dy), 0.1 * dy),), "x", "region"),
    ], with_zeros(5, 6)),
    elementwise("sigmoid", sigmoid, sigmoid_bwd, [
        mutant("y in the place of y (1 - y)", lambda a, y, dy: (dy * y,), "x", "stale", "factor", "missing term", "one term", "unknown", "factor of a term"),
        mutant("at the output", lambda a, y, dy: (dy * sigmoid(y) * (1 - sigmoid(y)),), "x", "stale"),
        mutant("half", lambda a, y, dy: (0.5 * dy * y * (1 - y),), "x", "factor"),
        mutant("sign", lambda a, y, dy: (-dy * y * (1 - y),), "x", "sign"),
    ]),
    elementwise("tanh", tanh, tanh_bwd, [
        mutant("square forgotten", lambda a, y, dy: (dy * (1 - y),), "x", "unknown", "stale"),
        mutant("x for y", lambda a, y, dy: (dy * (1 - a[0] ** 2),), "x", "stale", "unknown"),
        mutant("at the output", lambda a, y, dy: (dy * (1 - jnp.tanh(y) ** 2),), "x", "stale"),
        mutant("slope one", lambda a, y, dy: (dy,), "x", "stale", "missing term", "missing factor"),
        mutant("ignores the cotangent", lambda a, y, dy: (1 - y * y,), "x", "ignores the cotangent"),
    ]),
    elementwise("gelu", gelu, gelu_bwd, [
        mutant("cube not differentiated", gelu_no_cube, "x", "missing term"),
        mutant("tanh not differentiated", gelu_no_inner, "x", "missing term"),
        mutant("wrong only for large x", lambda a, y, dy: (jnp.where(jnp.abs(a[0]) > 2, 0, gelu_bwd(a, y, dy)[0]),), "x", "region"),
        mutant("at the output", lambda a, y, dy: gelu_bwd((y,), y, dy), "x", "stale"),
    ]),
    elementwise("silu", silu, silu_bwd, [
        mutant("product rule forgotten", lambda a, y, dy: (dy * jax.nn.sigmoid(a[0]),), "x", "missing term"),
        mutant("other term forgotten", silu_no_product, "x", "missing term"),
        mutant("wrong for negatives", lambda a, y, dy: (jnp.where(a[0] > 0, silu_bwd(a, y, dy)[0], 0),), "x", "region"),
        mutant("at the output", lambda a, y, dy: silu_bwd((y,), silu(y), dy), "x", "stale"),
    ]),
    elementwise("softplus", softplus, softplus_bwd, [
        mutant("sigmoid of the output", lambda a, y, dy: (dy * jax.nn.sigmoid(y),), "x", "stale"),
        mutant("sigmoid of minus x", lambda a, y, dy: (dy * jax.nn.sigmoid(-a[0]),), "x", "unknown", "stale", "missing term", "missing factor"),
        mutant("overflows", lambda a, y, dy: (dy * jnp.exp(40 * a[0]) / (jnp.exp(40 * a[0]) + jnp.exp(39 * a[0])),), "x", "NaN"),
    ]),
    elementwise("elu", elu, elu_bwd, [
        mutant("y without the one", lambda a, y, dy: (jnp.where(a[0] > 0, dy, dy * y),), "x", "region"),
        mutant("exp of the output", lambda a, y, dy: (jnp.where(a[0] > 0, dy, dy * jnp.exp(y)),), "x", "region", "stale"),
    ], with_zeros(5, 6)),
    elementwise("hard tanh", hard_tanh, hard_tanh_bwd, [
        mutant("straight through", lambda a, y, dy: (dy,), "x", "region"),
        mutant("only the upper bound", lambda a, y, dy: (jnp.where(a[0] < 1, dy, 0),), "x", "region"),
        mutant("clips the cotangent", lambda a, y, dy: (jnp.clip(hard_tanh_bwd(a, y, dy)[0], -0.5, 0.5),), "x", "not linear"),
    ], with_zeros(5, 6)),
    elementwise("square root", square_root, square_root_bwd, [
        mutant("two forgotten", lambda a, y, dy: (dy / y,), "x", "factor"),
        mutant("x for y", lambda a, y, dy: (dy / (2 * a[0]),), "x", "stale", "factor"),
        mutant("multiplied", lambda a, y, dy: (dy * y / 2,), "x", "factor", "stale"),
    ], None, positive(5, 6)),
    elementwise("absolute value", absolute, absolute_bwd, [
        mutant("sign forgotten", lambda a, y, dy: (dy,), "x", "region"),
        mutant("x for its sign", lambda a, y, dy: (dy * a[0],), "x", "factor", "stale", "unknown"),
        mutant("NaN at zero", lambda a, y, dy: (dy * a[0] / y,), "x", "NaN"),
    ], with_zeros(5, 6)),
    Operation("swiglu", swiglu, swiglu_bwd, normal((4, 5), (5, 3), (5, 3)), (
        mutant("one path of two", swiglu_one_path, "x", "missing term", "overwritten"),
        mutant("gate at its output", swiglu_gate_stale, "w", "stale"),
        mutant("dv divided by the batch", changed(swiglu_bwd, 2, lambda g: g / 4), "v", "factor"),
        mutant("gate and value swapped", lambda a, y, dy: (swiglu_bwd(a, y, dy)[0], *swiglu_bwd(a, y, dy)[:0:-1]), "w v", "swapped"),
    ), (0,)),
    Operation("glu", glu, glu_bwd, normal((4, 6)), (
        mutant("halves swapped", glu_swapped, "x", "unknown", "shifted", "transposed"),
        mutant("slope of the gate forgotten", glu_gate_slope_only, "x", "region", "factor of a term", "stale", "unknown"),
        mutant("gate's gradient zero", lambda a, y, dy: (glu_bwd(a, y, dy)[0].at[:, 3:].set(0),), "x", "missing term", "region"),
    )),
]  # fmt: skip
