"""Products, convolutions, gathers, recurrences in which everything is linear in each argument."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.benchmarks.corpus.operation import Operation, changed, mutant, normal


def dense(x, w, b):
    return x @ w + b


def dense_bwd(args, y, dy):
    x, w, _ = args
    return dy @ w.T, x.T @ dy, dy.sum(0)


def first_row_only(args, y, dy):
    x, w, _ = args
    return dy @ w.T, x.T @ dy, dy[0]


DENSE = [
    mutant("bias averaged, not summed", changed(dense_bwd, 2, lambda g: g / 6), "b", "factor"),
    mutant("dw averaged over the batch", changed(dense_bwd, 1, lambda g: g / 6), "w", "factor"),
    mutant("dx of the wrong sign", changed(dense_bwd, 0, lambda g: -g), "x", "sign"),
    mutant("bias one percent off", changed(dense_bwd, 2, lambda g: 1.01 * g), "b", "factor"),
    mutant("bias zero", changed(dense_bwd, 2, jnp.zeros_like), "b", "zero"),
    mutant("bias of the first row only", first_row_only, "b", "missing term", "one term", "leak", "region", "overwritten", "unknown"),
    mutant("last column of dw zero", changed(dense_bwd, 1, lambda g: g.at[:, -1].set(0)), "w", "region"),
    mutant("dw computed in bfloat16", changed(dense_bwd, 1, lambda g: g.astype(jnp.bfloat16).astype(g.dtype)), "w", "precision"),
    mutant("dx ignores the cotangent's size", changed(dense_bwd, 0, lambda g: g / (1e-6 + jnp.abs(g).max())), "x", "not linear"),
]  # fmt: skip


def square(x, w):
    return x @ w


def square_bwd(args, y, dy):
    x, w = args
    return dy @ w.T, x.T @ dy


SQUARE = [
    mutant("w not transposed", lambda a, y, dy: (dy @ a[1], a[0].T @ dy), "x", "transposed"),
    mutant("x not transposed", lambda a, y, dy: (dy @ a[1].T, a[0] @ dy), "w", "transposed"),
    mutant("dw transposed", lambda a, y, dy: (dy @ a[1].T, dy.T @ a[0]), "w", "transposed"),
    mutant("gradients swapped", lambda a, y, dy: (a[0].T @ dy, dy @ a[1].T), "x w", "swapped"),
]


def batched_matmul(x, w):
    return jnp.einsum("bij,bjk->bik", x, w)


def batched_matmul_bwd(args, y, dy):
    x, w = args
    return jnp.einsum("bik,bjk->bij", dy, w), jnp.einsum("bij,bik->bjk", x, dy)


BATCHED = [
    mutant("dw summed over the batch and given to all", changed(batched_matmul_bwd, 1, lambda g: jnp.broadcast_to(g.sum(0), g.shape)), "w", "wrong axis", "leak"),
    mutant("batch reversed", changed(batched_matmul_bwd, 0, lambda g: g[::-1]), "x", "reversed"),
    mutant("batch shifted", changed(batched_matmul_bwd, 0, lambda g: jnp.roll(g, 1, 0)), "x", "shifted"),
    mutant("one example's gradient wrong", changed(batched_matmul_bwd, 1, lambda g: g.at[-1].multiply(2.0)), "w", "region"),
]  # fmt: skip


def shared_matmul(x, w):
    return jnp.einsum("bij,jk->bik", x, w)


def shared_matmul_bwd(args, y, dy):
    x, w = args
    return jnp.einsum("bik,jk->bij", dy, w), jnp.einsum("bij,bik->jk", x, dy)


SHARED = [
    mutant("dw of the last example only", lambda a, y, dy: (jnp.einsum("bik,jk->bij", dy, a[1]), a[0][-1].T @ dy[-1]), "w", "overwritten", "missing term", "unknown", "leak"),
    mutant("dw divided by the batch", changed(shared_matmul_bwd, 1, lambda g: g / 3), "w", "factor"),
]  # fmt: skip


def embedding(table, ids):
    return table[ids]


def embedding_bwd(args, y, dy):
    table, ids = args
    return jnp.zeros_like(table).at[ids].add(dy), None


EMBEDDING = [
    mutant("repeated indices overwritten", lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].set(dy), None), "table", "overwritten", "region"),
    mutant("averaged over repeats", lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].add(dy) / jnp.maximum(1, jnp.bincount(a[1].ravel(), length=7))[:, None].astype(dy.dtype), None), "table", "region", "overwritten"),
    mutant("shifted by one", lambda a, y, dy: (jnp.roll(jnp.zeros_like(a[0]).at[a[1]].add(dy), 1, 0), None), "table", "shifted"),
    mutant("first row left out, as padding", lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].add(dy).at[0].set(0), None), "table", "region"),
    mutant("scaled by sqrt d", lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].add(dy) * 5**0.5, None), "table", "factor"),
    mutant("maximum in the place of a sum", lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].max(dy), None), "table", "not linear", "region", "unknown"),
]  # fmt: skip


def conv1d(x, w):
    return lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def conv1d_bwd(args, y, dy):
    x, w = args
    k = w.shape[0]
    xp = jnp.pad(x, ((0, 0), (k // 2, k // 2), (0, 0)))
    n = x.shape[1]
    dw = jnp.stack([jnp.einsum("bti,bto->io", xp[:, j : j + n], dy) for j in range(k)])
    dyp = jnp.pad(dy, ((0, 0), (k // 2, k // 2), (0, 0)))
    dx = sum(jnp.einsum("bto,io->bti", dyp[:, j : j + n], w[k - 1 - j]) for j in range(k))
    return dx, dw


def conv1d_unflipped(args, y, dy):
    x, w = args
    return conv1d_bwd((x, w[::-1]), y, dy)[0], conv1d_bwd(args, y, dy)[1]


CONV1D = [
    mutant("kernel not flipped", conv1d_unflipped, "x", "reversed", "one term", "unknown"),
    mutant("border of dx zero", changed(conv1d_bwd, 0, lambda g: g.at[:, 0].set(0).at[:, -1].set(0)), "x", "region"),
    mutant("dw without its last tap", changed(conv1d_bwd, 1, lambda g: g.at[-1].set(0)), "w", "region"),
    mutant("dw reversed", changed(conv1d_bwd, 1, lambda g: g[::-1]), "w", "reversed"),
    mutant("dx shifted by one", changed(conv1d_bwd, 0, lambda g: jnp.roll(g, 1, 1)), "x", "shifted"),
    mutant("dw averaged over positions", changed(conv1d_bwd, 1, lambda g: g / 8), "w", "factor"),
]  # fmt: skip


def conv2d(x, w, b):
    y = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + b


def conv2d_bwd(args, y, dy):
    x, w, _ = args
    kh, kw = w.shape[:2]
    h, v = dy.shape[1:3]
    dw = jnp.stack(
        [
            jnp.stack(
                [jnp.einsum("bhwi,bhwo->io", x[:, i : i + h, j : j + v], dy) for j in range(kw)]
            )
            for i in range(kh)
        ]
    )
    dx = jnp.zeros_like(x)
    for i in range(kh):
        for j in range(kw):
            dx = dx.at[:, i : i + h, j : j + v].add(jnp.einsum("bhwo,io->bhwi", dy, w[i, j]))
    return dx, dw, dy.sum((0, 1, 2))


CONV2D = [
    mutant("bias not summed over examples but averaged", changed(conv2d_bwd, 2, lambda g: g / 2), "b", "factor"),
    mutant("kernel axes swapped in dw", changed(conv2d_bwd, 1, lambda g: g.transpose(1, 0, 2, 3)), "w", "transposed"),
    mutant("last row of dx left out", changed(conv2d_bwd, 0, lambda g: g.at[:, -1].set(0)), "x", "region"),
    mutant("dx overwritten where windows overlap", lambda a, y, dy: (jnp.zeros_like(a[0]).at[:, 1 : 1 + dy.shape[1], 1 : 1 + dy.shape[2]].set(jnp.einsum("bhwo,io->bhwi", dy, a[1][1, 1])), *conv2d_bwd(a, y, dy)[1:]), "x", "overwritten", "missing term", "unknown"),
]  # fmt: skip


def outer(x, z):
    return jnp.einsum("bi,bj->bij", x, z)


def outer_bwd(args, y, dy):
    x, z = args
    return jnp.einsum("bij,bj->bi", dy, z), jnp.einsum("bij,bi->bj", dy, x)


OUTER = [
    mutant("z summed over the wrong axis", lambda a, y, dy: (jnp.einsum("bji,bj->bi", dy, a[1]), jnp.einsum("bij,bi->bj", dy, a[0])), "x", "wrong axis", "transposed"),
    mutant("leaks over the batch", lambda a, y, dy: (jnp.einsum("bij,cj->bi", dy, a[1]), jnp.einsum("bij,bi->bj", dy, a[0])), "x", "leak", "unknown", "wrong axis"),
    mutant("dz twice", changed(outer_bwd, 1, lambda g: 2 * g), "z", "factor"),
]  # fmt: skip


def linear_scan(a, x):
    return lax.scan(lambda h, ax: (ax[0] * h + ax[1],) * 2, jnp.zeros_like(x[0]), (a, x))[1]


def linear_scan_bwd(args, y, dy):
    a, _ = args
    later = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    dx = lax.scan(
        lambda g, ad: (ad[0] * g + ad[1],) * 2, jnp.zeros_like(dy[0]), (later, dy), reverse=True
    )[1]
    before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
    return dx * before, dx


def linear_scan_off_by_one(args, y, dy):
    a, _ = args
    dx = lax.scan(
        lambda g, ad: (ad[0] * g + ad[1],) * 2, jnp.zeros_like(dy[0]), (a, dy), reverse=True
    )[1]
    before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
    return linear_scan_bwd(args, y, dy)[0], dx * (1 + 0 * before)


SCAN = [
    mutant("decay of the wrong step", linear_scan_off_by_one, "x", "shifted", "stale"),
    mutant("state after instead of before", lambda a, y, dy: (linear_scan_bwd(a, y, dy)[1] * y, linear_scan_bwd(a, y, dy)[1]), "a", "stale", "unknown"),
    mutant("no recurrence in backward", lambda a, y, dy: (linear_scan_bwd(a, y, dy)[0], dy), "x", "missing term", "stale", "unknown", "one term"),
    mutant("runs forward in time", lambda a, y, dy: (linear_scan_bwd(a, y, dy)[0], linear_scan_bwd(a, y, dy)[1][::-1]), "x", "reversed"),
    mutant("first step's da nonzero", changed(linear_scan_bwd, 0, lambda g: g.at[0].set(1.0)), "a", "region", "not linear", "NaN"),
]  # fmt: skip


def cumsum(x):
    return jnp.cumsum(x, 1)


def cumsum_bwd(args, y, dy):
    return (jnp.cumsum(dy[:, ::-1], 1)[:, ::-1],)


CUMSUM = [
    mutant("not reversed", lambda a, y, dy: (jnp.cumsum(dy, 1),), "x", "reversed", "wrong axis", "leak", "unknown"),
    mutant("exclusive", lambda a, y, dy: (cumsum_bwd(a, y, dy)[0] - dy,), "x", "shifted", "missing term", "unknown"),
]  # fmt: skip


def ids_and_table(rng):
    table = jnp.asarray(rng.standard_normal((7, 5)), jnp.float32)
    return table, jnp.asarray([[1, 0, 3], [3, 3, 6]], jnp.int32)


OPERATIONS = [
    Operation("dense", dense, dense_bwd, normal((6, 5), (5, 4), (4,)), tuple(DENSE), (0, 1)),
    Operation("square matmul", square, square_bwd, normal((4, 4), (4, 4)), tuple(SQUARE), (0, 1)),
    Operation("batched matmul", batched_matmul, batched_matmul_bwd, normal((3, 4, 5), (3, 5, 2)), tuple(BATCHED), (0, 1)),
    Operation("shared matmul", shared_matmul, shared_matmul_bwd, normal((3, 4, 5), (5, 2)), tuple(SHARED), (0, 1)),
    Operation("embedding", embedding, embedding_bwd, ids_and_table, tuple(EMBEDDING)),
    Operation("conv1d", conv1d, conv1d_bwd, normal((2, 8, 3), (3, 3, 4)), tuple(CONV1D), (0, 1)),
    Operation("conv2d", conv2d, conv2d_bwd, normal((2, 6, 5, 2), (3, 3, 2, 3), (3,)), tuple(CONV2D), (0, 1)),
    Operation("outer product", outer, outer_bwd, normal((4, 5), (4, 5)), tuple(OUTER), (0, 1)),
    Operation("linear recurrence", linear_scan, linear_scan_bwd, lambda rng: (jnp.asarray(rng.uniform(0.2, 0.9, (6, 3)), jnp.float32), jnp.asarray(rng.standard_normal((6, 3)), jnp.float32)), tuple(SCAN), (1,)),
    Operation("cumulative sum", cumsum, cumsum_bwd, normal((3, 6)), tuple(CUMSUM)),
]  # fmt: skip

_ = jax
