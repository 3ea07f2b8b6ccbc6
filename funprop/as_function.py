"""Any layer as an ordinary JAX function, differentiated by its hand-written backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.checks import check_key, check_numbers
from funprop.cotangents import fitting, one_each
from funprop.layer import Layer, check_layer
from funprop.linear_map import linear_map
from funprop.params.tapped import untap

if TYPE_CHECKING:
    from funprop.typing import PyTree


def as_function(layer: Layer) -> Callable[..., PyTree]:
    """A layer as an ordinary JAX function whose derivative is the hand-written backward.

    Reverse mode runs `layer.backward` as it is. `backward` is linear in `dy`, so forward mode
    (`jax.jvp`, `jax.linearize`, `jax.jacfwd`) runs its transpose, made by JAX. Both can be
    differentiated again, and so `jax.hessian` goes through the hand-written pass: by `dy` by its
    rule, by params and input as JAX differentiates its code.

    Returns:
      `(params, x, key=None) -> y`, a `jax.custom_jvp`: `jax.grad` of any function around it runs
      `layer.backward`, where `jax.grad` over a bare `layer.forward` would bypass it.

    Raises:
      TypeError: `layer` is none; or, when called, `x` is no numbers or `key` no key; or, when
        differentiated, `backward` gives a cotangent of another shape than what it is of, or, in
        forward mode, cannot be transposed: it has a while loop or a callback in it.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> relu = as_function(fp.relu())
      >>> jax.grad(lambda x: relu((), x).sum())(jnp.array([-1.0, 2.0])).tolist()
      [0.0, 1.0]
      >>> tanh = as_function(fp.tanh())
      >>> float(jax.jvp(lambda x: tanh((), x), (jnp.array(0.0),), (jnp.array(2.0),))[1])
      2.0
    """
    check_layer("layer", layer)

    @jax.custom_jvp
    def function(params: PyTree, x: PyTree, key: Any) -> PyTree:
        return layer.forward(params, x, key)[0]

    @function.defjvp
    def _(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
        y, residuals = layer.forward(*primals)
        y = of_rule(y, *primals[:2], residuals)
        return y, _tangent(layer, y, residuals, primals[:2], tangents[:2])

    @jax.custom_jvp
    def of_rule(y: PyTree, params: PyTree, x: PyTree, residuals: PyTree) -> PyTree:
        """`y`, with its derivative by the rule: a rule that is differentiated is code as any other,
        and the `y` in it would have that of `forward`."""
        return y

    @of_rule.defjvp
    def _(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
        y, params, x, residuals = primals
        y = of_rule(y, params, x, residuals)
        return y, _tangent(layer, y, residuals, (params, x), tangents[1:3])

    @functools.wraps(layer.forward)
    def checked(params: PyTree, x: PyTree, key: Any = None) -> PyTree:
        check_numbers("x", x)
        check_key(key)
        return function(params, x, key)

    return checked


def _tangent(layer: Layer, y: PyTree, residuals: PyTree, inputs: Any, tangents: Any) -> PyTree:
    """The tangent of `y` at tangents of params and input: the transpose of `backward`."""
    leaves, tree = jax.tree.flatten(y)
    floats = [trees.is_float(leaf) for leaf in leaves]
    like = [leaf for leaf, floating in zip(leaves, floats, strict=True) if floating]
    specs = jax.tree.map(
        jax.typeof, inputs
    )  # what is to be run later must hold no array of this trace
    given = jax.tree_util.tree_flatten_with_path(specs)[0]
    where = [i for i, (_, spec) in enumerate(given) if trees.is_float(spec)]
    moved = jax.tree.leaves(tangents)
    kept, kept_tree = jax.tree.flatten((inputs[0], residuals))

    def back(kept: list[Any], dys: list[Any]) -> list[Any]:
        params, residuals = jax.tree.unflatten(kept_tree, kept)
        rest = iter(dys)
        dy = jax.tree.unflatten(tree, [next(rest) if floating else None for floating in floats])
        dparams, dx = layer.backward(params, residuals, dy)
        found = one_each(layer, specs, (untap(dparams)[0], dx))
        return [fitting(layer, *given[i], found[i]) for i in where]

    def across(kept: list[Any], tangents: list[Any]) -> list[Any]:
        def linear(dys: list[Any]) -> list[Any]:
            return back(kept, dys)

        try:
            zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in like]
            found, pullback = jax.vjp(linear, zeros)
            return pullback(
                [None if d is None else t for d, t in zip(found, tangents, strict=True)]
            )[0]
        except Exception as error:
            raise TypeError(
                f"the backward of {layer.name} cannot be transposed, so it has no jvp, only "
                f"reverse mode: {str(error).partition(chr(10))[0]}"
            ) from error

    dys = iter(linear_map(across, back, kept, [moved[i] for i in where], like))
    return jax.tree.unflatten(
        tree,
        [
            next(dys) if floating else np.zeros(leaf.shape, jax.dtypes.float0)
            for leaf, floating in zip(leaves, floats, strict=True)
        ],
    )
