"""Backward through other weights than forward's: feedback alignment, and feedback of like sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.decoding import through
from funprop.formula import with_other
from funprop.layer import Layer, leaf_of
from funprop.params.selection import Pattern
from funprop.quantities.closed_form import Closed, closed, closed_of
from funprop.rewrites.own_weights import map_own, weights, with_weights

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

    W = Float[Array, "..."]


class Feedback(NamedTuple):
    """The params of a layer whose backward goes through weights of its own.

    Attributes:
      forward: the params of the layer as it was, which are trained.
      feedback: the other weights, in the places of the layer's; never trained. They are saved and
        loaded with the rest.
    """

    forward: Any
    feedback: Any

    roles = {"feedback": "frozen"}


def feedback_alignment(model: Layer, where: Pattern | None = None) -> Layer:
    """The same model, whose cotangents go back through fixed random weights `B`.

    Of `y = x w + b`, backward gives `dx = dy B^T` in the place of `dy w^T`; `dw = x^T dy` and `db`
    are the true ones of the cotangent that arrives. In training the weights turn towards `B`, so
    that what arrives comes to point where the gradient does.

    It covers every layer with params of the role `weight` that backward needs for `dx` alone: dense
    layers, so attention's projections too, and convolutions. All other layers keep their backward,
    as do weights that are made of others (`reparam`). `B` is drawn as the layer draws its weights.
    Source: Lillicrap et al., Nature Communications 7 (2016), arXiv:1411.0247.

    Args:
      model: any layer, a whole objective too.
      where: a pattern for parts (see `fp.where`); without one, every layer.

    Returns:
      A model whose params have a `Feedback` at each such layer. It is *intended* to have another
      gradient: `verify` judges it by `dx` through `B`.

    Raises:
      ValueError: no path matches, or one of shared params; or, at init, `dw` of a layer depends on
        its weights, as that of a recurrent one does: choose others by `where`.
      TypeError: `model` is no layer.

    Example:
      >>> import funprop as fp
      >>> model = feedback_alignment(fp.serial(fp.dense(4), fp.tanh(), fp.dense(2)))
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> params.dense_0.forward.w.shape, params.dense_0.feedback.w.shape
      ((5, 4), (5, 4))
      >>> y, kept = model.forward(params, jnp.ones((3, 5)))
      >>> model.backward(params, kept, y)[0].dense_0.feedback is None
      True
    """
    return map_own(lambda leaf: _one(leaf, lambda b, w: b), model, where)


def sign_symmetric(model: Layer, where: Pattern | None = None) -> Layer:
    """As `feedback_alignment`, each weight of the way back with the sign of the one forward and a
    fixed random size: `dx = dy (sign(w) |B|)^T`.

    Source: Liao, Leibo and Poggio, arXiv:1510.05067.

    Raises:
      ValueError, TypeError: as `feedback_alignment`.

    Example:
      >>> import funprop as fp
      >>> layer, x = sign_symmetric(fp.dense(4)), jnp.ones((3, 5))
      >>> params = layer.init(jax.random.key(0), x)
      >>> _, dx = layer.backward(params, x, jnp.eye(3, 4))
      >>> bool((jnp.sign(dx) == jnp.sign(params.forward.w.T[:3])).all())
      True
    """
    return map_own(lambda leaf: _one(leaf, _of_sign), model, where)


def _of_sign(b: W, w: W) -> W:
    return jnp.sign(w) * jnp.abs(b)


def _one(leaf: Layer, used: Callable[[W, W], W]) -> Layer:
    def own(params: Any) -> Any:
        return params.forward if isinstance(params, Feedback) else params

    def back(params: Feedback) -> Any:
        """The params that backward sees: other weights, and the same of all else."""
        return with_weights(used, params.feedback, params.forward)

    def init(key: Any, x: PyTree) -> Any:
        params = leaf.init(key, x)
        if isinstance(params, Feedback):
            raise ValueError(f"{leaf.name} must get its way back once, got one that has its own")
        if not jax.tree.leaves(weights(params)):
            return params
        _check_alone(leaf, params, x)
        return Feedback(params, weights(leaf.init(jax.random.fold_in(key, 1), x)))

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return leaf.forward(own(params), x, key)

    def backward(params: Any, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(params, Feedback):
            return leaf.backward(params, residuals, dy)
        dparams, dx = leaf.backward(back(params), residuals, dy)
        return Feedback(dparams, None), dx

    def intended(params: Any, x: PyTree, key: Any = None) -> PyTree:
        if not isinstance(params, Feedback):
            return leaf.forward(params, x, key)[0]
        still = jax.lax.stop_gradient
        of_params = leaf.forward(params.forward, still(x), key)[0]
        return trees.add(of_params, leaf.forward(still(back(params)), x, key)[0])

    if (known := closed_of(leaf)) is not None and known.each is not None:
        squares, each = _by_example(known, back)
        backward = closed(backward, squares, each=each)
    passes = {"init": init, "forward": forward, "backward": backward, "intended": intended}
    formula = with_other(leaf.formula, "w", "B", "B", only="dx")
    return leaf_of(leaf, formula=formula, decoding=through(leaf, own), **passes)


def _by_example(known: Closed, back: Callable[[Feedback], Any]) -> tuple[Any, Any]:
    """Of each example, the squared norm and the gradient: those of the layer itself, which do not
    depend on its weights."""

    def squares(params: Any, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        own = back(params) if isinstance(params, Feedback) else params
        return known.squares(own, residuals, dy)

    def each(params: Any, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(params, Feedback):
            return known.each(params, residuals, dy)  # pyright: ignore
        grads, dx = known.each(back(params), residuals, dy)  # pyright: ignore
        return Feedback(grads, None), dx

    return squares, each


def _check_alone(leaf: Layer, params: PyTree, x: PyTree) -> None:
    """Raise where a gradient of params depends on the weights: backward needs them for more than
    `dx`, and other ones would make it no gradient of anything."""

    def gradient(own: PyTree, params: PyTree, x: PyTree) -> list[Any]:
        params = with_weights(lambda w, _: w, own, params)
        y, kept = leaf.forward(params, x)
        dy = jax.tree.map(lambda y: jnp.ones_like(y) if trees.is_float(y) else None, y)
        return jax.tree.leaves(leaf.backward(params, kept, dy)[0])

    one = weights(params)
    jax.eval_shape(gradient, one, params, x)  # what is wrong with the layer itself
    several = jax.tree.map(lambda w: jax.ShapeDtypeStruct((2, *w.shape), w.dtype), one)
    try:  # of several weights one gradient: where it does not depend on them
        mapped = jax.vmap(gradient, (0, None, None), None)
        jax.eval_shape(mapped, several, params, x)
    except ValueError:
        raise ValueError(
            "a layer must need its weights for dx alone to have other ones in backward, as dense "
            f"and conv do, got {leaf.name}: choose others by where"
        ) from None
