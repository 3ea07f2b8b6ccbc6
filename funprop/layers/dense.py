"""The dense (affine, fully connected) layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax.nn import initializers

from funprop import trees
from funprop.drawing import he_normal, split
from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.quantities.outer import by_outer
from funprop.values import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Float, Key


class DenseParams(NamedTuple):
    """The params of `dense`.

    Attributes:
      w: weights, `[i, o]`.
      b: biases, `[o]`, or `None`.
    """

    w: Any
    b: Any

    roles = {"w": "weight", "b": "bias"}


@told(FORMULAS["dense"])
def dense(
    features: int,
    *,
    bias: bool = True,
    w_init: Callable[..., Array] = he_normal,
    b_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """`y = x w + b` over the last axis of `x`.

    Index legend: `n` any leading axes, taken together, `i` inputs, `o` outputs (`features`).

    Args:
      features: how many outputs.
      bias: whether `b` is added.
      w_init: initialiser of `w`, as those of `jax.nn.initializers`.
      b_init: initialiser of `b`.

    Shapes: `x [*batch, i]`, `y [*batch, o]`; params are made in the dtype of `x`.

    Raises:
      ValueError: `features` is not positive; or, at init or forward, `x` has no last axis or
        another one than `w` wants.
      TypeError: `x` is not of floating dtype, or the params are not `DenseParams`.

    Example:
      >>> import jax
      >>> affine = dense(3)
      >>> params = affine.init(jax.random.key(0), jnp.zeros((5, 2)))
      >>> y, residuals = affine.forward(params, jnp.ones((5, 2)))
      >>> dparams, dx = affine.backward(params, residuals, jnp.ones((5, 3)))
      >>> y.shape, dparams.w.shape, dparams.b.tolist(), dx.shape
      ((5, 3), (2, 3), [5.0, 5.0, 5.0], (5, 2))
    """
    features = whole_number(features, "features", 1)

    def init(key: Key[Array, ""], x: Any) -> DenseParams:
        _check_input(x)
        w_key, b_key = split(key)
        return DenseParams(
            w=w_init(w_key, (x.shape[-1], features), x.dtype),
            b=b_init(b_key, (features,), x.dtype) if bias else None,
        )

    def forward(
        params: DenseParams, x: Float[Array, "*batch i"]
    ) -> tuple[Float[Array, "*batch o"], Float[Array, "*batch i"]]:
        _check_params(params, x)
        y = x @ params.w
        return (y if params.b is None else y + trees.lifted(params.b, y)), x

    def backward(
        params: DenseParams, x: Float[Array, "*batch i"], dy: Float[Array, "*batch o"]
    ) -> tuple[DenseParams, Float[Array, "*batch i"]]:
        rows = dy.reshape(-1, dy.shape[-1])  # [n, o]
        dw = x.reshape(-1, x.shape[-1]).T @ rows  # dw[i,o] = sum_n x[n,i] dy[n,o]
        db = None if params.b is None else rows.sum(0).astype(params.b.dtype)
        dx = dy @ params.w.T  # dx[n,i] = sum_o dy[n,o] w[i,o]
        return DenseParams(dw.astype(params.w.dtype), db), dx.astype(x.dtype)

    def taken(
        x: Float[Array, "b *t i"], dy: Float[Array, "b *t o"]
    ) -> tuple[Float[Array, "b t i"], Float[Array, "b t o"]]:
        t = math.prod(x.shape[1:-1])
        return x.reshape(len(x), t, x.shape[-1]), dy.reshape(len(dy), t, dy.shape[-1])

    marked = by_outer(backward, taken)
    return layer(init=init, forward=forward, backward=marked, name="dense", pointwise=True)


def _check_input(x: Any) -> None:
    trees.require_float(x)
    if x.ndim < 1 or not x.shape[-1]:
        got = f"shape {tuple(x.shape)}" if x.ndim else "a scalar"
        raise ValueError(f"x must have a last axis of inputs, got {got}")


def _check_params(params: Any, x: Any) -> None:
    _check_input(x)
    if not isinstance(params, DenseParams):
        raise TypeError(f"params must be DenseParams(w, b), got {type(params).__name__}")
    if jnp.ndim(params.w) != 2 or params.w.shape[0] != x.shape[-1]:
        raise ValueError(
            f"x must have a last axis of {params.w.shape[0]} to go with w of shape "
            f"{tuple(params.w.shape)}, got x of shape {tuple(x.shape)}"
        )
