"""The gated recurrent unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from funprop.layer import Layer
from funprop.layers.recurrent import (
    before,
    check_weights,
    inputs,
    orthogonal,
    product,
    recurrent,
    split,
    sum_of_products,
)
from funprop.trees import lifted, wide_dtype
from funprop.values import whole_number

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    Inputs = Float[Array, "t n i"]
    Hidden = Float[Array, "t n o"]


class GRUParams(NamedTuple):
    """The params of `gru`, the gates beside each other in the order reset, update, new.

    Attributes:
      w_x: weights of the input, `[i, 3 o]`.
      w_h: weights of the hidden state, `[o, 3 o]`.
      b: biases, `[3 o]`.
      b_h: the bias inside the reset gate, `[o]`.
    """

    w_x: Any
    w_h: Any
    b: Any
    b_h: Any

    roles = {"w_x": "weight", "w_h": "weight", "b": "bias", "b_h": "bias"}


def gru(features: int) -> Layer:
    """A gated recurrent unit over time, from zero; gives the hidden state at every step.

    With `a = x_t w_x + b` and `s = h_(t-1) w_h` cut in three, `r = sigmoid(a_r + s_r)`,
    `u = sigmoid(a_u + s_u)`, `v = tanh(a_v + r (s_v + b_h))`: `h_t = (1 - u) v + u h_(t-1)`.
    Equations and order of gates (reset, update, new) are PyTorch's and those of Flax's `GRUCell`,
    with one bias for each of the first two. Biases start at zero, `w_h` orthogonal.

    Keeps `x` and the output: gates are made again from them, all in one product. Backward, from
    the last step to the first, is linear with factors known before it starts; what is summed over
    steps is one product after it. See `docs/recurrent.md`.

    Args:
      features: how many hidden features, `o`.

    Shapes, dtypes and lengths: as those of `lstm`.

    Source: Cho et al., arXiv:1406.1078; the place of the reset gate is that of cuDNN.

    Raises:
      ValueError: `features` is not positive; or, at init or forward, `x` is neither
        `[batch, time, i]` nor such a pair, does not go with the params, or has a length out of
        range.
      TypeError: `x` is not of floating dtype, the lengths are not integers, or the params are not
        `GRUParams`.

    Example:
      >>> x = jnp.ones((2, 5, 3))
      >>> params = gru(4).init(jax.random.key(0), x)
      >>> y, kept = gru(4).forward(params, x)
      >>> dparams, dx = gru(4).backward(params, kept, y)
      >>> y.shape, dparams.w_h.shape, dx.shape
      ((2, 5, 4), (4, 12), (2, 5, 3))
    """
    features = whole_number(features, "features", 1)

    def init(key: Key[Array, ""], x: Any) -> GRUParams:
        x_key, h_key = jax.random.split(key)
        return GRUParams(
            w_x=initializers.lecun_normal()(x_key, (x.shape[-1], 3 * features), x.dtype),
            w_h=orthogonal(h_key, features, 3, x),
            b=jnp.zeros(3 * features, x.dtype),
            b_h=jnp.zeros(features, x.dtype),
        )

    # Index legend: t time, n batch, i inputs, o features.
    def forward(params: GRUParams, x: Inputs, state: Any) -> tuple[Hidden, Any]:
        _check(params, x)
        b, b_h = (leaf.astype(wide_dtype(x.dtype)) for leaf in (params.b, params.b_h))

        def step(h: Float[Array, "n o"], a: tuple[Any, ...]) -> tuple[Any, Any]:
            _, u, v, _ = _gates(a, split(product(h, params.w_h), 3), b_h)
            h = (1 - u) * v + u * h
            return h, h.astype(x.dtype)

        state = jnp.zeros((x.shape[1], features), b.dtype) if state is None else state
        state, h = jax.lax.scan(step, state, split(inputs(x, params.w_x, b), 3))
        return h, state

    def backward(params: GRUParams, x: Inputs, h: Hidden, dh: Hidden) -> tuple[GRUParams, Inputs]:
        b, b_h = (leaf.astype(wide_dtype(x.dtype)) for leaf in (params.b, params.b_h))
        h_before = before(h)
        a, s = inputs(x, params.w_x, b), product(h_before, params.w_h)
        r, u, v, inside = _gates(split(a, 3), split(s, 3), b_h)
        # What dh is multiplied with in each third of da; in the last of ds there is r beside it.
        to_v = (1 - u) * (1 - v) * (1 + v)
        to_u = (h_before.astype(v.dtype) - v) * u * (1 - u)
        to_r = to_v * inside * r * (1 - r)

        def step(dh_after: Float[Array, "n o"], now: Any) -> tuple[Any, Any]:
            dh, to_r, to_u, to_s, u = now
            dh = dh.astype(u.dtype) + dh_after
            ds = jnp.concatenate([to_r * dh, to_u * dh, to_s * dh], axis=-1)
            return product(ds, params.w_h.T) + u * dh, dh

        to = (dh, to_r, to_u, to_v * r, u)
        _, dh = jax.lax.scan(step, jnp.zeros_like(u[0]), to, reverse=True)
        da_r, da_u, da_v = to_r * dh, to_u * dh, to_v * dh
        ds_v = r * da_v
        da, ds = (jnp.concatenate([da_r, da_u, last], axis=-1) for last in (da_v, ds_v))
        dparams = GRUParams(
            w_x=sum_of_products(x, da, params.w_x),
            w_h=sum_of_products(h_before, ds, params.w_h),
            b=da.sum((0, 1)).astype(params.b.dtype),
            b_h=ds_v.sum((0, 1)).astype(params.b_h.dtype),
        )
        return dparams, product(da, params.w_x.T)

    return recurrent("gru", init, forward, backward)


def _gates(
    a: tuple[Any, ...], s: tuple[Any, ...], b_h: Float[Array, "o"]
) -> tuple[Any, Any, Any, Any]:
    """`r`, `u`, `v`, and what stands inside the reset gate, `s_v + b_h`."""
    inside = s[2] + lifted(b_h, s[2])
    r, u = jax.nn.sigmoid(a[0] + s[0]), jax.nn.sigmoid(a[1] + s[1])
    return r, u, jnp.tanh(a[2] + r * inside), inside


def _check(params: Any, x: Any) -> None:
    if not isinstance(params, GRUParams):
        raise TypeError(f"params must be GRUParams(w_x, w_h, b, b_h), got {type(params).__name__}")
    check_weights(params.w_x, x)
