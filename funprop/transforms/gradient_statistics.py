"""How large gradients are, and how far those of parts of a batch differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.properties import refuse_mixing
from funprop.transforms.microbatch import over_parts
from funprop.transforms.transformed import Transformed, call, made_of, refuse, what_mixes
from funprop.trees import Sum, wide_dtype, widen
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.gradients import GradFn, Gradient
    from funprop.typing import PyTree


def gradient_statistics(grad_fn: GradFn, n: int = 2) -> Transformed:
    """The same gradient, taken over `n` parts of the batch, which tell how noisy it is.

    Metrics, beside those of `grad_fn`: `gradient_norm/PATH`, the norm of each leaf of the mean
    gradient; and `noise_scale`, the batch size, in units of weight, at which noise and gradient are
    as large as each other:

        E |g_i / w_i|^2 = |G|^2 + S / w_i,    noise scale = S / |G|^2

    with `g_i` the sum and `w_i` the weight of part `i`. Its mean over updates is that of `S` over
    that of `|G|^2`, both unbiased; either may be negative where they are few.
    Source: McCandlish et al., arXiv:1812.06162, appendix A.1, here for parts of any weights.

    Args:
      grad_fn: any.
      n: how many parts; memory is that of one, as in `microbatch`.

    Raises:
      ValueError: `n` is below 2; noise would be added in every part; or as `microbatch`.

    Example:
      >>> import funprop as fp
      >>> fits = fp.from_loss(lambda w, x: (((w - x) ** 2).sum() / 2, x.size))
      >>> gradient = gradient_statistics(fits)(jnp.array(2.0), jnp.array([0.5, 1.5]))
      >>> float(gradient.metrics["gradient_norm/params"].mean)
      1.0
      >>> noise, square = gradient.metrics["noise_scale"]
      >>> float(noise), float(square)
      (0.5, 0.75)
    """
    n = whole_number(n, "n", 2)
    refuse(
        "gradient_statistics",
        made_of(grad_fn),
        {"noise": "it must be added once, to the sum of parts"},
    )

    def function(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Gradient:
        refuse_mixing("gradient_statistics", what_mixes(grad_fn, key))
        unit = 1 if dloss is None else dloss

        def one(part: PyTree, key: Any) -> tuple[Gradient, Any]:
            gradient = call(grad_fn, params, part, key, dloss)
            some = gradient.weight != 0
            weight = jnp.where(some, gradient.weight, 1)
            size = _total(_squares(gradient.grads, weight * unit), weight)
            counted = jnp.where(some, jnp.stack([jnp.ones_like(size), size, 1 / weight]), 0)
            return gradient, counted

        gradient, (parts, size, inverse) = over_parts(one, batch, key, n)
        whole = jnp.where(gradient.weight == 0, 1, gradient.weight)
        squares = _squares(gradient.grads, whole * unit)
        big = _total(squares, whole)
        parts = jnp.maximum(parts, 1)
        apart = inverse / parts - 1 / whole
        noise = (size / parts - big) / jnp.where(apart == 0, 1, apart)
        told = {"noise_scale": Sum(noise, big - noise / whole)}
        for path, square in jax.tree_util.tree_flatten_with_path(squares)[0]:
            name = trees.path_string(path) or "params"
            told[f"gradient_norm/{name}"] = Sum(jnp.sqrt(square), jnp.ones_like(square))
        return gradient._replace(metrics=gradient.metrics | told)

    def in_turn(inner: GradFn) -> Transformed:
        return gradient_statistics(inner, n)

    return Transformed("gradient_statistics", grad_fn, function, in_turn)


def _squares(grads: PyTree, weight: Any) -> PyTree:
    """The squared norm of each leaf of the mean gradient."""
    return jax.tree.map(
        lambda g: jnp.square(widen(g) / weight.astype(wide_dtype(g.dtype))).sum(), grads
    )


def _total(squares: PyTree, like: Any) -> Any:
    """Their sum, in the dtype of the loss's weight."""
    return sum((s.astype(like.dtype) for s in jax.tree.leaves(squares)), jnp.zeros_like(like))
