"""Sums and path strings of pytrees: what every other file needs, and nothing of ours below it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funprop.reprs import of_fields
from funprop.values import known

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Num, PyTree, Shaped


RESERVED = ("frozen", "statistic")  # what stands around params of these kinds


class Sum(NamedTuple):
    """A sum and how much was summed. Sums add up exactly over parts of any size; means do not.

    A loss gives one, a metric gives one, and `mean` is taken once, at the very end.

    Attributes:
      total: the weighted sum of the terms.
      weight: the sum of the terms' weights; the number of terms where all weights are one.

    Example:
      >>> first, second = Sum(6.0, 3.0), Sum(2.0, 1.0)
      >>> add(first, second).mean
      2.0
    """

    total: Any
    weight: Any

    def __repr__(self) -> str:
        return of_fields(self)

    @property
    def mean(self) -> Any:
        """`total / weight`: elementwise where a scan has stacked many sums."""
        return self.total / self.weight


def weighted_sum(
    terms: Float[Array, "*shape"], weights: Num[Array, "*leading"] | None = None
) -> Sum:
    """The `Sum` of `terms`, each weighted; `weights` covers the leading axes of `terms`.

    A weight of exactly zero removes its term, even one that is infinite or NaN, so that padding
    and masks may hold anything. The sum is taken in float32 at least.

    Raises:
      ValueError: `weights` has a shape that is not a leading part of that of `terms`; or a weight
        is negative, infinite or NaN, where its value is known. Inside `jit`, where it is not, it
        makes the sum NaN.

    Example:
      >>> s = weighted_sum(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 3.0, 0.0]))
      >>> float(s.total), float(s.weight)
      (7.0, 4.0)
    """
    terms = widen(terms)
    if weights is None:
        return Sum(terms.sum(), jnp.asarray(terms.size, terms.dtype))
    weights = spread_weights(weights, terms)
    lost = is_lost(terms, weights)
    # Once for JAX's derivative by the weights, once for XLA, which then sums as it goes.
    products = jnp.where(lost, 0, weights * jnp.where(lost, 0, terms))
    return Sum(products.sum(), weights.sum())


def is_lost(
    terms: Float[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Bool[Array, "*shape"]:
    """Which terms are infinite or NaN and have a weight of zero: their product is NaN, and should
    be zero. The others are the derivative with respect to their weights."""
    return (weights == 0) & ~jnp.isfinite(terms)


def spread_weights(
    weights: Num[Array, "*leading"], terms: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`spread`, for weights of a sum, each finite and not negative: else an error, or NaN where the
    values are not known."""
    values = known(weights)
    if values is not None:
        wrong = ~((values >= 0) & np.isfinite(values.astype(np.float64)))
        if wrong.any():
            raise ValueError(f"weights must be finite and at least 0, got {values[wrong][0]}")
    weights = jnp.asarray(weights).astype(terms.dtype)  # looked at before they are many
    return spread(jnp.where((weights >= 0) & (weights < jnp.inf), weights, jnp.nan), terms)


def spread(
    weights: Num[Array, "*leading"], terms: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`weights` over the leading axes, repeated over the others, in the dtype of `terms`."""
    if weights.shape != terms.shape[: weights.ndim]:
        raise ValueError(
            f"weights must have shape {terms.shape} or a leading part of it, got {weights.shape}"
        )
    trailing = (1,) * (terms.ndim - weights.ndim)
    return jnp.broadcast_to(
        weights.astype(terms.dtype).reshape(weights.shape + trailing), terms.shape
    )


def wide_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of `dtype` are computed and summed: float32 at least."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype) if wide else jnp.dtype("float32")


def widen(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32 at least: the precision in which losses are computed and summed."""
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype))


def sum_of(total: Any, weight: Any) -> Sum:
    """A `Sum` of arrays, both floating: in float32, or in what a part of it has that is wider. What
    people give holds Python's numbers too, and counts.

    Example:
      >>> [part.dtype.name for part in sum_of(jnp.arange(3).sum(), 3)]
      ['float32', 'float32']
    """
    floats = [leaf for leaf in (total, weight) if hasattr(leaf, "dtype") and is_float(leaf)]
    wide = max((wide_dtype(leaf.dtype) for leaf in floats), key=lambda d: d.itemsize, default=None)
    dtype = jax.dtypes.canonicalize_dtype(wide or jnp.float32)
    return Sum(jnp.asarray(total, dtype), jnp.asarray(weight, dtype))


def lifted(x: Num[Array, "*shape"], like: Any) -> Num[Array, "..."]:
    """`x` with axes of one in front, as many as `like` has axes: for it to be added or multiplied,
    JAX wants that said where `jax_numpy_rank_promotion` is "raise".

    Example:
      >>> lifted(jnp.ones(3), jnp.ones((5, 4, 3))).shape
      (1, 1, 3)
    """
    return jax.lax.broadcast_to_rank(x, like.ndim)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A value that is structure, not data: it rides in a pytree without being traced.

    Layers keep shapes in it, so that residuals pass through `jit`, `vmap` and `scan`.
    """

    value: Any


def add(a: PyTree, b: PyTree) -> PyTree:
    """`a + b`, leaf by leaf; `None` (the cotangent of an integer) stays `None`."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def take(data: PyTree[Shaped[Array, "n ..."]], rows: Any) -> PyTree:
    """The given rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], data)


def path_string(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as people write it: without what `Frozen`, `LowRank` and
    `Statistic` put around params.

    Example:
      >>> paths = jax.tree_util.tree_flatten_with_path({"a": [1, 2]})[0]
      >>> [path_string(path) for path, _ in paths]
      ['a/0', 'a/1']
    """
    named = tuple(key for key in path if getattr(key, "name", None) not in RESERVED)
    return jax.tree_util.keystr(named, simple=True, separator="/")


def copied(tree: PyTree) -> PyTree:
    """A copy of every array, in memory of its own; without a program to be compiled.

    Example:
      >>> one = jnp.ones(3)
      >>> copied(one) is one
      False
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
            return jnp.copy(leaf)
        return jax.device_put(leaf, may_alias=False)

    return jax.tree.map(one, tree)


def spec_string(leaf: Any) -> str:
    """Dtype and shape of a leaf, as `float32[64,10]`.

    Example:
      >>> spec_string(jnp.zeros((64, 10)))
      'float32[64,10]'
    """
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def length(tree: PyTree) -> int | None:
    """The length of every leaf's first axis, where that is one; `None` where there are no leaves,
    or one has no axis.

    Example:
      >>> length((jnp.ones((3, 2)), jnp.ones(3))), length((jnp.ones((3, 2)), 1.0))
      (3, None)
    """
    found = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    (first,) = found if len(found) == 1 else ((),)
    return first[0] if first else None


def shapes_string(tree: PyTree) -> str:
    """The shapes of a tree's leaves, of the first few where there are many.

    Example:
      >>> shapes_string((jnp.ones((3, 2)), [0.0] * 50))
      '[(3, 2), (), (), ...]'
    """
    shapes = [str(tuple(jnp.shape(leaf))) for leaf in jax.tree.leaves(tree)]
    return f"[{', '.join(shapes if len(shapes) <= 4 else [*shapes[:3], '...'])}]"


def spec(tree: PyTree) -> PyTree:
    """`tree` with a `jax.ShapeDtypeStruct` in the place of each array."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def canonical(tree: PyTree) -> PyTree:
    """`tree`, of arrays or of their specs, in the dtypes that JAX gives arrays: quietly in 32 bits
    where 64 are off.

    Example:
      >>> [leaf.dtype.name for leaf in canonical([jax.ShapeDtypeStruct((2,), "float64")])]
      ['float32']
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) or not hasattr(leaf, "dtype"):
            return leaf
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        if dtype == leaf.dtype:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=dtype)
        return leaf.astype(dtype)

    return jax.tree.map(one, tree)


def size(tree: PyTree) -> int:
    """How many numbers `tree` holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """How many bytes `tree` holds (a random key counts as its raw bits do)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def is_float(leaf: Any) -> bool:
    """Whether a cotangent of this leaf exists: it has a floating (or complex) dtype."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def all_finite(leaf: Any) -> Bool[Array, ""]:
    """Whether every number is. A maximum keeps NaN and infinity, and on a CPU XLA takes it in half
    the time of an `and` over booleans."""
    return jnp.isfinite(jnp.abs(leaf).max(initial=0))


def require_array(x: Any, name: str = "x") -> None:
    """Raise a `TypeError` where `x` is a list or a number, say: a layer takes arrays."""
    if not hasattr(x, "dtype"):
        raise TypeError(f"{name} must be an array, got {type(x).__name__}")


def require_float(x: Any) -> None:
    """Raise a `TypeError` where `x` is not an array of real numbers in a floating dtype."""
    require_array(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be of floating dtype, got {spec_string(x)}")
