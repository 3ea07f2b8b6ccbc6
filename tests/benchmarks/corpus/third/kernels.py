"""Pallas kernels, interpreted, and hijax primitives."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from tests.benchmarks.corpus.third.case import case, floats, hijax


def kernel_of(body):
    """A kernel over whole arrays, whose output is of the first argument's shape."""

    def call(*args):
        out = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
        return pl.pallas_call(body, out_shape=out, interpret=True)(*args)

    return call


def rms_norm_kernel(x, scale):
    def body(x_ref, scale_ref, y_ref):
        v = x_ref[...]
        y_ref[...] = v * jax.lax.rsqrt((v * v).mean(-1, keepdims=True) + 1e-6) * scale_ref[...]

    return kernel_of(body)(x, scale)


def rms_norm_kernel_bwd(wrong, args, y, dy):
    x, scale = args
    r = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    g = dy * scale
    inner = (g * x).mean(-1, keepdims=True)
    if wrong == "sum for the mean":
        inner = inner * x.shape[-1]
    if wrong == "scale forgotten in the mean":
        inner = (dy * x).mean(-1, keepdims=True)
    dx = r * g - x * r**3 * inner
    if wrong == "second term forgotten":
        dx = r * g
    dscale = (dy * x * r).sum(0)
    if wrong == "scale of the last block":
        dscale = (dy * x * r)[-2:].sum(0)
    return dx, dscale


def matmul_kernel(x, w):
    """Blocks of two rows by two columns."""

    def body(x_ref, w_ref, y_ref):
        y_ref[...] = jnp.dot(x_ref[...], w_ref[...])

    (m, k), n = x.shape, w.shape[1]
    return pl.pallas_call(
        body,
        grid=(m // 2, n // 2),
        in_specs=[
            pl.BlockSpec((2, k), lambda i, j: (i, 0)),
            pl.BlockSpec((k, 2), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((2, 2), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((m, n), x.dtype),
        interpret=True,
    )(x, w)


def matmul_kernel_bwd(wrong, args, y, dy):
    x, w = args
    dx, dw = dy @ w.T, x.T @ dy
    if wrong == "first block of columns only":
        dx = dy[:, :2] @ w[:, :2].T
    if wrong == "last block of rows overwrites":
        dw = x[-2:].T @ dy[-2:]
    if wrong == "blocks in the wrong order":
        dw = jnp.roll(dw, 2, 1)
    if wrong == "weights not transposed":
        dx = dy @ w
    return dx, dw


def softmax_kernel(x):
    def body(x_ref, y_ref):
        e = jnp.exp(x_ref[...] - x_ref[...].max(-1, keepdims=True))
        y_ref[...] = e / e.sum(-1, keepdims=True)

    return kernel_of(body)(x)


def softmax_kernel_bwd(wrong, args, y, dy):
    def body(sign, y_ref, dy_ref, dx_ref):
        p, d = y_ref[...], dy_ref[...]
        axis = 0 if wrong == "over the rows" else -1
        dx_ref[...] = p * (d - sign * (p * d).sum(axis, keepdims=True))

    sign = {"sum forgotten": 0.0, "sum added": -1.0}.get(wrong, 1.0)
    dx = kernel_of(functools.partial(body, sign))(y, dy)
    if wrong == "temperature of two":
        dx = dx / 2
    return (dx,)


def fused_gate_kernel(x, gate):
    def body(x_ref, gate_ref, y_ref):
        g = gate_ref[...]
        y_ref[...] = x_ref[...] * g / (1 + jnp.exp(-g))

    return kernel_of(body)(x, gate)


def fused_gate_kernel_bwd(wrong, args, y, dy):
    x, gate = args
    s = jax.nn.sigmoid(gate)
    dgate = dy * x * (s + gate * s * (1 - s))
    if wrong == "second term forgotten":
        dgate = dy * x * s
    if wrong == "x forgotten":
        dgate = dy * (s + gate * s * (1 - s))
    dx = dy * gate * s
    if wrong == "gate not squashed":
        dx = dy * gate
    if wrong == "sigmoid for silu":
        dx = dy * s
    return dx, dgate


def hijax_softplus(x, beta):
    return jax.nn.softplus(beta * x) / beta


def hijax_softplus_bwd(wrong, args, y, dy):
    x, beta = args
    s = jax.nn.sigmoid(beta * x)
    dx = dy * s
    dbeta = (dy * (x * s - y) / beta).sum()
    if wrong == "beta left in":
        dx = dx * beta
    if wrong == "y forgotten in beta":
        dbeta = (dy * x * s / beta).sum()
    if wrong == "beta averaged":
        dbeta = dbeta / x.size
    if wrong == "beta not in the sigmoid":
        dx = dy * jax.nn.sigmoid(x)
    return dx, dbeta


def hijax_bilinear(x, w, z):
    return jnp.einsum("bi,kij,bj->bk", x, w, z)


def hijax_bilinear_bwd(wrong, args, y, dy):
    x, w, z = args
    dx = jnp.einsum("bk,kij,bj->bi", dy, w, z)
    dw = jnp.einsum("bk,bi,bj->kij", dy, x, z)
    dz = jnp.einsum("bk,kij,bi->bj", dy, w, x)
    if wrong == "w's faces transposed for x":
        dx = jnp.einsum("bk,kji,bj->bi", dy, w, z)
    if wrong == "dw's faces transposed":
        dw = dw.transpose(0, 2, 1)
    if wrong == "x's gradient for z's":
        dz = dx
    if wrong == "dw averaged":
        dw = dw / x.shape[0]
    return dx, dw, dz


def hijax_cross(a, b):
    return jnp.cross(a, b)


def hijax_cross_bwd(wrong, args, y, dy):
    a, b = args
    da, db = jnp.cross(b, dy), jnp.cross(dy, a)
    if wrong == "sign of a":
        da = -da
    if wrong == "b's order":
        db = jnp.cross(a, dy)
    if wrong == "a's own for b's":
        db = jnp.cross(dy, b)
    return da, db


CASES = [
    case(rms_norm_kernel, rms_norm_kernel_bwd, floats((4, 5), (5,)),
        ("sum for the mean", "x", "factor of a term"), ("scale forgotten in the mean", "x", "factor forgotten in a term"),
        ("second term forgotten", "x", "term forgotten"), ("scale of the last block", "scale", "sum over blocks")),
    case(matmul_kernel, matmul_kernel_bwd, floats((4, 4), (4, 4)),
        ("first block of columns only", "x", "sum over blocks"), ("last block of rows overwrites", "w", "sum over blocks"),
        ("blocks in the wrong order", "w", "wrong index"), ("weights not transposed", "x", "transpose forgotten")),
    case(softmax_kernel, softmax_kernel_bwd, floats((4, 5)),
        ("over the rows", "x", "wrong axis"), ("sum forgotten", "x", "term forgotten"),
        ("sum added", "x", "sign of a term"), ("temperature of two", "x", "factor 1/2")),
    case(fused_gate_kernel, fused_gate_kernel_bwd, floats((3, 5), (3, 5)),
        ("second term forgotten", "gate", "term forgotten"), ("x forgotten", "gate", "factor forgotten"),
        ("gate not squashed", "x", "factor forgotten"), ("sigmoid for silu", "x", "factor forgotten")),
    case(hijax_softplus, hijax_softplus_bwd, lambda rng: (*floats((6,))(rng), jnp.float32(1.7)),
        ("beta left in", "x", "extra factor"), ("y forgotten in beta", "beta", "term forgotten"),
        ("beta averaged", "beta", "factor 1/n"), ("beta not in the sigmoid", "x", "factor inside"), rule=hijax),
    case(hijax_bilinear, hijax_bilinear_bwd, floats((3, 4), (2, 4, 4), (3, 4)),
        ("w's faces transposed for x", "x", "transposed"), ("dw's faces transposed", "w", "transposed"),
        ("x's gradient for z's", "z", "another's gradient"), ("dw averaged", "w", "factor 1/batch"), rule=hijax),
    case(hijax_cross, hijax_cross_bwd, floats((3, 3), (3, 3)),
        ("sign of a", "a", "sign"), ("b's order", "b", "sign"), ("a's own for b's", "b", "wrong value"), rule=hijax),
]  # fmt: skip
