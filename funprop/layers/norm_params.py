"""The params of normalisations, and what is done with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from funprop.trees import lifted, require_float

if TYPE_CHECKING:
    from funprop.typing import Array, Float

    X = Float[Array, "*shape c"]


class NormParams(NamedTuple):
    """The params of `layer_norm`, `rms_norm` and `group_norm`.

    Attributes:
      scale: `[c]`, starts at one; or `None`.
      bias: `[c]`, starts at zero; or `None`.
    """

    scale: Any
    bias: Any

    roles = {"scale": "scale", "bias": "bias"}


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


def cotangents(params: NormParams, *cotangents: Float[Array, "c"]) -> NormParams:
    """As `params`: in their dtypes, `None` in the place of `None`."""
    each = zip(params, cotangents, strict=True)
    return NormParams(*(None if p is None else d.astype(p.dtype) for p, d in each))


def initial(x: Any, scale: bool, bias: bool) -> NormParams:
    check_channels(x)
    shape = x.shape[-1:]
    return NormParams(
        scale=jnp.ones(shape, x.dtype) if scale else None,
        bias=jnp.zeros(shape, x.dtype) if bias else None,
    )


def check_params(params: Any, x: Any) -> None:
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
