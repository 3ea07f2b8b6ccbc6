"""Quantised weights, mixed precisions, and functions of several outputs."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.third.case import case, floats

F32, BF16 = jnp.float32, jnp.bfloat16


def fake_quant(x):
    return jnp.clip(jnp.round(x * 4), -6, 6) / 4


def clipped(x):
    return jnp.clip(x, -1.5, 1.5)


def fake_quant_bwd(wrong, args, y, dy):
    (x,) = args
    if wrong == "clip forgotten":
        return (dy,)
    if wrong == "upper end only":
        return (jnp.where(x < 1.5, dy, 0),)
    if wrong == "scale left in":
        return (jnp.where(abs(x) < 1.5, 4 * dy, 0),)
    if wrong == "clip at one":
        return (jnp.where(abs(x) < 1.0, dy, 0),)
    return (jnp.where(abs(x) < 1.5, dy, 0),)


def learned_step(x, step):
    """LSQ: levels -4 to 3 of a learned step; the rounding is let through."""
    return jnp.clip(jnp.round(x / step), -4, 3) * step


def learned_step_intended(x, step):
    z = jnp.clip(x / step, -4, 3)
    return (z + jax.lax.stop_gradient(jnp.round(z) - z)) * step


def learned_step_bwd(wrong, args, y, dy):
    x, step = args
    z = x / step
    inside = (z > -4) & (z < 3)
    dx = jnp.where(inside, dy, 0)
    level = jnp.clip(jnp.round(z), -4, 3)
    dstep = (dy * jnp.where(inside, level - z, level)).sum()
    if wrong == "all let through":
        dx = dy
    if wrong == "the level alone for the step":
        dstep = (dy * level).sum()
    if wrong == "clipped left out of the step":
        dstep = (dy * jnp.where(inside, level - z, 0)).sum()
    if wrong == "sign of the rounding":
        dstep = (dy * jnp.where(inside, z - level, level)).sum()
    return dx, dstep


def dequant_matmul(x, codes, scale):
    return x @ (codes.astype(x.dtype) * scale)


def dequant_matmul_bwd(wrong, args, y, dy):
    x, codes, scale = args
    c = codes.astype(x.dtype)
    dx = (dy * scale) @ c.T
    dscale = (dy * (x @ c)).sum(0)
    if wrong == "scale forgotten":
        dx = dy @ c.T
    if wrong == "scale's scale left in":
        dscale = (dy * y).sum(0)
    if wrong == "batch not summed for scale":
        dscale = (dy * (x @ c))[-1]
    if wrong == "codes by one too high":
        dx = (dy * scale) @ (c + 1).T
    return dx, None, dscale


def grouped_dequant(codes, scale, zero):
    """Groups of four rows share a scale and a zero point."""
    spread = lambda a: jnp.repeat(a, 4, 0)
    return (codes.astype(scale.dtype) - spread(zero)) * spread(scale)


def grouped_dequant_bwd(wrong, args, y, dy):
    codes, scale, zero = args
    c = codes.astype(scale.dtype)
    together = lambda a: a.reshape(2, 4, -1).sum(1)
    dscale = together(dy * (c - jnp.repeat(zero, 4, 0)))
    dzero = -together(dy) * scale
    if wrong == "zero point forgotten":
        dscale = together(dy * c)
    if wrong == "sign of zero":
        dzero = -dzero
    if wrong == "groups interleaved":
        dzero = -dy.reshape(4, 2, -1).sum(0) * scale
    if wrong == "scale forgotten":
        dzero = -together(dy)
    return None, dscale, dzero


def mixed_linear(x, w, b):
    """Weights in bfloat16, activations in float32, sums in float32."""
    return jnp.dot(x, w.astype(F32)) + b


def mixed_linear_bwd(wrong, args, y, dy):
    x, w, b = args
    dx = dy @ w.astype(F32).T
    dw = (x.T @ dy).astype(BF16)
    db = dy.sum(0)
    if wrong == "bias averaged":
        db = dy.mean(0)
    if wrong == "weights in steps of an eighth":
        dx = dy @ (jnp.round(w.astype(F32) * 8) / 8).T
    if wrong == "dw in the outputs' order":
        dw = (x.T @ dy[:, ::-1]).astype(BF16)
    if wrong == "gradient rounded to bfloat16":
        dx = dx.astype(BF16).astype(F32)
    return dx, dw, db


def accumulated_sum(x):
    """A bfloat16 sum, added up in float32."""
    return jnp.sum(x, 0, dtype=F32)


def accumulated_sum_bwd(wrong, args, y, dy):
    (x,) = args
    if wrong == "divided by rows":
        dy = dy / x.shape[0]
    if wrong == "last row forgotten":
        return (jnp.broadcast_to(dy, x.shape).at[-1].set(0).astype(x.dtype),)
    if wrong == "doubled":
        dy = 2 * dy
    return (jnp.broadcast_to(dy, x.shape).astype(x.dtype),)


def moments(x):
    return x.mean(-1), x.var(-1)


def moments_bwd(wrong, args, y, dy):
    (x,), (mean, _), (dmean, dvar) = args, y, dy
    n = x.shape[-1]
    centred = x - mean[:, None]
    if wrong == "second output forgotten":
        dvar = jnp.zeros_like(dvar)
    if wrong == "first output forgotten":
        dmean = jnp.zeros_like(dmean)
    if wrong == "cotangents swapped":
        dmean, dvar = dvar, dmean
    if wrong == "not centred":
        centred = x
    by = n - 1 if wrong == "unbiased" else n
    return (dmean[:, None] / n + 2 * dvar[:, None] * centred / by,)


def top_and_place(x):
    values, places = jax.lax.top_k(x, 2)
    return values, places


def top_and_place_bwd(wrong, args, y, dy):
    (x,), (_, places), (dvalues, _) = args, y, dy
    if wrong == "places by one":
        places = places + 1
    if wrong == "second forgotten":
        places, dvalues = places[:, :1], dvalues[:, :1]
    if wrong == "swapped":
        dvalues = dvalues[:, ::-1]
    return (jnp.put_along_axis(jnp.zeros_like(x), places, dvalues, -1, inplace=False, mode="clip"),)


def normalise_with_rstd(x, scale):
    rstd = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return {"y": x * rstd * scale, "rstd": rstd, "count": jnp.int32(x.shape[-1])}


def normalise_with_rstd_bwd(wrong, args, y, dy):
    x, scale = args
    r, d, dr = y["rstd"], dy["y"], dy["rstd"]
    n = x.shape[-1]
    g = d * scale
    if wrong == "scale forgotten in dx":
        g = d
    if wrong == "rstd taken for unused":
        dr = jnp.zeros_like(dr)
    power = 2 if wrong == "square for the cube" else 3
    dx = r * g - x * r**power * ((g * x).sum(-1, keepdims=True) + dr) / n
    dscale = (d * x * r).sum(0)
    if wrong == "dscale without rstd":
        dscale = (d * x).sum(0)
    return dx, dscale


def log_softmax_with_sum(x):
    lse = jax.nn.logsumexp(x, -1)
    return x - lse[:, None], lse


def log_softmax_with_sum_bwd(wrong, args, y, dy):
    (logp, _), (d, dl) = y, dy
    p = jnp.exp(logp)
    if wrong == "sum's cotangent forgotten":
        dl = jnp.zeros_like(dl)
    if wrong == "sum's cotangent subtracted":
        dl = -dl
    if wrong == "row sum forgotten":
        return (d + p * dl[:, None],)
    return (d + p * (dl - d.sum(-1))[:, None],)


CODES = np.array([[3, -7, 127], [-128, 5, 0], [64, 2, -9], [1, -1, 30]], np.int8)
GROUPS = np.arange(24).reshape(8, 3).astype(np.int8) % 16


def mixed(rng):
    x, w, b = (rng.standard_normal(s) for s in ((3, 4), (4, 5), (5,)))
    return jnp.asarray(x, F32), jnp.asarray(w, BF16), jnp.asarray(b, F32)


def scaled(rng):
    return (
        jnp.asarray(rng.standard_normal((3, 4)), F32),
        CODES,
        jnp.asarray(rng.uniform(0.01, 0.05, 3), F32),
    )


CASES = [
    case(fake_quant, fake_quant_bwd, floats((4, 6)),
        ("clip forgotten", "x", "mask forgotten"), ("upper end only", "x", "mask at one end"),
        ("scale left in", "x", "factor 4"), ("clip at one", "x", "wrong limit"), intended=clipped),
    case(learned_step, learned_step_bwd, lambda rng: (jnp.asarray(2 * rng.standard_normal(12), F32), jnp.float32(0.7)),
        ("all let through", "x", "mask forgotten"), ("the level alone for the step", "step", "term forgotten"),
        ("clipped left out of the step", "step", "term forgotten"), ("sign of the rounding", "step", "sign of a term"),
        intended=learned_step_intended),
    case(dequant_matmul, dequant_matmul_bwd, scaled,
        ("scale forgotten", "x", "factor forgotten"), ("scale's scale left in", "scale", "extra factor"),
        ("batch not summed for scale", "scale", "sum forgotten"), ("codes by one too high", "x", "off by one")),
    case(grouped_dequant, grouped_dequant_bwd,
        lambda rng: (GROUPS, jnp.asarray(rng.uniform(0.1, 1, (2, 3)), F32), jnp.asarray(rng.uniform(0, 15, (2, 3)), F32)),
        ("zero point forgotten", "scale", "term forgotten"), ("sign of zero", "zero", "sign"),
        ("groups interleaved", "zero", "wrong reshape"), ("scale forgotten", "zero", "factor forgotten")),
    case(mixed_linear, mixed_linear_bwd, mixed,
        ("bias averaged", "b", "factor 1/batch"), ("weights in steps of an eighth", "x", "stale weights"),
        ("dw in the outputs' order", "w", "order"), ("gradient rounded to bfloat16", "x", "dtype")),
    case(accumulated_sum, accumulated_sum_bwd, floats((6, 4), dtype=BF16),
        ("divided by rows", "x", "factor 1/rows"), ("last row forgotten", "x", "part is zero"), ("doubled", "x", "factor 2")),
    case(moments, moments_bwd, floats((3, 5)),
        ("second output forgotten", "x", "output forgotten"), ("first output forgotten", "x", "output forgotten"),
        ("cotangents swapped", "x", "outputs swapped"), ("not centred", "x", "term forgotten"), ("unbiased", "x", "off by one")),
    case(top_and_place, top_and_place_bwd, floats((3, 6)),
        ("places by one", "x", "off by one"), ("second forgotten", "x", "part is zero"), ("swapped", "x", "order")),
    case(normalise_with_rstd, normalise_with_rstd_bwd, floats((3, 5), (5,)),
        ("scale forgotten in dx", "x", "factor forgotten"), ("rstd taken for unused", "x", "output forgotten"),
        ("square for the cube", "x", "wrong power"), ("dscale without rstd", "scale", "factor forgotten")),
    case(log_softmax_with_sum, log_softmax_with_sum_bwd, floats((3, 5)),
        ("sum's cotangent forgotten", "x", "output forgotten"), ("sum's cotangent subtracted", "x", "sign of a term"),
        ("row sum forgotten", "x", "term forgotten")),
]  # fmt: skip
