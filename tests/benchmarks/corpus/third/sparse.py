"""Sparse matrices, segments, gathers and scatters whose indices repeat."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from tests.benchmarks.corpus.third.case import case, floats

ROWS = np.array([[0, 1], [0, 3], [1, 1], [2, 0], [3, 3], [3, 2], [1, 3]], np.int32)
IDS = np.array([0, 0, 1, 3, 3, 3, 1, 0], np.int32)


def bcoo_matmul(data, indices, x):
    return sparse.BCOO((data, indices), shape=(4, 4)) @ x


def bcoo_matmul_bwd(wrong, args, y, dy):
    data, indices, x = args
    rows, cols = indices[:, 0], indices[:, 1]
    ddata = (dy[rows] * x[cols]).sum(-1)
    sent = data[:, None] * dy[rows]
    dx = jnp.zeros_like(x).at[cols].add(sent)
    if wrong == "rows for columns in ddata":
        ddata = (dy[cols] * x[rows]).sum(-1)
    if wrong == "ddata averaged over features":
        ddata = ddata / x.shape[-1]
    if wrong == "set, not added":
        dx = jnp.zeros_like(x).at[cols].set(sent)
    if wrong == "not transposed":
        dx = jnp.zeros_like(x).at[rows].add(data[:, None] * dy[cols])
    if wrong == "ones for the data":
        dx = jnp.zeros_like(x).at[cols].add(dy[rows])
    return ddata, None, dx


def segment_sum(x, ids):
    return jax.ops.segment_sum(x, ids, 4)


def segment_sum_bwd(wrong, args, y, dy):
    x, ids = args
    if wrong == "ids off by one":
        return dy[ids - 1], None
    if wrong == "divided by the count":
        return dy[ids] / jnp.bincount(ids, length=4)[ids][:, None], None
    if wrong == "first segment forgotten":
        return dy[ids] * (ids > 0)[:, None], None
    return dy[ids], None


def segment_mean(x, ids):
    total = jax.ops.segment_sum(x, ids, 4)
    return total / jnp.maximum(jnp.bincount(ids, length=4), 1)[:, None]


def segment_mean_bwd(wrong, args, y, dy):
    x, ids = args
    count = jnp.maximum(jnp.bincount(ids, length=4), 1)[:, None]
    if wrong == "count forgotten":
        return dy[ids], None
    if wrong == "counts not gathered":
        return dy[ids] / count[jnp.arange(8) // 2], None
    if wrong == "divided by all rows":
        return dy[ids] / x.shape[0], None
    if wrong == "count less one":
        return dy[ids] / jnp.maximum(count - 1, 1)[ids], None
    return (dy / count)[ids], None


def segment_max(x, ids):
    return jax.ops.segment_max(x, ids, 3)


def segment_max_bwd(wrong, args, y, dy):
    x, ids = args
    best = x == y[ids]
    if wrong == "to all of the segment":
        return dy[ids], None
    if wrong == "to the least":
        return jnp.where(x == jax.ops.segment_min(x, ids, 3)[ids], dy[ids], 0), None
    if wrong == "to the last of the segment":
        last = jnp.arange(len(ids)) == jax.ops.segment_max(jnp.arange(len(ids)), ids, 3)[ids]
        return jnp.where(last[:, None], dy[ids], 0), None
    ties = jax.ops.segment_sum(best.astype(x.dtype), ids, 3)
    return jnp.where(best, (dy / jnp.maximum(ties, 1))[ids], 0), None


def gather_rows(table, ids):
    return table[ids]


def gather_rows_bwd(wrong, args, y, dy):
    table, ids = args
    zero = jnp.zeros_like(table)
    if wrong == "duplicates overwritten":
        return zero.at[ids].set(dy), None
    if wrong == "row 0 taken for padding":
        return zero.at[ids].add(dy).at[0].set(0), None
    if wrong == "divided by the frequency":
        return zero.at[ids].add(dy) / jnp.maximum(jnp.bincount(ids, length=5), 1)[:, None], None
    if wrong == "ids off by one":
        return zero.at[ids + 1].add(dy), None
    return zero.at[ids].add(dy), None


def scatter_add(x, ids, updates):
    return x.at[ids].add(updates)


def scatter_add_bwd(wrong, args, y, dy):
    x, ids, updates = args
    if wrong == "dx zero where added":
        return dy.at[ids].set(0), None, dy[ids]
    if wrong == "updates in their own order":
        return dy, None, dy[: len(ids)]
    if wrong == "updates negative":
        return dy, None, -dy[ids]
    return dy, None, dy[ids]


def scatter_set(x, ids, updates):
    return x.at[ids].set(updates, unique_indices=True)


def scatter_set_bwd(wrong, args, y, dy):
    x, ids, updates = args
    if wrong == "overwritten places kept":
        return dy, None, dy[ids]
    if wrong == "updates forgotten":
        return dy.at[ids].set(0), None, jnp.zeros_like(updates)
    if wrong == "one place too few cleared":
        return dy.at[ids[:-1]].set(0), None, dy[ids]
    return dy.at[ids].set(0), None, dy[ids]


def graph_convolution(x, senders, receivers):
    degree = 1 + jnp.bincount(receivers, length=5)
    scale = (1 / jnp.sqrt(degree.astype(x.dtype)))[:, None]
    return scale * jax.ops.segment_sum((scale * x)[senders], receivers, 5)


def graph_convolution_bwd(wrong, args, y, dy):
    x, senders, receivers = args
    degree = 1 + jnp.bincount(receivers, length=5)
    if wrong == "degrees without the loop":
        degree = jnp.maximum(degree - 1, 1)
    if wrong == "degrees of the senders":
        degree = 1 + jnp.bincount(senders, length=5)
    scale = (1 / jnp.sqrt(degree.astype(dy.dtype)))[:, None]
    back = jax.ops.segment_sum((scale * dy)[receivers], senders, 5)
    if wrong == "edges not turned round":
        back = jax.ops.segment_sum((scale * dy)[senders], receivers, 5)
    if wrong == "normalised on one side":
        return back, None, None
    return scale * back, None, None


def embedding_bag(table, ids, weights):
    return (weights[..., None] * table[ids]).sum(1)


def embedding_bag_bwd(wrong, args, y, dy):
    table, ids, weights = args
    sent = weights[..., None] * dy[:, None]
    dtable = jnp.zeros_like(table).at[ids].add(sent)
    dweights = (table[ids] * dy[:, None]).sum(-1)
    if wrong == "weights forgotten":
        dtable = jnp.zeros_like(table).at[ids].add(jnp.broadcast_to(dy[:, None], sent.shape))
    if wrong == "duplicates overwritten":
        dtable = jnp.zeros_like(table).at[ids].set(sent)
    if wrong == "weights by the pooled row":
        dweights = jnp.broadcast_to((y * dy).sum(-1, keepdims=True), weights.shape)
    if wrong == "weights' bags in the wrong order":
        dweights = (table[ids] * dy[::-1, None]).sum(-1)
    return dtable, None, dweights


EDGES = np.array([0, 1, 2, 3, 0, 2], np.int32), np.array([1, 2, 0, 4, 4, 4], np.int32)
BAGS = np.array([[0, 2, 2], [4, 1, 0]], np.int32)

CASES = [
    case(bcoo_matmul, bcoo_matmul_bwd, floats((7,), ROWS, (4, 3)),
        ("rows for columns in ddata", "data", "indices swapped"),
        ("ddata averaged over features", "data", "factor"),
        ("set, not added", "x", "duplicates overwritten"),
        ("not transposed", "x", "transpose forgotten"),
        ("ones for the data", "x", "factor forgotten")),
    case(segment_sum, segment_sum_bwd, floats((8, 2), IDS),
        ("ids off by one", "x", "off by one"), ("divided by the count", "x", "factor by segment"),
        ("first segment forgotten", "x", "part is zero")),
    case(segment_mean, segment_mean_bwd, floats((8, 2), IDS),
        ("count forgotten", "x", "factor by segment"), ("counts not gathered", "x", "wrong index"),
        ("divided by all rows", "x", "factor by segment"), ("count less one", "x", "off by one")),
    case(segment_max, segment_max_bwd, floats((8, 2), np.array([0, 0, 1, 2, 2, 2, 1, 0], np.int32)),
        ("to all of the segment", "x", "mask forgotten"), ("to the least", "x", "wrong mask"),
        ("to the last of the segment", "x", "wrong mask")),
    case(gather_rows, gather_rows_bwd, floats((5, 3), np.array([1, 0, 3, 1, 1, 3], np.int32)),
        ("duplicates overwritten", "table", "duplicates overwritten"),
        ("row 0 taken for padding", "table", "part is zero"),
        ("divided by the frequency", "table", "factor by row"), ("ids off by one", "table", "off by one")),
    case(scatter_add, scatter_add_bwd, floats((6, 2), np.array([4, 1, 4], np.int32), (3, 2)),
        ("dx zero where added", "x", "part is zero"), ("updates in their own order", "updates", "wrong index"),
        ("updates negative", "updates", "sign")),
    case(scatter_set, scatter_set_bwd, floats((6, 2), np.array([4, 1, 5], np.int32), (3, 2)),
        ("overwritten places kept", "x", "mask forgotten"), ("updates forgotten", "updates", "zero"),
        ("one place too few cleared", "x", "off by one")),
    case(graph_convolution, graph_convolution_bwd, floats((5, 3), *EDGES),
        ("degrees without the loop", "x", "factor by row"), ("degrees of the senders", "x", "factor by row"),
        ("edges not turned round", "x", "transpose forgotten"), ("normalised on one side", "x", "factor by row")),
    case(embedding_bag, embedding_bag_bwd, floats((5, 4), BAGS, (2, 3)),
        ("weights forgotten", "table", "factor forgotten"), ("duplicates overwritten", "table", "duplicates overwritten"),
        ("weights by the pooled row", "weights", "wrong term"), ("weights' bags in the wrong order", "weights", "order")),
]  # fmt: skip
