"""Gated linear units: one half of the features switches the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.decoding import Decoding, decoding_of
from funprop.formula import told
from funprop.layer import Layer, check_layer, recorded
from funprop.layers.formulas import FORMULAS
from funprop.trees import require_float

if TYPE_CHECKING:
    from funprop.typing import Array, Float


@told(FORMULAS["gated"])
def gated(activation: Layer) -> Layer:
    """`y = f(a) b`, with `a` and `b` the two halves of `x`; `f` any activation.

    `serial(dense(2 h, bias=False), gated(silu()), dense(d, bias=False))` is SwiGLU, with `gelu()`
    in its place GEGLU. Keeps `x` alone; `f(a)` is computed again. Backward:
    `db = f(a) dy`, and `da` is the activation's own backward at `b dy`.

    Shapes: `x [*batch, 2 h]`, `y [*batch, h]`. Params: those of `f`.
    Residuals: its records, `x` and the key.

    Source: Shazeer, arXiv:2002.05202.

    Raises:
      ValueError: at forward, `x` has an odd number of features.

    Example:
      >>> import funprop as fp
      >>> y, kept = gated(fp.relu()).forward((), jnp.array([1.0, -1.0, 5.0, 7.0]))
      >>> y.tolist()
      [5.0, 0.0]
      >>> gated(fp.relu()).backward((), kept, jnp.ones(2))[1].tolist()
      [5.0, 0.0, 1.0, 0.0]
    """
    check_layer("activation", activation, "silu()")

    def init(key: Any, x: Any) -> Any:
        _check(x)
        half = jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
        return activation.init(key, half)

    def forward(
        params: Any, x: Float[Array, "*batch 2h"], key: Any = None
    ) -> tuple[Float[Array, "*batch h"], Any]:
        _check(x)
        a, b = jnp.split(x, 2, -1)
        y, kept = activation.forward(params, a, key)
        return y * b, (recorded(kept), x, key)

    def backward(params: Any, residuals: Any, dy: Float[Array, "*batch h"]) -> tuple[Any, Any]:
        _, x, key = residuals
        a, b = jnp.split(x, 2, -1)
        y, kept = activation.forward(params, a, key)
        dparams, da = activation.backward(params, kept, dy * b)
        return dparams, jnp.concatenate([da, dy * y], -1)

    inner = decoding_of(activation)

    def prefill(params: Any, x: Float[Array, "b t 2h"], length: int) -> tuple[Any, Any]:
        a, b = jnp.split(x, 2, -1)
        y, cache = inner.prefill(params, a, length)
        return y * b, cache

    def advance(params: Any, cache: Any, x: Float[Array, "b 1 2h"]) -> tuple[Any, Any]:
        a, b = jnp.split(x, 2, -1)
        y, cache = inner.advance(params, cache, a)
        return y * b, cache

    decoding = Decoding(prefill, advance)
    return Layer(init, forward, backward, "gated", (activation,), gated, decoding=decoding)


def _check(x: Any) -> None:
    require_float(x)
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(f"x must have an even number of features, got shape {tuple(x.shape)}")
