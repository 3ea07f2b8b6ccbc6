"""The gated recurrent unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop import drawing
from funprop.layer import Layer
from funprop.layers.recurrent import (
    before,
    check_keep,
    check_weights,
    inputs,
    orthogonal,
    product,
    recurrent,
    scan_over_inputs,
    split,
    sum_of_products,
)
from funprop.looping import varying
from funprop.trees import lifted, wide_dtype
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Key

    Inputs = Float[Array, "t n i"]
    Hidden = Float[Array, "t n o"]
    Wide = Float[Array, "t n o"]  # in float32 at least
    Kept = tuple[Wide, Wide, Wide, Wide]  # as `_gates` gives them


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


def gru(features: int, *, keep: str = "gates") -> Layer:
    """A gated recurrent unit over time, from zero; gives the hidden state at every step.

    With `a = x_t w_x + b` and `s = h_(t-1) w_h` cut in three, `r = sigmoid(a_r + s_r)`,
    `u = sigmoid(a_u + s_u)`, `v = tanh(a_v + r (s_v + b_h))`: `h_t = (1 - u) v + u h_(t-1)`.
    Equations and order of gates (reset, update, new) are PyTorch's and those of Flax's `GRUCell`,
    with one bias for each of the first two. Biases start at zero, `w_h` orthogonal.

    Keeps `x`, the output and the gates. Backward, from the last step to the first, does one product
    a step; what is summed over steps is one product after it. See `docs/recurrent.md`.

    Args:
      features: how many hidden features, `o`.
      keep: as in `lstm`.

    Shapes, dtypes and lengths: as those of `lstm`.

    Source: Cho et al., arXiv:1406.1078; the place of the reset gate is that of cuDNN.

    Raises:
      ValueError: `features` is not positive or `keep` none of those; or, at init or forward, `x` is
        neither `[batch, time, i]` nor such a pair, does not go with the params, or has a length out
        of range.
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
    features, keep = whole_number(features, "features", 1), check_keep(keep)

    def init(key: Key[Array, ""], x: Any) -> GRUParams:
        x_key, h_key = drawing.split(key)
        return GRUParams(
            w_x=drawing.lecun_normal(x_key, (x.shape[-1], 3 * features), x.dtype),
            w_h=orthogonal(h_key, features, 3, x),
            b=jnp.zeros(3 * features, x.dtype),
            b_h=jnp.zeros(features, x.dtype),
        )

    # Index legend: t time, n batch, i inputs, o features.
    def forward(params: GRUParams, x: Inputs, state: Any) -> tuple[Hidden, Any, Any]:
        _check(params, x)
        b, b_h = (leaf.astype(wide_dtype(x.dtype)) for leaf in (params.b, params.b_h))

        def step(h: Float[Array, "n o"], a: Float[Array, "n go"]) -> tuple[Any, Any]:
            r, u, v, inside = _gates(a, product(h, params.w_h), b_h)
            h = (1 - u) * v + u * h
            return h, (h.astype(x.dtype), (r, u, v, inside) if keep == "gates" else None)

        state = jnp.zeros((x.shape[1], features), b.dtype) if state is None else state
        state = varying(state, params, x)
        state, (h, kept) = scan_over_inputs(step, state, x, params.w_x, b)
        return h, state, kept

    def backward(
        params: GRUParams, x: Inputs, h: Hidden, kept: Any, dh: Hidden
    ) -> tuple[GRUParams, Inputs]:
        h_before = before(h)
        kept = kept or _gates_again(params, x, h_before)
        da_ru, da_v, ds_v = _pull_gates(params, kept, h_before, dh)
        w_x_ru, w_x_v = jnp.split(params.w_x, [2 * features], axis=-1)
        w_h_ru, w_h_v = jnp.split(params.w_h, [2 * features], axis=-1)
        dw_x = sum_of_products(x, da_ru, w_x_ru), sum_of_products(x, da_v, w_x_v)
        dw_h = sum_of_products(h_before, da_ru, w_h_ru), sum_of_products(h_before, ds_v, w_h_v)
        db = da_ru.sum((0, 1)), da_v.sum((0, 1))
        dparams = GRUParams(
            w_x=jnp.concatenate(dw_x, axis=-1),
            w_h=jnp.concatenate(dw_h, axis=-1),
            b=jnp.concatenate(db).astype(params.b.dtype),
            b_h=ds_v.sum((0, 1)).astype(params.b_h.dtype),
        )
        return dparams, product(da_ru, w_x_ru.T) + product(da_v, w_x_v.T)

    return recurrent("gru", init, forward, backward)


def _pull_gates(
    params: GRUParams, kept: Kept, h_before: Hidden, dh: Hidden
) -> tuple[Float[Array, "t n ru"], Wide, Wide]:
    """`[da_r; da_u]`, `da_v` and `ds_v`."""

    def step(dh_after: Float[Array, "n o"], now: Any) -> tuple[Any, Any]:
        r, u, v, inside, h_before, dh = now
        dh = dh.astype(u.dtype) + dh_after
        da_v = (1 - u) * (1 - v) * (1 + v) * dh
        da_u = (h_before.astype(v.dtype) - v) * u * (1 - u) * dh
        ds_v = r * da_v
        da_ru = jnp.concatenate([inside * (1 - r) * ds_v, da_u], axis=-1)
        ds = jnp.concatenate([da_ru, ds_v], axis=-1)
        return product(ds, params.w_h.T) + u * dh, (da_ru, da_v, ds_v)

    start = varying(jnp.zeros_like(kept[0][0]), params, kept, h_before, dh)
    return jax.lax.scan(step, start, (*kept, h_before, dh), reverse=True)[1]


def _gates_again(params: GRUParams, x: Inputs, h_before: Hidden) -> tuple[Any, Any, Any, Any]:
    """The gates of all steps in one product."""
    b, b_h = (leaf.astype(wide_dtype(x.dtype)) for leaf in (params.b, params.b_h))
    return _gates(inputs(x, params.w_x, b), product(h_before, params.w_h), b_h)


def _gates(
    a: Float[Array, "*n go"], s: Float[Array, "*n go"], b_h: Float[Array, "o"]
) -> tuple[Any, Any, Any, Any]:
    """`r`, `u`, `v`, and what stands inside the reset gate, `s_v + b_h`."""
    (a_r, a_u, a_v), (s_r, s_u, s_v) = split(a, 3), split(s, 3)
    inside = s_v + lifted(b_h, s_v)
    r, u = jax.nn.sigmoid(a_r + s_r), jax.nn.sigmoid(a_u + s_u)
    return r, u, jnp.tanh(a_v + r * inside), inside


def _check(params: Any, x: Any) -> None:
    if not isinstance(params, GRUParams):
        raise TypeError(f"params must be GRUParams(w_x, w_h, b, b_h), got {type(params).__name__}")
    check_weights(params.w_x, x)
