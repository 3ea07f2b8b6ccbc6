"""The long short-term memory."""

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
from funprop.trees import wide_dtype
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Key

    Inputs = Float[Array, "t n i"]
    Hidden = Float[Array, "t n o"]
    Wide = Float[Array, "t n o"]  # in float32 at least
    Kept = tuple[Wide, Wide, Wide, Wide, Wide]  # i, f, g, o and c of the step before


class LSTMParams(NamedTuple):
    """The params of `lstm`, the four gates beside each other in the order input, forget, cell,
    output.

    Attributes:
      w_x: weights of the input, `[i, 4 o]`.
      w_h: weights of the hidden state, `[o, 4 o]`.
      b: biases, `[4 o]`.
    """

    w_x: Any
    w_h: Any
    b: Any

    roles = {"w_x": "weight", "w_h": "weight", "b": "bias"}


def lstm(features: int, *, keep: str = "gates") -> Layer:
    """A long short-term memory over time, from zero; gives the hidden state at every step.

    With `z = x_t w_x + h_(t-1) w_h + b` cut in four, `i, f, o` the sigmoids of theirs and `g` the
    tanh: `c_t = f c_(t-1) + i g` and `h_t = o tanh(c_t)`. Equations and order of gates (i, f, g, o)
    are PyTorch's and those of Flax's `OptimizedLSTMCell`, with one bias. It starts at one for the
    forget gate, so that a cell remembers at first (Jozefowicz et al., 2015), and else at zero;
    `w_h` starts orthogonal.

    Keeps `x`, the output, gates and cells: five arrays as large as the output, where autodiff keeps
    eight and more. Backward, from the last step to the first, does one product a step; what is
    summed over steps (`dw_x`, `dw_h`, `db`) is one product after it. See `docs/recurrent.md`.

    Args:
      features: how many hidden features, `o`.
      keep: "gates" to be fast; "output" to keep `x` and the output alone, from which backward makes
        gates and cells again, all gates in one product (`remat` would go step by step).

    Shapes: `x [batch, time, i]`, `y [batch, time, o]`; or `(x, lengths)` and `(y, lengths)`, with
    integers `lengths [batch]` from 0 to time. `y` is zero behind a sequence, and nothing that
    stands there in `x` has an effect. Params are made in the dtype of `x`; gates and cells are
    computed in float32 at least.

    A length out of range raises where its value is known. Inside `jit`, where it is not, it makes
    its sequence NaN, so that it cannot pass unseen, and
    `checkify.checkify(f, errors=checkify.nan_checks)` says where.

    Source: Hochreiter and Schmidhuber, Neural Computation 9 (1997); the forget gate: Gers,
    Schmidhuber and Cummins, Neural Computation 12 (2000).

    Raises:
      ValueError: `features` is not positive or `keep` none of those; or, at init or forward, `x` is
        neither `[batch, time, i]` nor such a pair, does not go with the params, or has a length out
        of range.
      TypeError: `x` is not of floating dtype, the lengths are not integers, or the params are not
        `LSTMParams`.

    Example:
      >>> x = jnp.ones((2, 5, 3)), jnp.array([5, 2])
      >>> params = lstm(4).init(jax.random.key(0), x)
      >>> (y, lengths), kept = lstm(4).forward(params, x)
      >>> y.shape, bool((y[1, 2:] == 0).all())
      ((2, 5, 4), True)
    """
    features, keep = whole_number(features, "features", 1), check_keep(keep)

    def init(key: Key[Array, ""], x: Any) -> LSTMParams:
        x_key, h_key = drawing.split(key)
        return LSTMParams(
            w_x=drawing.lecun_normal(x_key, (x.shape[-1], 4 * features), x.dtype),
            w_h=orthogonal(h_key, features, 4, x),
            b=jnp.zeros(4 * features, x.dtype).at[features : 2 * features].set(1),
        )

    # Index legend: t time, n batch, i inputs, o features.
    def forward(params: LSTMParams, x: Inputs, state: Any) -> tuple[Hidden, Any, Any]:
        _check(params, x)
        b = params.b.astype(wide_dtype(x.dtype))
        zero = jnp.zeros((x.shape[1], features), b.dtype)
        state = (zero.astype(x.dtype), zero) if state is None else state
        state = varying(state, params, x)

        def step(state: tuple[Any, Any], z_x: Float[Array, "n go"]) -> tuple[Any, Any]:
            h, c_before = state
            i, f, g, o = _gates(z_x + product(h, params.w_h))
            c = f * c_before + i * g
            h = (o * jnp.tanh(c)).astype(x.dtype)
            return (h, c), (h, (i, f, g, o, c_before) if keep == "gates" else None)

        state, (h, kept) = scan_over_inputs(step, state, x, params.w_x, b)
        return h, state, kept

    def backward(
        params: LSTMParams, x: Inputs, h: Hidden, kept: Any, dh: Hidden
    ) -> tuple[LSTMParams, Inputs]:
        h_before = before(h)
        dz = _dz(params, kept, dh) if kept else _dz_again(params, x, h_before, dh)
        dparams = LSTMParams(
            w_x=sum_of_products(x, dz, params.w_x),
            w_h=sum_of_products(h_before, dz, params.w_h),
            b=dz.sum((0, 1)).astype(params.b.dtype),
        )
        return dparams, product(dz, params.w_x.T)

    return recurrent("lstm", init, forward, backward)


def _dz(params: LSTMParams, kept: Kept, dh: Hidden) -> Float[Array, "t n go"]:
    """The cotangent of what goes into the gates, by the gates and cells that forward kept."""

    def step(state: tuple[Any, Any], now: Any) -> tuple[Any, Any]:
        dh_after, dc_after = state
        i, f, g, o, c_before, dh = now
        tanh_c = jnp.tanh(f * c_before + i * g)
        dh = dh.astype(f.dtype) + dh_after
        dc = dc_after + o * (1 - tanh_c) * (1 + tanh_c) * dh
        dz = [
            i * (1 - i) * g * dc,
            f * (1 - f) * c_before * dc,
            i * (1 - g) * (1 + g) * dc,
            o * (1 - o) * tanh_c * dh,
        ]
        dz = jnp.concatenate(dz, axis=-1)
        return (product(dz, params.w_h.T), f * dc), dz

    zero = jnp.zeros_like(kept[0][0])
    start = varying((zero, zero), params, kept, dh)
    return jax.lax.scan(step, start, (*kept, dh), reverse=True)[1]


def _dz_again(
    params: LSTMParams, x: Inputs, h_before: Hidden, dh: Hidden
) -> Float[Array, "t n go"]:
    """The same without them: all gates again in one product, cells in a scan without a product, and
    all that `dh` and `dc` are multiplied with before the scan that goes back."""
    b = params.b.astype(wide_dtype(x.dtype))
    i, f, g, o = _gates(inputs(x, params.w_x, b) + product(h_before, params.w_h))
    _, c = jax.lax.scan(_cell, jnp.zeros_like(i[0]), (f, i * g))
    tanh_c = jnp.tanh(c)
    # What dc is multiplied with in the first three quarters of dz, dh in the last, dh in dc.
    to_z = (
        i * (1 - i) * g,
        f * (1 - f) * before(c),
        i * (1 - g) * (1 + g),
        o * (1 - o) * tanh_c,
    )
    to_c = o * (1 - tanh_c) * (1 + tanh_c)

    def step(state: tuple[Any, Any], now: Any) -> tuple[Any, Any]:
        dh_after, dc_after = state
        dh, (to_i, to_f, to_g, to_o), to_c, f = now
        dh = dh.astype(f.dtype) + dh_after
        dc = dc_after + to_c * dh
        dz = jnp.concatenate([to_i * dc, to_f * dc, to_g * dc, to_o * dh], axis=-1)
        return (product(dz, params.w_h.T), f * dc), dz

    zero = jnp.zeros_like(i[0])
    start = varying((zero, zero), params, dh, f)
    return jax.lax.scan(step, start, (dh, to_z, to_c, f), reverse=True)[1]


def _gates(z: Float[Array, "*n go"]) -> tuple[Any, Any, Any, Any]:
    i, f, g, o = split(z, 4)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _cell(c: Float[Array, "n o"], now: tuple[Any, Any]) -> tuple[Any, Any]:
    forget, new = now
    c = forget * c + new
    return c, c


def _check(params: Any, x: Any) -> None:
    if not isinstance(params, LSTMParams):
        raise TypeError(f"params must be LSTMParams(w_x, w_h, b), got {type(params).__name__}")
    check_weights(params.w_x, x)
