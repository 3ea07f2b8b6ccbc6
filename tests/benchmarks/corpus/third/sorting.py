"""Sorts, largest k, medians, quantiles and running extremes."""

import jax
import jax.numpy as jnp

from tests.benchmarks.corpus.third.case import case, floats


def sort_rows(x):
    return jnp.sort(x, -1)


def sort_rows_bwd(wrong, args, y, dy):
    (x,) = args
    order = jnp.argsort(x, -1)
    if wrong == "gathered by the order":
        return (jnp.take_along_axis(dy, order, -1),)
    if wrong == "not put back":
        return (dy,)
    if wrong == "order of falling values":
        order = order[:, ::-1]
    if wrong == "order of the first row":
        order = jnp.broadcast_to(order[:1], order.shape)
    return (jnp.put_along_axis(jnp.zeros_like(x), order, dy, -1, inplace=False),)


def top_three(x):
    return jax.lax.top_k(x, 3)[0]


def top_three_bwd(wrong, args, y, dy):
    (x,) = args
    at = jax.lax.top_k(x, 3)[1]
    if wrong == "third forgotten":
        at, dy = at[:, :2], dy[:, :2]
    if wrong == "ranks turned round":
        dy = dy[:, ::-1]
    if wrong == "of the least":
        at = jax.lax.top_k(-x, 3)[1]
    if wrong == "of magnitudes":
        at = jax.lax.top_k(abs(x), 3)[1]
    return (jnp.put_along_axis(jnp.zeros_like(x), at, dy, -1, inplace=False),)


def median(x):
    return jnp.median(x, -1)


def median_bwd(wrong, args, y, dy):
    (x,) = args
    n = x.shape[-1]
    order = jnp.argsort(x, -1)
    pair = order[:, n // 2 - 1 : n // 2 + 1]
    if wrong == "one place too high":
        pair = order[:, n // 2 : n // 2 + 2]
    half = jnp.broadcast_to(dy[:, None] / 2, pair.shape)
    if wrong == "lower of the two only":
        half = half * jnp.array([2.0, 0.0], dy.dtype)
    if wrong == "half forgotten":
        half = 2 * half
    if wrong == "spread over all as a mean":
        return (jnp.broadcast_to(dy[:, None] / n, x.shape),)
    return (jnp.put_along_axis(jnp.zeros_like(x), pair, half, -1, inplace=False),)


def quantile(x):
    return jnp.quantile(x, 0.3)


def quantile_bwd(wrong, args, y, dy):
    (x,) = args
    place = 0.3 * (x.shape[0] - 1)
    low = int(place)
    upper = place - low
    order = jnp.argsort(x)
    if wrong == "weights swapped":
        upper = 1 - upper
    if wrong == "nearest only":
        upper = round(upper)
    if wrong == "place of n, not of n - 1":
        upper = 0.3 * x.shape[0] - low
    lower = jnp.zeros_like(x).at[order[low]].set((1 - upper) * dy)
    return (lower.at[order[low + 1]].add(upper * dy),)


def running_max(x):
    return jax.lax.cummax(x, 0)


def running_max_bwd(wrong, args, y, dy):
    (x,) = args
    fresh = x == y
    at = jax.lax.cummax(jnp.where(fresh, jnp.arange(x.shape[0])[:, None], 0), 0)
    cols = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    if wrong == "set, not added":
        return (jnp.zeros_like(x).at[at, cols].set(dy),)
    if wrong == "only where it is new":
        return (jnp.where(fresh, dy, 0),)
    if wrong == "to each place its own":
        return (dy,)
    if wrong == "as the maximum of all":
        last = jnp.broadcast_to(at[-1:], at.shape)
        return (jnp.zeros_like(x).at[last, cols].add(dy),)
    return (jnp.zeros_like(x).at[at, cols].add(dy),)


def ordered_l1(x, weights):
    return (weights * -jnp.sort(-abs(x))).sum()


def ordered_l1_bwd(wrong, args, y, dy):
    x, weights = args
    order = jnp.argsort(-abs(x))
    dx = dy * jnp.sign(x) * weights[jnp.argsort(order)]
    dweights = dy * abs(x)[order]
    if wrong == "sign forgotten":
        dx = dy * weights[jnp.argsort(order)]
    if wrong == "order for ranks":
        dx = dy * jnp.sign(x) * weights[order]
    if wrong == "weights not sorted":
        dweights = dy * abs(x)
    if wrong == "weights by signed values":
        dweights = dy * x[order]
    return dx, dweights


def trimmed_mean(x):
    return jnp.sort(x, 0)[1:-1].mean(0)


def trimmed_mean_bwd(wrong, args, y, dy):
    (x,) = args
    n = x.shape[0]
    rank = jnp.argsort(jnp.argsort(x, 0), 0)
    keep = (rank >= 1) & (rank < n - 1)
    if wrong == "largest kept":
        keep = rank >= 1
    if wrong == "nothing trimmed":
        keep = rank >= 0
    if wrong == "ranks along the wrong axis":
        rank = jnp.argsort(jnp.argsort(x, 1), 1)
        keep = (rank >= 1) & (rank < n - 1)
    return (jnp.where(keep, dy / (n if wrong == "divided by all" else n - 2), 0),)


CASES = [
    case(sort_rows, sort_rows_bwd, floats((3, 5)),
        ("gathered by the order", "x", "inverse permutation"), ("not put back", "x", "permutation forgotten"),
        ("order of falling values", "x", "wrong order"), ("order of the first row", "x", "wrong index")),
    case(top_three, top_three_bwd, floats((3, 7)),
        ("third forgotten", "x", "off by one"), ("ranks turned round", "x", "wrong order"),
        ("of the least", "x", "wrong mask"), ("of magnitudes", "x", "wrong mask")),
    case(median, median_bwd, floats((3, 6)),
        ("one place too high", "x", "off by one"), ("lower of the two only", "x", "one of two forgotten"),
        ("half forgotten", "x", "factor 2"), ("spread over all as a mean", "x", "mask forgotten")),
    case(quantile, quantile_bwd, floats((8,)),
        ("weights swapped", "x", "weights swapped"), ("nearest only", "x", "one of two forgotten"),
        ("place of n, not of n - 1", "x", "off by one")),
    case(running_max, running_max_bwd, floats((7, 2)),
        ("set, not added", "x", "duplicates overwritten"), ("only where it is new", "x", "sum over duplicates forgotten"),
        ("to each place its own", "x", "mask forgotten"), ("as the maximum of all", "x", "wrong index")),
    case(ordered_l1, ordered_l1_bwd, floats((6,), (6,)),
        ("sign forgotten", "x", "sign of some"), ("order for ranks", "x", "inverse permutation"),
        ("weights not sorted", "weights", "permutation forgotten"), ("weights by signed values", "weights", "sign of some")),
    case(trimmed_mean, trimmed_mean_bwd, floats((6, 4)),
        ("largest kept", "x", "wrong mask"), ("nothing trimmed", "x", "mask forgotten"),
        ("ranks along the wrong axis", "x", "wrong axis"), ("divided by all", "x", "factor")),
]  # fmt: skip
