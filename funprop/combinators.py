"""Layers made of layers. Each only assembles what its children return, in the structure of params;
so whatever a rewrite puts in the place of `dparams` travels through all of them alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.checks import check_function
from funprop.decoding import of_parallel, of_repeat, of_residual, of_serial, through
from funprop.drawing import copies
from funprop.formula import Formula
from funprop.keys import split_key, stacked_keys
from funprop.layer import Layer, output_spec
from funprop.located import located
from funprop.looping import looping
from funprop.names import params_of
from funprop.params.frozen import trained, with_trained
from funprop.params.statistics import without_place
from funprop.params.updating import is_updating, scan_in_place
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree


def serial(*layers: Layer) -> Layer:
    """One layer after the other; `serial()` is the identity.

    Backward is the chain rule: from the last layer to the first, each cotangent of an output is
    the one of the next layer's input.

    Params: by name, one entry a layer; of one layer alone, that layer's. Residuals: a tuple.

    Raises:
      ValueError: at init or forward, from the first layer whose input does not fit, with its path.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.dense(4), fp.relu(), fp.dense(2))
      >>> params = model.init(jax.random.key(0), jnp.zeros((3, 5)))
      >>> y, residuals = model.forward(params, jnp.ones((3, 5)))
      >>> dparams, dx = model.backward(params, residuals, jnp.ones_like(y))
      >>> y.shape, dparams.dense_1.w.shape, dx.shape
      ((3, 2), (4, 2), (3, 5))
    """
    parts = located(layers)

    def init(key: Any, x: PyTree) -> PyTree:
        params = []
        for part, part_key in zip(parts, split_key(key, len(parts)), strict=True):
            params.append(part.init(part_key, x))
            x = output_spec(part, params[-1], x)
        return params_of(layers, params)

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree, ...]]:
        residuals = []
        for part, p, k in zip(parts, node.split(params), split_key(key, len(parts)), strict=True):
            x, kept = part.forward(p, x, k)
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        dparams = []
        for part, p, kept in reversed(list(zip(parts, node.split(params), residuals, strict=True))):
            dp, dy = part.backward(p, kept, dy)
            dparams.append(dp)
        return node.join(params, dparams[::-1]), dy

    decoding = of_serial(parts, lambda params: node.split(params))
    node = Layer(init, forward, backward, "serial", layers, serial, decoding=decoding)
    return node


def residual(layer: Layer) -> Layer:
    """`y = x + f(x)`; backward: `dx = dy + f'(x)^T dy`.

    Params: those of `f`. Residuals: a tuple of one.

    Raises:
      ValueError: at init or forward, `f(x)` differs from `x` in shape or dtype.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> block = fp.residual(fp.tanh())
      >>> y, kept = block.forward((), jnp.zeros(3))
      >>> block.backward((), kept, jnp.ones(3))[1].tolist()
      [2.0, 2.0, 2.0]
    """
    (part,) = located((layer,))

    def init(key: Any, x: PyTree) -> PyTree:
        params = part.init(key, x)
        check_same(layer, x, output_spec(part, params, x))
        return params

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree]]:
        y, kept = part.forward(params, x, key)
        check_same(layer, x, y)
        return trees.add(x, y), (kept,)

    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        dparams, dx = part.backward(params, residuals[0], dy)
        return dparams, trees.add(dy, dx)

    decoding = of_residual(part)
    told = Formula("y = x + f", "dx = dy; df = dy", "y = x + f", r"dx = dy;\quad df = dy")
    return Layer(
        init, forward, backward, "residual", (layer,), residual, decoding=decoding, formula=told
    )


def parallel(*branches: Layer) -> Layer:
    """Every branch on the same input; the output is the tuple of their outputs.

    A layer after it merges them: `serial(parallel(a, b), add())` sums the branches,
    `serial(parallel(a, b), concatenate())` joins them. Backward adds the branches' `dx`.

    Params: by name, one entry a branch; of one branch alone, that branch's. Residuals: a tuple.

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

    def init(key: Any, x: PyTree) -> PyTree:
        keys = split_key(key, len(parts))
        return params_of(branches, (p.init(k, x) for p, k in zip(parts, keys, strict=True)))

    def forward(
        params: Any, x: PyTree, key: Any = None
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        each = zip(parts, node.split(params), split_key(key, len(parts)), strict=True)
        both = [part.forward(p, x, k) for part, p, k in each]
        return tuple(y for y, _ in both), tuple(kept for _, kept in both)

    def backward(params: Any, residuals: Any, dy: Any) -> tuple[PyTree, PyTree]:
        each = zip(parts, node.split(params), residuals, dy, strict=True)
        both = [part.backward(p, kept, d) for part, p, kept, d in each]
        dx = functools.reduce(trees.add, (dx for _, dx in both))
        return node.join(params, [dp for dp, _ in both]), dx

    decoding = of_parallel(parts, lambda params: node.split(params))
    node = Layer(init, forward, backward, "parallel", branches, parallel, decoding=decoding)
    return node


def repeat(layer: Layer, n: int) -> Layer:
    """`n` copies of one layer, each with params of its own, one after the other under `lax.scan`.

    Compiled once, whatever `n` is. Backward is a scan too, from the last copy to the first; params
    that their own backward updates (`fused_update`) are updated where they are.

    Params: those of the layer, each leaf with a leading axis of `n`. Residuals: a tuple of one, its
    leaves alike.

    Raises:
      ValueError: `n` is not positive; or, at init or forward, the layer's output differs from its
        input in shape or dtype.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> deep = fp.repeat(fp.residual(fp.serial(fp.dense(5), fp.tanh())), 12)
      >>> params = deep.init(jax.random.key(0), jnp.zeros((3, 5)))
      >>> params.dense.w.shape, deep.forward(params, jnp.zeros((3, 5)))[0].shape
      ((12, 5, 5), (3, 5))
    """
    n = whole_number(n, "n", 1)
    (part,) = located((layer,))
    draw = copies(part.init, n)

    def init(key: Any, x: PyTree) -> PyTree:
        params = draw(key, x)
        one = jax.eval_shape(part.init, key, x)
        check_same(layer, x, output_spec(part, one, x))
        return params

    @looping()
    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree]]:
        for leaf in jax.tree.leaves(params):
            if leaf.shape[:1] != (n,):
                raise ValueError(f"params must have a leading axis of {n}, got {leaf.shape}")
        keys = stacked_keys(key, n)

        def one(x: PyTree, copy: Any) -> tuple[PyTree, PyTree]:
            y, kept = part.forward(copy[0], x, copy[1])
            check_same(layer, x, y)
            return y, kept

        y, kept = jax.lax.scan(one, x, (params, keys), length=n)
        return y, (kept,)

    @looping()
    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        def one(dy: PyTree, copy: Any) -> tuple[PyTree, PyTree]:
            dparams, dx = part.backward(copy[0], copy[1], dy)
            return dx, dparams

        if is_updating(params):
            dx, updated = scan_in_place(one, dy, params, residuals[0])
            return updated, dx
        dx, dparams = jax.lax.scan(one, dy, (params, residuals[0]), length=n, reverse=True)
        return dparams, dx

    def rebuild(child: Layer, copies: int = n) -> Layer:
        return repeat(child, copies)

    decoding = of_repeat(part, n)
    return Layer(init, forward, backward, "repeat", (layer,), rebuild, copies=n, decoding=decoding)


def reparam(
    layer: Layer,
    expand: Callable[[PyTree], PyTree],
    *,
    initial: Callable[[PyTree], PyTree] = lambda params: params,
    shrink: Callable[[PyTree, PyTree], PyTree] | None = None,
    hands_on: bool = False,
) -> Layer:
    """`layer` with params computed from others: tied weights, adapters, weight normalisation.

    The one place where a param is used more than once, and so where its gradients are summed.

    Args:
      layer: sees `expand(params)` as its params.
      expand: from the params that are trained to those that `layer` wants; differentiable.
      initial: from the params that `layer.init` gives to those that are trained.
      shrink: the hand-written pullback of `expand`, `(params, dexpanded) -> dparams`; without it,
        `jax.vjp(expand)`.
      hands_on: that `expand` gives the params of a part on as it got them, whatever they are, so
        that parts of `layer` may be frozen or adapted.

    Params: those that are trained. Residuals: a tuple of one.

    Example (the second dense layer uses the first one's weights, transposed):
      >>> import jax.numpy as jnp, funprop as fp
      >>> autoencoder = fp.reparam(
      ...     fp.serial(fp.dense(2, bias=False), fp.dense(5, bias=False)),
      ...     expand=lambda w: (fp.DenseParams(w, None), fp.DenseParams(w.T, None)),
      ...     initial=lambda params: params[0].w,
      ... )
      >>> params = autoencoder.init(jax.random.key(0), jnp.zeros((3, 5)))
      >>> y, kept = autoencoder.forward(params, jnp.ones((3, 5)))
      >>> params.shape, autoencoder.backward(params, kept, y)[0].shape
      ((5, 2), (5, 2))
    """
    (part,) = located((layer,))
    check_function("expand", expand, "from the params that are trained to those of layer")
    check_function("initial", initial, "from the params of layer to those that are trained")
    if shrink is not None:
        check_function("shrink", shrink, "(params, dexpanded) -> dparams")

    def init(key: Any, x: PyTree) -> PyTree:
        return initial(part.init(key, x))

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree]]:
        y, kept = part.forward(expand(params), x, key)
        return y, (kept if hands_on else without_place(kept),)

    def backward(params: Any, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
        # The expanded params are made again: residuals hold no copy of weights.
        if shrink is not None:
            dexpanded, dx = part.backward(expand(params), residuals[0], dy)
            return shrink(params, dexpanded), dx
        expanded, pullback = jax.vjp(expand, params)
        dexpanded, dx = part.backward(expanded, residuals[0], dy)
        # What is not trained has no cotangent, where the pullback wants one.
        full = with_trained(jax.tree.map(jnp.zeros_like, expanded), dexpanded)
        return trained(pullback(full)[0]), dx

    def rebuild(child: Layer) -> Layer:
        return reparam(child, expand, initial=initial, shrink=shrink, hands_on=hands_on)

    return Layer(
        *(init, forward, backward, "reparam", (layer,), rebuild),
        shares=True,
        hands_on=hands_on,
        decoding=through(part, expand),
    )


def check_same(layer: Layer, x: PyTree, y: PyTree) -> None:
    """Raise where `y`, the output of `layer`, differs from `x` in shape or dtype."""
    want, got = (jax.tree.map(trees.spec_string, tree) for tree in (x, y))
    if want != got:
        raise ValueError(f"{layer.name} must give the shape and dtype it takes, {want}, got {got}")
