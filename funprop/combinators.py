"""Layers made of layers. Each only assembles what its children return, in the structure of params;
so whatever a rewrite puts in the place of `dparams` travels through all of them alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop import trees
from funprop.layer import Layer, output_spec, split_key
from funprop.located import located
from funprop.params.updating import is_updating, scan_in_place

if TYPE_CHECKING:
    from jaxtyping import PyTree


def serial(*layers: Layer) -> Layer:
    """One layer after the other; `serial()` is the identity.

    Backward is the chain rule: from the last layer to the first, each cotangent of an output is
    the one of the next layer's input.

    Params and residuals: a tuple, one entry a layer.

    Raises:
      ValueError: at init or forward, from the first layer whose input does not fit, with its path.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.dense(4), fp.relu(), fp.dense(2))
      >>> params = model.init(jax.random.key(0), jnp.zeros((3, 5)))
      >>> y, residuals = model.forward(params, jnp.ones((3, 5)))
      >>> dparams, dx = model.backward(params, residuals, jnp.ones_like(y))
      >>> y.shape, dparams[2].w.shape, dx.shape
      ((3, 2), (4, 2), (3, 5))
    """
    parts = located(layers)

    def init(key: Any, x: PyTree) -> tuple[PyTree, ...]:
        params = []
        for part, part_key in zip(parts, split_key(key, len(parts)), strict=True):
            params.append(part.init(part_key, x))
            x = output_spec(part, params[-1], x)
        return tuple(params)

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree, ...]]:
        _check_count(params, parts)
        residuals = []
        for part, p, k in zip(parts, params, split_key(key, len(parts)), strict=True):
            x, kept = part.forward(p, x, k)
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[tuple[PyTree, ...], PyTree]:
        dparams = []
        for part, p, kept in reversed(list(zip(parts, params, residuals, strict=True))):
            dp, dy = part.backward(p, kept, dy)
            dparams.append(dp)
        return tuple(reversed(dparams)), dy

    return Layer(init, forward, backward, "serial", layers, serial)


def residual(layer: Layer) -> Layer:
    """`y = x + f(x)`; backward: `dx = dy + f'(x)^T dy`.

    Params and residuals: a tuple of one.

    Raises:
      ValueError: at init or forward, `f(x)` differs from `x` in shape or dtype.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> block = fp.residual(fp.tanh())
      >>> y, kept = block.forward(((),), jnp.zeros(3))
      >>> block.backward(((),), kept, jnp.ones(3))[1].tolist()
      [2.0, 2.0, 2.0]
    """
    (part,) = located((layer,))

    def init(key: Any, x: PyTree) -> tuple[PyTree]:
        params = part.init(key, x)
        _check_same(layer, x, output_spec(part, params, x))
        return (params,)

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree]]:
        _check_count(params, (part,))
        y, kept = part.forward(params[0], x, key)
        _check_same(layer, x, y)
        return trees.add(x, y), (kept,)

    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[tuple[PyTree], PyTree]:
        dparams, dx = part.backward(params[0], residuals[0], dy)
        return (dparams,), trees.add(dy, dx)

    return Layer(init, forward, backward, "residual", (layer,), residual)


def parallel(*branches: Layer) -> Layer:
    """Every branch on the same input; the output is the tuple of their outputs.

    A layer after it merges them: `serial(parallel(a, b), add())` sums the branches,
    `serial(parallel(a, b), concatenate())` joins them. Backward adds the branches' `dx`.

    Params and residuals: a tuple, one entry a branch.

    Raises:
      ValueError: there are no branches.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> wide = fp.serial(fp.parallel(fp.dense(4), fp.tanh()), fp.concatenate())
      >>> params = wide.init(jax.random.key(0), jnp.zeros((3, 5)))
      >>> wide.forward(params, jnp.zeros((3, 5)))[0].shape
      (3, 9)
    """
    if not branches:
        raise ValueError("parallel must have at least one branch, got none")
    parts = located(branches)

    def init(key: Any, x: PyTree) -> tuple[PyTree, ...]:
        keys = split_key(key, len(parts))
        return tuple(part.init(k, x) for part, k in zip(parts, keys, strict=True))

    def forward(
        params: Any, x: PyTree, key: Any = None
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        _check_count(params, parts)
        keys = split_key(key, len(parts))
        both = [part.forward(p, x, k) for part, p, k in zip(parts, params, keys, strict=True)]
        return tuple(y for y, _ in both), tuple(kept for _, kept in both)

    def backward(params: Any, residuals: Any, dy: Any) -> tuple[tuple[PyTree, ...], PyTree]:
        both = [
            part.backward(p, kept, d)
            for part, p, kept, d in zip(parts, params, residuals, dy, strict=True)
        ]
        return tuple(dp for dp, _ in both), functools.reduce(trees.add, (dx for _, dx in both))

    return Layer(init, forward, backward, "parallel", branches, parallel)


def repeat(layer: Layer, n: int) -> Layer:
    """`n` copies of one layer, each with params of its own, one after the other under `lax.scan`.

    Compiled once, whatever `n` is. Backward is a scan too, from the last copy to the first; params
    that their own backward updates (`fused_update`) are updated where they are.

    Params and residuals: a tuple of one, whose leaves have a leading axis of `n`.

    Raises:
      ValueError: `n` is not positive; or, at init or forward, the layer's output differs from its
        input in shape or dtype.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> deep = fp.repeat(fp.residual(fp.serial(fp.dense(5), fp.tanh())), 12)
      >>> params = deep.init(jax.random.key(0), jnp.zeros((3, 5)))
      >>> params[0][0][0].w.shape, deep.forward(params, jnp.zeros((3, 5)))[0].shape
      ((12, 5, 5), (3, 5))
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    (part,) = located((layer,))

    def init(key: Any, x: PyTree) -> tuple[PyTree]:
        params = jax.vmap(lambda key: part.init(key, x))(jax.random.split(key, n))
        one = jax.eval_shape(part.init, key, x)
        _check_same(layer, x, output_spec(part, one, x))
        return (params,)

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree]]:
        _check_count(params, (part,))
        for leaf in jax.tree.leaves(params):
            if leaf.shape[:1] != (n,):
                raise ValueError(f"params must have a leading axis of {n}, got {leaf.shape}")
        keys = None if key is None else jax.random.split(key, n)

        def one(x: PyTree, copy: Any) -> tuple[PyTree, PyTree]:
            y, kept = part.forward(copy[0], x, copy[1])
            _check_same(layer, x, y)
            return y, kept

        y, kept = jax.lax.scan(one, x, (params[0], keys), length=n)
        return y, (kept,)

    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[tuple[PyTree], PyTree]:
        def one(dy: PyTree, copy: Any) -> tuple[PyTree, PyTree]:
            dparams, dx = part.backward(copy[0], copy[1], dy)
            return dx, dparams

        if is_updating(params[0]):
            dx, updated = scan_in_place(one, dy, params[0], residuals[0])
            return (updated,), dx
        copies = (params[0], residuals[0])
        dx, dparams = jax.lax.scan(one, dy, copies, length=n, reverse=True)
        return (dparams,), dx

    def rebuild(child: Layer) -> Layer:
        return repeat(child, n)

    return Layer(init, forward, backward, "repeat", (layer,), rebuild, copies=n)


def reparam(
    layer: Layer,
    expand: Callable[[PyTree], PyTree],
    *,
    initial: Callable[[PyTree], PyTree] = lambda params: params,
    shrink: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Layer:
    """`layer` with params computed from others: tied weights, adapters, weight normalisation.

    The one place where a param is used more than once, and so where its gradients are summed.

    Args:
      layer: sees `expand(params)` as its params.
      expand: from the params that are trained to those that `layer` wants; differentiable.
      initial: from the params that `layer.init` gives to those that are trained.
      shrink: the hand-written pullback of `expand`, `(params, dexpanded) -> dparams`; without it,
        `jax.vjp(expand)`.

    Params and residuals: a tuple of one.

    Example (the second dense layer uses the first one's weights, transposed):
      >>> import jax.numpy as jnp, funprop as fp
      >>> autoencoder = fp.reparam(
      ...     fp.serial(fp.dense(2, bias=False), fp.dense(5, bias=False)),
      ...     expand=lambda w: (fp.DenseParams(w, None), fp.DenseParams(w.T, None)),
      ...     initial=lambda params: params[0].w,
      ... )
      >>> params = autoencoder.init(jax.random.key(0), jnp.zeros((3, 5)))
      >>> y, kept = autoencoder.forward(params, jnp.ones((3, 5)))
      >>> params[0].shape, autoencoder.backward(params, kept, y)[0][0].shape
      ((5, 2), (5, 2))
    """
    (part,) = located((layer,))

    def init(key: Any, x: PyTree) -> tuple[PyTree]:
        return (initial(part.init(key, x)),)

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree]]:
        _check_count(params, (part,))
        y, kept = part.forward(expand(params[0]), x, key)
        return y, (kept,)

    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[tuple[PyTree], PyTree]:
        # The expanded params are made again: residuals hold no copy of weights.
        if shrink is not None:
            dexpanded, dx = part.backward(expand(params[0]), residuals[0], dy)
            return (shrink(params[0], dexpanded),), dx
        expanded, pullback = jax.vjp(expand, params[0])
        dexpanded, dx = part.backward(expanded, residuals[0], dy)
        return pullback(dexpanded), dx

    def rebuild(child: Layer) -> Layer:
        return reparam(child, expand, initial=initial, shrink=shrink)

    return Layer(init, forward, backward, "reparam", (layer,), rebuild, shares=True)


def _check_count(params: Any, parts: tuple[Layer, ...]) -> None:
    if not isinstance(params, tuple) or len(params) != len(parts):
        got = f"{len(params)}" if isinstance(params, tuple) else type(params).__name__
        raise ValueError(f"params must be a tuple of {len(parts)}, one a layer, got {got}")


def _check_same(layer: Layer, x: PyTree, y: PyTree) -> None:
    """Raise where `y`, the output of `layer`, differs from `x` in shape or dtype."""
    want, got = (jax.tree.map(trees.spec_string, tree) for tree in (x, y))
    if want != got:
        raise ValueError(f"{layer.name} must give the shape and dtype it takes, {want}, got {got}")
