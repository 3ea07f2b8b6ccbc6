"""Computing in one dtype with params in another."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.checks import check_floating_dtype
from funprop.decoding import through
from funprop.intended import meant_through
from funprop.layer import Layer, check_layer
from funprop.maps import around, map_layers
from funprop.params.frozen import trained
from funprop.params.roles import is_statistic
from funprop.params.tapped import map_plain
from funprop.quantities.closed_form import Booking, closed, closed_of
from funprop.quantities.curvature import curvature_of, curved, output_of, with_output
from funprop.residuals import with_own, without_own

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from funprop.typing import PyTree


def cast(layer: Layer, compute_dtype: DTypeLike, *, param_dtype: DTypeLike = jnp.float32) -> Layer:
    """The same layer computing in `compute_dtype`, its params made and kept in `param_dtype`.

    Float inputs are cast once, where they enter; params at each leaf of the model, in forward and
    again in backward. So the cast params are no residuals, a loop over layers holds those of one
    layer at a time, and `fused_update(cast(model, ...), optimizer)` updates params in their own
    dtype. Gradients come back in the dtypes of params and input; the output, and what is kept, is
    in `compute_dtype`; integers are untouched.
    Source: Micikevicius et al., arXiv:1710.03740 (mixed precision training).

    Args:
      layer: any layer; loss and metrics belong outside, as they compute in float32 at least.
      compute_dtype: of inputs, outputs, residuals.
      param_dtype: of the params that `init` makes.

    Raises:
      TypeError: a dtype is not floating.

    Example:
      >>> import funprop as fp
      >>> model = cast(fp.serial(fp.dense(4), fp.tanh()), jnp.bfloat16)
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> y, residuals = model.forward(params, jnp.ones((3, 5)))
      >>> dparams, dx = model.backward(params, residuals, y)
      >>> str(y.dtype), str(params[0].w.dtype), str(dparams[0].w.dtype), str(dx.dtype)
      ('bfloat16', 'float32', 'float32', 'float32')
    """
    check_layer("layer", layer)
    check_floating_dtype("compute_dtype", compute_dtype)
    check_floating_dtype("param_dtype", param_dtype)
    inside = map_layers(lambda leaf: _cast_params(leaf, compute_dtype, param_dtype), layer)
    return _cast_input(inside, compute_dtype)


def _cast_params(leaf: Layer, compute_dtype: DTypeLike, param_dtype: DTypeLike) -> Layer:
    def init(key: Any, x: PyTree) -> PyTree:
        return _params_to(param_dtype, leaf.init(key, _spec_in(param_dtype, x)))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return leaf.forward(_params_to(compute_dtype, params), x, key)

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        dparams, dx = leaf.backward(_params_to(compute_dtype, params), residuals, dy)
        return _floats_like(params, dparams), dx

    def on_cast(function: Any) -> Any:
        return function and (lambda p, *rest: function(_params_to(compute_dtype, p), *rest))

    if (known := closed_of(leaf)) is not None:
        on_params = {name: on_cast(getattr(known, name)) for name in ("squares", "rows", "each")}
        if (own := known.booked) is not None:
            on_params["booked"] = Booking(
                lambda budget: tuple(map(on_cast, own.passes(budget))),
                lambda p, *rest: _floats_like(p, on_cast(own.summed)(p, *rest)),
            )
        backward = closed(backward, **known._replace(**on_params)._asdict())
    if (curvature := curvature_of(leaf)) is not None:  # of what is kept, without params
        backward = curved(backward, curvature)
    if (output := output_of(leaf)) is not None:
        inner = _cast_params(output.layer, compute_dtype, param_dtype)
        backward = with_output(backward, output._replace(layer=inner))
    return dataclasses.replace(
        leaf,
        init=init,
        forward=forward,
        backward=backward,
        rebuild=None,
        decoding=through(leaf, lambda params: _floats_to(compute_dtype, params)),
        intended=meant_through(leaf, lambda params: _params_to(compute_dtype, params)),
    )


def _cast_input(inside: Layer, compute_dtype: DTypeLike) -> Layer:
    def init(key: Any, x: PyTree) -> PyTree:
        return inside.init(key, _spec_in(compute_dtype, x))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, residuals = inside.forward(params, _floats_to(compute_dtype, x), key)
        floats = [leaf.dtype for leaf in jax.tree.leaves(x) if trees.is_float(leaf)]
        return y, with_own(inside, residuals, trees.Static(tuple(floats)))

    def backward(params: PyTree, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        residuals, dtypes = without_own(inside, residuals)
        dparams, dx = inside.backward(params, residuals, dy)
        leaves, tree = jax.tree.flatten(dx)
        return dparams, tree.unflatten(
            leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes.value, strict=True)
        )

    return around(
        inside,
        lambda inside: _cast_input(inside, compute_dtype),
        init=init,
        forward=forward,
        backward=backward,
        decoding=through(inside, x_of=lambda x: _floats_to(compute_dtype, x)),
        intended=meant_through(inside, x_of=lambda x: _floats_to(compute_dtype, x)),
    )


def _floats_to(dtype: DTypeLike, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if trees.is_float(leaf) else leaf, tree)


def _params_to(dtype: DTypeLike, params: PyTree) -> PyTree:
    """`params` in `dtype`, all but statistics: these are sums over much data."""
    return jax.tree.map(
        lambda leaf, same: leaf if same or not trees.is_float(leaf) else leaf.astype(dtype),
        params,
        is_statistic(params),
    )


def _floats_like(like: PyTree, tree: PyTree) -> PyTree:
    """`tree` in the dtypes of `like`; where it has `None`, for an integer, that stays."""
    return map_plain(
        lambda d, leaf: None if d is None else d.astype(leaf.dtype), tree, trained(like)
    )


def _spec_in(dtype: DTypeLike, x: PyTree) -> PyTree:
    """The spec of `x` with its floats in `dtype` (in the widest allowed, for `float`)."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, dtype if trees.is_float(leaf) else leaf.dtype
        ),
        x,
    )
