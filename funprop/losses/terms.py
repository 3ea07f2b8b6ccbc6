"""What losses share: each is the weighted sum of its *terms*, beside the sum of the weights.

Here, and in `weighted_sum`, is all that a weight of zero does: it removes its term from the value
and from every gradient, whatever outputs and targets hold there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layer import Layer, layer
from funprop.losses.formulas import FORMULAS
from funprop.losses.targets import check_outputs, given
from funprop.quantities.curvature import Curvature, curved
from funprop.trees import (
    Static,
    Sum,
    is_float,
    is_lost,
    spread,
    spread_weights,
    weighted_sum,
    wide_dtype,
)

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Num


def from_terms(
    name: str,
    targets: Callable[..., tuple[Any, Any]],
    forward: Callable[[Any, Any], tuple[Float[Array, "*terms"], Any]],
    backward: Callable[[Any, Float[Array, "*terms"]], tuple[Any, Any]],
    *,
    over: int = 0,
    hessian: Hessian | None = None,
) -> Layer:
    """A loss from its terms.

    Args:
      name: what paths and messages call it.
      targets: `(outputs, targets, *weights) -> (targets, valid)`, as `funprop.losses.targets` has
        them.
      forward: `(outputs, targets) -> (terms, kept)`, in float32 at least.
      backward: `(kept, dterms) -> (doutputs, dtargets)`.
      over: how many of the last axes of the outputs a term is over.
      hessian: of a term in the outputs, where it is known.
    """

    def loss_forward(params: tuple[()], x: tuple[Any, ...]) -> tuple[Sum, Any]:
        outputs, wanted, *weights = given(x)
        check_outputs(outputs)
        checked, valid = targets(outputs, wanted, *weights)
        hidden = without_say(outputs.shape[: outputs.ndim - over], outputs.dtype, *weights)
        terms, kept = forward(apart(outputs, hidden), apart(checked, hidden))
        terms = spoiled(terms, valid)
        dtypes = Static((outputs.dtype, wanted.dtype))
        return weighted_sum(terms, *weights), (kept, terms, valid, dtypes, *weights)

    def loss_backward(
        params: tuple[()], residuals: tuple[Any, ...], dy: tuple[Any, Any]
    ) -> tuple[tuple[()], tuple[Any, ...]]:
        kept, terms, valid, dtypes, *weights = residuals
        dterms, dweights = pull_sum(dy, terms, *weights)
        hidden = without_say(terms.shape, terms.dtype, *weights)
        cotangents = zip(backward(kept, spoiled(dterms, valid)), dtypes.value, strict=True)
        return (), (*(_like(zero_at(d, hidden), dtype) for d, dtype in cotangents), *dweights)

    def root(residuals: tuple[Any, ...], dy: tuple[Any, Any]) -> Float[Array, "c *outputs"]:
        kept, terms, *_ = residuals
        return scaled(apart_in_example(hessian.root(kept), terms), residuals, dy)  # pyright: ignore

    def sampled(residuals: tuple[Any, ...], dy: tuple[Any, Any], key: Any) -> Any:
        return scaled(hessian.sampled(residuals[0], key)[None], residuals, dy)[0]  # pyright: ignore

    def scaled(columns: Any, residuals: tuple[Any, ...], dy: tuple[Any, Any]) -> Any:
        _, terms, valid, dtypes, *weights = residuals
        dterms, _ = pull_sum(dy, terms, *weights)
        hidden = without_say(terms.shape, terms.dtype, *weights)
        scale = spoiled(jnp.sqrt(dterms), valid).reshape(*terms.shape, *(1,) * over)
        columns = jax.vmap(lambda d: zero_at(scale * d, hidden))(columns)
        return columns.astype(dtypes.value[0])

    if hessian is not None:
        loss_backward = curved(loss_backward, Curvature(root, sampled))
    return layer(forward=loss_forward, backward=loss_backward, name=name, formula=FORMULAS[name])


class Hessian(NamedTuple):
    """The second derivative of one term in the outputs that it is of, as square roots.

    Attributes:
      root: `kept -> [k, *outputs]`: the sum of the `k` columns' outer products, term by term.
      sampled: `(kept, key) -> [*outputs]`: one column for which that holds in expectation, the
        term's gradient at a target drawn from the distribution that the outputs mean.
    """

    root: Callable[[Any], Any]
    sampled: Callable[[Any, Any], Any]


def apart_in_example(columns: Float[Array, "k *outputs"], terms: Float[Array, "b *t"]) -> Any:
    """Each column with one term of every example, zeros at the others: `[k t, *outputs]`, as the
    terms of one example must not be added up."""
    t = terms.shape[1:]
    n = max(1, math.prod(t))  # a column of nothing, where there are no terms
    each = jnp.eye(n, math.prod(t), dtype=columns.dtype)
    each = each.reshape(n, 1, *t, *(1,) * (columns.ndim - 1 - terms.ndim))
    return (columns[:, None] * each[None]).reshape(len(columns) * n, *columns.shape[1:])


def pull_sum(
    dy: tuple[Any, Any], terms: Float[Array, "*terms"], *weights: Num[Array, "..."]
) -> tuple[Float[Array, "*terms"], tuple[Any, ...]]:
    """The pullback of `weighted_sum`: the cotangents of the terms, and of the weights, if any."""
    dtotal, dweight = dy
    if not weights:
        return jnp.broadcast_to(dtotal, terms.shape).astype(terms.dtype), ()
    (given,) = weights
    w = spread_weights(given, terms)
    each = dtotal * jnp.where(is_lost(terms, w), 0, terms) + dweight
    return dtotal * w, (_like(each.sum(tuple(range(given.ndim, terms.ndim))), given.dtype),)


def _like(cotangent: Any, dtype: Any) -> Any:
    """In the dtype of what it belongs to; `None` for integers."""
    return cotangent.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else None


def spoiled(
    terms: Float[Array, "*terms"], valid: Bool[Array, "*terms"] | None
) -> Float[Array, "*terms"]:
    """NaN where a target makes no sense, in terms as in their cotangents. A product, so that JAX's
    derivative of the terms is NaN there too."""
    return terms if valid is None else terms * jnp.where(valid, 1, jnp.nan).astype(terms.dtype)


# --------------------------------------------------------------------------- what has no say


def without_say(
    shape: tuple[int, ...], dtype: Any, *weights: Num[Array, "..."]
) -> Bool[Array, "*terms"] | None:
    """Which of the terms have a weight of zero; `None` where there are no weights."""
    if not weights:
        return None
    terms: Any = jax.ShapeDtypeStruct(shape, wide_dtype(dtype))
    return spread(weights[0], terms) == 0


def zero_at(d: Any, hidden: Bool[Array, "*terms"] | None) -> Any:
    """A cotangent, exactly zero at terms without a say: a weight of zero times NaN is NaN."""
    return d if hidden is None or d is None else jnp.where(_over(hidden, d), 0, d)


def apart(x: Any, hidden: Bool[Array, "*terms"] | None) -> Any:
    """`x` as it is, for JAX a constant at terms without a say: what `zero_at` is to a backward pass
    by hand, this is to a forward pass that JAX differentiates. Costs nothing, compiled."""
    if hidden is None or not is_float(x):
        return x
    return jnp.where(_over(hidden, x), jax.lax.stop_gradient(x), x)


def _over(hidden: Bool[Array, "*terms"], x: Any) -> Any:
    return hidden.reshape(hidden.shape + (1,) * (x.ndim - hidden.ndim))
