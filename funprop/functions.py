"""Anybody's function as a layer, by `jax.vjp`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop import trees
from funprop.checks import check_function, check_string
from funprop.decoding import Decoding, one_decoding
from funprop.keys import takes_key, with_key
from funprop.layer import Layer, recorded
from funprop.params.frozen import trained, with_trained

if TYPE_CHECKING:
    from funprop.typing import PyTree


def from_function(
    init: Callable[..., PyTree],
    apply: Callable[..., PyTree],
    name: str = "function",
    *,
    mixes: bool = False,
    draws: bool | None = None,
    pointwise: bool = False,
    decoding: Decoding | None = None,
) -> Layer:
    """Anybody's pure function as a layer; its backward is taken by `jax.vjp`.

    Args:
      init: `(key, x_spec) -> params`, any pytree.
      apply: `(params, x) -> y` or `(params, x, key) -> y`, differentiable by JAX.
      name: what paths and messages call it.
      mixes: whether an example's output in training depends on the other examples of the batch.
      draws: whether `apply` draws from its key; by default, whether it takes one.
      pointwise, decoding: as of `layer`.

    Example:
      >>> import jax.numpy as jnp
      >>> sine = from_function(lambda key, x: jnp.ones(()), lambda a, x: jnp.sin(a * x))
      >>> y, residuals = sine.forward(jnp.array(2.0), jnp.array(0.0))
      >>> da, dx = sine.backward(jnp.array(2.0), residuals, jnp.array(1.0))
      >>> float(da), float(dx)
      (0.0, 2.0)
    """
    check_string("name", name)
    check_function("init", init, "(key, x_spec) -> params")
    draws = takes_key(apply, "apply") if draws is None else draws
    apply = with_key(apply, "apply")
    forward, backward = by_vjp(lambda params, x, key: (apply(params, x, key), ()))
    decoding = one_decoding(forward, pointwise, decoding)
    said = {"mixes": mixes, "draws": draws, "decoding": decoding}
    return Layer(init, forward, backward, name, **said)


def by_vjp(
    forward: Callable[..., tuple[PyTree, PyTree]],
) -> tuple[Callable[..., tuple[PyTree, PyTree]], Callable[..., tuple[PyTree, PyTree]]]:
    """The forward and backward that `jax.vjp` makes of a layer's `forward` alone.

    What is frozen or a statistic has no cotangent. Residuals of `jax.vjp` that are params
    themselves are dropped, and put back in backward: so they hold no copy of the weights, and a
    scan over layers stacks none.
    """

    def vjp_forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        def output(part: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
            y, residuals = forward(with_trained(params, part), x, key)
            return y, recorded(residuals)

        y, pullback, records = jax.vjp(output, trained(params), x, has_aux=True)
        leaves, tree = jax.tree.flatten(pullback)
        place = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}
        origin = tuple(place.get(id(leaf)) for leaf in leaves)
        kept = [leaf for leaf, i in zip(leaves, origin, strict=True) if i is None]
        return y, (kept, _Pullback(tree, origin, _integer_leaves(y)), records)

    def vjp_backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        kept, found, _ = residuals
        weights, rest = jax.tree.leaves(params), iter(kept)
        leaves = [next(rest) if i is None else weights[i] for i in found.origin]
        pullback = jax.tree.unflatten(found.tree, leaves)
        return jax.tree.map(_none_for_float0, pullback(_float0_for_none(dy, found.integers)))

    return vjp_forward, vjp_backward


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _Pullback:
    """What a pullback of `jax.vjp` is beside its arrays.

    Attributes:
      tree: its structure, with a program in it, which JAX holds for another one in every trace. Two
        are the same here where they read the same: without `jit` a loop traces its body at every
        turn, and stacks what is kept.
      origin: of each array, which leaf of params it is, if it is one.
      integers: as `_integer_leaves` gives them.
    """

    tree: Any
    origin: tuple[int | None, ...]
    integers: Any

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Pullback)
            and (self.origin, self.integers) == (other.origin, other.integers)
            and (self.tree == other.tree or str(self.tree) == str(other.tree))
        )

    def __hash__(self) -> int:
        return hash((self.origin, self.integers))


def _none_for_float0(leaf: Any) -> Any:
    """JAX's cotangent of an integer is an array of dtype float0; ours is `None`."""
    return None if leaf.dtype == jax.dtypes.float0 else leaf


def _integer_leaves(y: PyTree) -> Any:
    """Where `y` has integer leaves: their shapes, in a tree like `y`; `None` where it has none."""
    if all(trees.is_float(leaf) for leaf in jax.tree.leaves(y)):
        return None
    leaves, tree = jax.tree.flatten(y)
    return tree, tuple(None if trees.is_float(leaf) else leaf.shape for leaf in leaves)


def _float0_for_none(dy: PyTree, integers: Any) -> PyTree:
    """Undo `_none_for_float0`, which is how `jax.vjp` wants the cotangent of integer outputs."""
    if integers is None:
        return dy
    tree, shapes = integers
    given = tree.flatten_up_to(dy)
    return tree.unflatten(
        leaf if shape is None else np.zeros(shape, jax.dtypes.float0)
        for leaf, shape in zip(given, shapes, strict=True)
    )
