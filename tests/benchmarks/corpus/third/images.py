"""Resizing, pooling and convolutions of many kinds."""

import jax.numpy as jnp
from jax import lax

from tests.benchmarks.corpus.third.case import case, floats


def nearest_upsample(x):
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


def nearest_upsample_bwd(wrong, args, y, dy):
    b, h, w = args[0].shape
    blocks = dy.reshape(b, h, 2, w, 2)
    if wrong == "averaged":
        return (blocks.mean((2, 4)),)
    if wrong == "corner alone":
        return (blocks[:, :, 0, :, 0],)
    if wrong == "blocks interleaved":
        return (dy.reshape(b, 2, h, 2, w).sum((1, 3)),)
    return (blocks.sum((2, 4)),)


def linear_upsample(x):
    """Twice as long, between neighbours, ends held."""
    left = jnp.concatenate([x[:, :1], x[:, :-1]], 1)
    right = jnp.concatenate([x[:, 1:], x[:, -1:]], 1)
    return jnp.stack([0.25 * left + 0.75 * x, 0.75 * x + 0.25 * right], -1).reshape(x.shape[0], -1)


def linear_upsample_bwd(wrong, args, y, dy):
    even, odd = dy[:, ::2], dy[:, 1::2]
    if wrong == "even and odd swapped":
        even, odd = odd, even
    dx = 0.75 * (even + odd)
    dx = dx.at[:, :-1].add(0.25 * even[:, 1:]).at[:, 1:].add(0.25 * odd[:, :-1])
    if wrong == "ends forgotten":
        return (dx,)
    if wrong == "neighbours forgotten":
        return (0.75 * (even + odd),)
    dx = dx.at[:, 0].add(0.25 * even[:, 0])
    return (dx if wrong == "right end forgotten" else dx.at[:, -1].add(0.25 * odd[:, -1]),)


def overlapping_max(x):
    """Windows of three, two apart."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 2), "VALID")


def overlapping_max_bwd(wrong, args, y, dy):
    (x,) = args
    n = y.shape[1]
    at = 2 * jnp.arange(n)[:, None] + jnp.arange(3)
    best = x[:, at].argmax(-1)
    step = 3 if wrong == "windows side by side" else 2
    place = jnp.minimum(step * jnp.arange(n) + best, x.shape[1] - 1)
    rows = jnp.arange(x.shape[0])[:, None]
    if wrong == "overlaps overwritten":
        return (jnp.zeros_like(x).at[rows, place].set(dy),)
    if wrong == "to the middle":
        place = jnp.broadcast_to(2 * jnp.arange(n) + 1, place.shape)
    if wrong == "to all of the window":
        return (jnp.zeros_like(x).at[:, at].add(dy[..., None]),)
    return (jnp.zeros_like(x).at[rows, place].add(dy),)


def padded_average(x):
    """Windows of three, one apart, padding not counted."""
    window = lambda a: lax.reduce_window(a, 0.0, lax.add, (1, 3), (1, 1), "SAME")
    return window(x) / window(jnp.ones_like(x))


def padded_average_bwd(wrong, args, y, dy):
    window = lambda a: lax.reduce_window(a, 0.0, lax.add, (1, 3), (1, 1), "SAME")
    count = window(jnp.ones_like(dy))
    if wrong == "padding counted":
        count = 3.0
    if wrong == "divided after":
        return (window(dy) / count,)
    if wrong == "not spread":
        return (dy / count,)
    return (window(dy / count),)


def conv(x, w, **how):
    how = {"window_strides": (1,), "padding": "VALID"} | how
    return lax.conv_general_dilated(x, w, dimension_numbers=("NCH", "OIH", "NCH"), **how)


def dilated(x, w):
    return conv(x, w, rhs_dilation=(2,))


def dilated_bwd(wrong, args, y, dy):
    x, w = args
    k, step = w.shape[-1], 1 if wrong == "dilation forgotten" else 2
    turned = w.transpose(1, 0, 2)
    if wrong != "kernel not turned round":
        turned = turned[..., ::-1]
    pad = 2 * (k - 1)
    dx = conv(dy, turned, padding=[(pad, pad)], rhs_dilation=(2,))
    n = dy.shape[-1]
    taps = [jnp.einsum("bon,bin->oi", dy, x[..., step * t : step * t + n]) for t in range(k)]
    if wrong == "taps turned round":
        taps = taps[::-1]
    dw = jnp.stack(taps, -1)
    return dx, dw / x.shape[0] if wrong == "averaged over the batch" else dw


def transposed_conv(x, w):
    """Twice as long: each value adds its kernel, [C, D, 3], at every second place."""
    out = jnp.einsum("bcn,cdk->bdnk", x, w)
    y = jnp.zeros((x.shape[0], w.shape[1], 2 * x.shape[2] + 1), x.dtype)
    for k in range(3):
        y = y.at[..., k : k + 2 * x.shape[2] : 2].add(out[..., k])
    return y


def transposed_conv_bwd(wrong, args, y, dy):
    x, w = args
    n = x.shape[2]
    shift = 1 if wrong == "shifted by one" else 0
    parts = [dy[..., k : k + 2 * n : 2] for k in range(3)]
    if shift:
        parts = parts[1:] + parts[:1]
    d = jnp.stack(parts, -1)
    dx = jnp.einsum("bdnk,cdk->bcn", d, w)
    if wrong == "kernel turned round":
        dx = jnp.einsum("bdnk,cdk->bcn", d, w[..., ::-1])
    if wrong == "last tap forgotten":
        dx = jnp.einsum("bdnk,cdk->bcn", d[..., :2], w[..., :2])
    dw = jnp.einsum("bdnk,bcn->cdk", d, x)
    return dx, dw


def grouped_conv(x, w):
    return conv(x, w, feature_group_count=2)


def grouped_conv_bwd(wrong, args, y, dy):
    x, w = args
    n, k = dy.shape[-1], w.shape[-1]
    xs = x.reshape(x.shape[0], 2, -1, x.shape[-1])
    ds = dy.reshape(dy.shape[0], 2, -1, n)
    ws = w.reshape(2, -1, *w.shape[1:])
    if wrong == "groups swapped for x":
        ws = ws[::-1]
    dx = jnp.zeros_like(xs)
    taps = []
    for t in range(k):
        s = k - 1 - t if wrong == "kernel turned round" else t
        dx = dx.at[..., t : t + n].add(jnp.einsum("bgon,goi->bgin", ds, ws[..., s]))
        taps.append(jnp.einsum("bgon,bgin->goi", ds, xs[..., t : t + n]))
    dw = jnp.stack(taps, -1)
    if wrong == "second group forgotten":
        dw = dw.at[1].set(0)
    return dx.reshape(x.shape), dw.reshape(w.shape)


def causal_depthwise(x, w):
    """[N, C] by [K, C]: y_t = sum_k w_k x_{t-k}."""
    return sum(jnp.pad(x, ((k, 0), (0, 0)))[: x.shape[0]] * w[k] for k in range(w.shape[0]))


def causal_depthwise_bwd(wrong, args, y, dy):
    x, w = args
    n, taps = x.shape[0], range(w.shape[0])
    later = lambda k: jnp.pad(dy, ((0, k), (0, 0)))[k:]
    before = lambda k: jnp.pad(x, ((k, 0), (0, 0)))[:n]
    if wrong == "looking backwards":
        later = lambda k: jnp.pad(dy, ((k, 0), (0, 0)))[:n]
    if wrong == "wrapped round":
        later = lambda k: jnp.roll(dy, -k, 0)
    dx = sum(later(k) * w[k] for k in taps)
    dw = jnp.stack([(before(k) * dy).sum(0) for k in taps])
    if wrong == "taps turned round":
        dw = dw[::-1]
    if wrong == "taps by one":
        dw = jnp.stack([(before(k + 1) * dy).sum(0) for k in taps])
    return dx, dw


def pixel_shuffle(x):
    """[4C, H, W] to [C, 2H, 2W]."""
    c, h, w = x.shape
    return x.reshape(c // 4, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(c // 4, 2 * h, 2 * w)


def pixel_shuffle_bwd(wrong, args, y, dy):
    c, h, w = args[0].shape
    d = dy.reshape(c // 4, h, 2, w, 2)
    order = (0, 2, 4, 1, 3)
    if wrong == "inner places swapped":
        order = (0, 4, 2, 1, 3)
    if wrong == "rows and columns swapped":
        order = (0, 2, 4, 3, 1)
    if wrong == "reshaped only":
        return (dy.reshape(c, h, w),)
    return (d.transpose(order).reshape(c, h, w),)


CASES = [
    case(nearest_upsample, nearest_upsample_bwd, floats((2, 3, 3)),
        ("averaged", "x", "factor 1/4"), ("corner alone", "x", "sum forgotten"), ("blocks interleaved", "x", "wrong reshape")),
    case(linear_upsample, linear_upsample_bwd, floats((2, 5)),
        ("even and odd swapped", "x", "order"), ("ends forgotten", "x", "boundary"),
        ("neighbours forgotten", "x", "term forgotten"), ("right end forgotten", "x", "boundary")),
    case(overlapping_max, overlapping_max_bwd, floats((3, 9)),
        ("windows side by side", "x", "wrong stride"), ("overlaps overwritten", "x", "duplicates overwritten"),
        ("to the middle", "x", "wrong index"), ("to all of the window", "x", "mask forgotten")),
    case(padded_average, padded_average_bwd, floats((2, 6)),
        ("padding counted", "x", "boundary"), ("divided after", "x", "order of division"), ("not spread", "x", "sum forgotten")),
    case(dilated, dilated_bwd, floats((2, 2, 8), (3, 2, 3)),
        ("dilation forgotten", "w", "wrong stride"), ("kernel not turned round", "x", "flip forgotten"),
        ("taps turned round", "w", "flip"), ("averaged over the batch", "w", "factor 1/batch")),
    case(transposed_conv, transposed_conv_bwd, floats((2, 2, 4), (2, 3, 3)),
        ("shifted by one", "x w", "off by one"), ("kernel turned round", "x", "flip"), ("last tap forgotten", "x", "term forgotten")),
    case(grouped_conv, grouped_conv_bwd, floats((2, 4, 6), (4, 2, 3)),
        ("groups swapped for x", "x", "order"), ("kernel turned round", "x", "flip"), ("second group forgotten", "w", "part is zero")),
    case(causal_depthwise, causal_depthwise_bwd, floats((7, 2), (3, 2)),
        ("looking backwards", "x", "order of time"), ("wrapped round", "x", "boundary"),
        ("taps turned round", "w", "flip"), ("taps by one", "w", "off by one")),
    case(pixel_shuffle, pixel_shuffle_bwd, floats((4, 3, 3)),
        ("inner places swapped", "x", "axes swapped"), ("rows and columns swapped", "x", "axes swapped"),
        ("reshaped only", "x", "wrong reshape")),
]  # fmt: skip
