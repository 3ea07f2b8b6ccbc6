"""Normalisations of each example by itself. They keep `x` and a number or two for each mean: the
normalised `x` is made again in backward, which reads `x` anyway.

Statistics, and all of backward, are computed in float32 at least (see `moments`). Where the
sum of squares overflows there, from numbers of about 1e18 on, the output is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax

from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.layers.moments import check_eps, deviations, inverse_root, moments
from funprop.layers.norm_examples import by_example
from funprop.layers.norm_params import (
    NormParams,
    affine,
    check_params,
    cotangents,
    initial,
    scale_of,
)
from funprop.trees import lifted, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Key

    X = Float[Array, "*shape c"]
    Rows = Float[Array, "*shape 1"]


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
        return initial(x, scale, bias)

    def forward(params: NormParams, x: X) -> tuple[X, tuple[X, Rows, Rows]]:
        check_params(params, x)
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
        return initial(x, scale, bias=False)

    def forward(params: NormParams, x: X) -> tuple[X, tuple[X, Rows]]:
        check_params(params, x)
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
    return cotangents(params, dscale, dbias), dw, mean_du


def _dot(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """A product that is a sum: not for the low precision that accelerators take for products."""
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)
