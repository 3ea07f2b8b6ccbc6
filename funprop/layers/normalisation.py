"""Normalisations of each example by itself. They keep `x` and a number or two for each mean: the
normalised `x` is made again in backward, which reads `x` anyway.

Statistics, and all of backward, are computed in float32 at least (see `moments`). Where the
sum of squares overflows there, from numbers of about 1e18 on, the output is NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.layers.moments import check_eps, deviations, inverse_root, moments
from funprop.layers.norm_examples import by_example
from funprop.trees import lifted, require_float, widen
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Key

    X = Float[Array, "*shape c"]
    Rows = Float[Array, "*shape 1"]


class NormParams(NamedTuple):
    """The params of `layer_norm`, `rms_norm` and `group_norm`.

    Attributes:
      scale: `[c]`, starts at one; or `None`.
      bias: `[c]`, starts at zero; or `None`.
    """

    scale: Any
    bias: Any

    roles = {"scale": "scale", "bias": "bias"}


@told(FORMULAS["layer_norm"])
def layer_norm(eps: float = 1e-5, *, scale: bool = True, bias: bool = True) -> Layer:
    """`y = (x - mean) / sqrt(variance + eps) * scale + bias`, statistics over the last axis.

    Backward, with `w = x - mean`, `r = 1 / sqrt(variance + eps)`, `du = dy * scale` and means over
    the last axis: `dx = r (du - mean(du) - w r^2 mean(du w))`. Keeps `x`, `r`, and `mean` as its
    distance from the first number.

    Shapes: `x [*batch, c]`, `y [*batch, c]`; params are made in the dtype of `x`.
    Source: Ba, Kiros and Hinton, arXiv:1607.06450.

    Raises:
      ValueError: `eps` is not positive, or above 1; or, at init or forward, `x` has no last axis or
        another one than the params want.
      TypeError: `x` is not of floating dtype, or the params are not `NormParams`.

    Example:
      >>> norm, x = layer_norm(), jnp.array([[1.0, 3.0]])
      >>> y, kept = norm.forward(norm.init(None, x), x)
      >>> y.round(3).tolist()
      [[-1.0, 1.0]]
    """
    eps = check_eps(eps)

    def init(key: Key[Array, ""] | None, x: Any) -> NormParams:
        return _initial(x, scale, bias)

    def forward(params: NormParams, x: X) -> tuple[X, tuple[X, Rows, Rows]]:
        _check(params, x)
        found = moments(x, lambda x: x.mean(-1, keepdims=True), eps)
        return affine(params, found.normalised(x), x), (x, found.mean_from(x[..., :1]), found.r)

    def backward(
        params: NormParams, residuals: tuple[X, Rows, Rows], dy: X
    ) -> tuple[NormParams, X]:
        x, mean, r = residuals
        dparams, dx, mean_du = _backward_over_rows(params, deviations(x, x[..., :1], mean), r, dy)
        return dparams, (dx - r * mean_du).astype(x.dtype)

    def normalised(residuals: tuple[X, Rows, Rows]) -> X:
        x, mean, r = residuals
        return deviations(x, x[..., :1], mean) * r

    marked = by_example(backward, normalised)
    return layer(init=init, forward=forward, backward=marked, name="layer_norm", pointwise=True)


@told(FORMULAS["rms_norm"])
def rms_norm(eps: float = 1e-6, *, scale: bool = True) -> Layer:
    """`y = x / sqrt(mean(x^2) + eps) * scale`, the mean over the last axis.

    Backward, with `r = 1 / sqrt(mean(x^2) + eps)` and `du = dy * scale`:
    `dx = r (du - x r^2 mean(du x))`. Keeps `x` and `r`.

    Shapes: `x [*batch, c]`, `y [*batch, c]`; params are made in the dtype of `x`, `bias` is `None`.
    Source: Zhang and Sennrich, arXiv:1910.07467.

    Raises:
      ValueError: `eps` is not positive, or above 1; or, at init or forward, `x` has no last axis or
        another one than the params want.
      TypeError: `x` is not of floating dtype, or the params are not `NormParams`.

    Example:
      >>> norm, x = rms_norm(), jnp.array([[3.0, -3.0]])
      >>> y, kept = norm.forward(norm.init(None, x), x)
      >>> y.round(3).tolist()
      [[1.0, -1.0]]
    """
    eps = check_eps(eps)

    def init(key: Key[Array, ""] | None, x: Any) -> NormParams:
        return _initial(x, scale, bias=False)

    def forward(params: NormParams, x: X) -> tuple[X, tuple[X, Rows]]:
        _check(params, x)
        wide = widen(x)
        r = inverse_root((wide * wide).mean(-1, keepdims=True), eps)
        return affine(params, wide * r, x), (x, r)

    def backward(params: NormParams, residuals: tuple[X, Rows], dy: X) -> tuple[NormParams, X]:
        x, r = residuals
        dparams, dx, _ = _backward_over_rows(params, widen(x), r, dy)
        return dparams, dx.astype(x.dtype)

    marked = by_example(backward, lambda residuals: widen(residuals[0]) * residuals[1])
    return layer(init=init, forward=forward, backward=marked, name="rms_norm", pointwise=True)


def _backward_over_rows(params: NormParams, w: X, r: Rows, dy: X) -> tuple[NormParams, X, Rows]:
    """`(dparams, dw, mean_du)` of `y = w r scale + bias`, with `r` a function of `w`.

    Index legend: `n` rows (any leading axes, taken together), `c` channels. All sums are products
    with a vector, which XLA runs twice as fast as sums over an axis on CPU.
    """
    dy = dy.astype(w.dtype)
    scale = scale_of(params, w)
    c, dyw = scale.size, dy * w
    mean_du = _dot(dy, scale)[..., None] / c  # sum_c dy[n,c] scale[c]
    mean_duw = _dot(dyw, scale)[..., None] / c  # sum_c dy[n,c] w[n,c] scale[c]
    dw = r * (dy * lifted(scale, w) - w * (r * (r * mean_duw)))
    rows = r.reshape(-1)
    dscale = _dot(rows, dyw.reshape(-1, c))  # sum_n r[n] dy[n,c] w[n,c]
    dbias = _dot(jnp.ones_like(rows), dy.reshape(-1, c))  # sum_n dy[n,c]
    return _cotangents(params, dscale, dbias), dw, mean_du


def _dot(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """A product that is a sum: not for the low precision that accelerators take for products."""
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


@told(FORMULAS["group_norm"])
def group_norm(groups: int, eps: float = 1e-5, *, scale: bool = True, bias: bool = True) -> Layer:
    """`layer_norm` over the space and the channels of each of `groups` groups of channels.

    With one group, the whole example is normalised; with as many as channels, each channel of each
    example by itself (instance normalisation). Backward is that of `layer_norm` with means over a
    group. They come from two sums a channel, and so do `dscale` and `dbias`. Keeps `x`, and `mean`
    and `r` of each group.

    Shapes: `x [batch, *space, c]`, `y` alike; params are `[c]`, made in the dtype of `x`.
    Source: Wu and He, arXiv:1803.08494.

    Raises:
      ValueError: `groups` or `eps` is not positive, or `eps` above 1; or, at init or forward,
        `x` has fewer than two axes, or channels that `groups` does not divide, or others than the
        params want.
      TypeError: `x` is not of floating dtype, or the params are not `NormParams`.

    Example:
      >>> norm, x = group_norm(2), jnp.array([[[1.0, 5.0], [3.0, 5.0]]])
      >>> y, kept = norm.forward(norm.init(None, x), x)
      >>> y.round(3).tolist()
      [[[-1.0, 0.0], [1.0, 0.0]]]
    """
    eps = check_eps(eps)
    groups = whole_number(groups, "groups", 1)

    def init(key: Key[Array, ""] | None, x: Any) -> NormParams:
        _check_groups(x, groups)
        return _initial(x, scale, bias)

    # Index legend: b batch, s space (all its axes, taken together), g groups, c channels.
    def flat(x: X) -> Float[Array, "b s c"]:
        return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])

    def spread(statistic: Float[Array, "b g"], c: int) -> Float[Array, "b 1 c"]:
        return jnp.repeat(statistic, c // groups, axis=-1)[:, None, :]

    def average(sums: Float[Array, "b c"], space: int) -> Float[Array, "b 1 c"]:
        """The mean over a group, from sums over space: on a CPU, in a third of the time of one sum
        over both."""
        parts = sums.reshape(sums.shape[0], groups, sums.shape[-1] // groups)
        return spread(parts.sum(-1) / (space * parts.shape[-1]), sums.shape[-1])

    def forward(params: NormParams, x: X) -> tuple[X, Any]:
        _check_groups(x, groups)
        _check(params, x)
        rows, each = flat(x), x.shape[-1] // groups
        found = moments(rows, lambda rows: average(rows.sum(1), rows.shape[1]), eps)
        mean = found.mean_from(spread(rows[:, 0, ::each], x.shape[-1]))
        u = affine(params, found.normalised(rows), x)
        return u.reshape(x.shape), (x, mean[:, 0, ::each], found.r[:, 0, ::each])

    def centred(residuals: Any) -> tuple[Float[Array, "b s c"], Float[Array, "b 1 c"]]:
        x, *statistics = residuals
        rows, c = flat(x), x.shape[-1]
        first, mean, r = (spread(s, c) for s in (rows[:, 0, :: c // groups], *statistics))
        return deviations(rows, first, mean), r

    def backward(params: NormParams, residuals: Any, dy: X) -> tuple[NormParams, X]:
        x, (w, r) = residuals[0], centred(residuals)
        dy, scale = flat(dy).astype(w.dtype), scale_of(params, w)
        sum_dy = dy.sum(1)  # sum_s dy[b,s,c]
        sum_dyw = (dy * w).sum(1)  # sum_s dy[b,s,c] w[b,s,c]
        mean_du, mean_duw = (average(s * scale[None], w.shape[1]) for s in (sum_dy, sum_dyw))
        dx = r * (dy * lifted(scale, w) - mean_du - w * (r * (r * mean_duw)))
        dparams = _cotangents(params, (r[:, 0] * sum_dyw).sum(0), sum_dy.sum(0))
        return dparams, dx.reshape(x.shape).astype(x.dtype)

    def normalised(residuals: Any) -> X:
        w, r = centred(residuals)
        return (w * r).reshape(residuals[0].shape)

    marked = by_example(backward, normalised)
    return layer(init=init, forward=forward, backward=marked, name="group_norm")


# --------------------------------------------------------------------- what normalisations share


def affine(params: Any, u: X, x: X) -> X:
    """`u * scale + bias`, as far as there are these, in the dtype of `x`."""
    if params.scale is not None:
        u = u * lifted(params.scale.astype(u.dtype), u)
    if params.bias is not None:
        u = u + lifted(params.bias.astype(u.dtype), u)
    return u.astype(x.dtype)


def scale_of(params: Any, w: X) -> Float[Array, "c"]:
    """The scale in the dtype of `w`; ones, which XLA takes out again, where there is none."""
    if params.scale is None:
        return jnp.ones(w.shape[-1:], w.dtype)
    return params.scale.astype(w.dtype)


def _cotangents(params: NormParams, *cotangents: Float[Array, "c"]) -> NormParams:
    """As `params`: in their dtypes, `None` in the place of `None`."""
    each = zip(params, cotangents, strict=True)
    return NormParams(*(None if p is None else d.astype(p.dtype) for p, d in each))


def _initial(x: Any, scale: bool, bias: bool) -> NormParams:
    check_channels(x)
    shape = x.shape[-1:]
    return NormParams(
        scale=jnp.ones(shape, x.dtype) if scale else None,
        bias=jnp.zeros(shape, x.dtype) if bias else None,
    )


def _check(params: Any, x: Any) -> None:
    check_channels(x)
    if not isinstance(params, NormParams):
        raise TypeError(f"params must be NormParams(scale, bias), got {type(params).__name__}")
    check_leaves(params, x)


def check_leaves(params: Any, x: Any) -> None:
    """Raise where a leaf of `params` is not one number a channel of `x`."""
    for name, leaf in params._asdict().items():
        if leaf is not None and leaf.shape != x.shape[-1:]:
            raise ValueError(
                f"x must have a last axis to go with {name} of shape {tuple(leaf.shape)}, got x of "
                f"shape {tuple(x.shape)}"
            )


def check_channels(x: Any) -> None:
    """Raise where `x` has no channels, or is not of floating dtype."""
    require_float(x)
    if x.ndim < 1 or not x.shape[-1]:
        got = f"shape {tuple(x.shape)}" if x.ndim else "a scalar"
        raise ValueError(f"x must have a last axis of channels, got {got}")


def _check_groups(x: Any, groups: int) -> None:
    require_float(x)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"x must be [batch, *space, channels], got shape {tuple(x.shape)}")
    if x.shape[-1] % groups:
        raise ValueError(f"channels must divide into {groups} groups, got {x.shape[-1]} channels")
