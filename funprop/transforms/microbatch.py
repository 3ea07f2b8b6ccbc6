"""Accumulating gradients over parts of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.keys import split_key
from funprop.properties import refuse_mixing
from funprop.transforms.transformed import Transformed, call, made_of, refuse, what_mixes
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.gradients import GradFn, Gradient
    from funprop.typing import PyTree


def microbatch(grad_fn: GradFn, n: int) -> Transformed:
    """The same gradient from `n` parts of the batch, one after the other: memory of a part.

    Exact, with masks and weights too, since a `Gradient` holds sums; summed in float32 at least.
    Where `n` does not divide the batch, the last part is shorter (and compiled apart). Each part
    gets a key of its own.

    Args:
      grad_fn: of a batch whose leaves all have the examples along their first axis.
      n: how many parts.

    Raises:
      TypeError: `grad_fn` is none.
      ValueError: `n` is not positive; noise would be added in every part; or, when called, the
        batch has fewer than `n` examples or leaves of unequal length, or there is a key and a layer
        mixes examples (`batch_norm`), whose parts do not add up to the whole.

    Example:
      >>> import funprop as fp
      >>> rows = fp.from_loss(lambda w, x: (((w * x) ** 2).sum(), x.size))
      >>> w, x = jnp.array(1.0), jnp.arange(5.0)
      >>> float(microbatch(rows, 3)(w, x).grads), float(rows(w, x).grads)
      (60.0, 60.0)
    """
    n = whole_number(n, "n", 1)
    why = {
        "noise": "it is added once, to the sum of all parts",
        "gradient_statistics": "its norms are those of the whole batch",
    }
    refuse("microbatch", made_of(grad_fn), why)

    def function(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Gradient:
        refuse_mixing("microbatch", what_mixes(grad_fn, key))
        return over_parts(lambda part, key: call(grad_fn, params, part, key, dloss), batch, key, n)

    return Transformed("microbatch", grad_fn, function, lambda inner: microbatch(inner, n))


def over_parts(one: Callable[[PyTree, Any], Any], batch: PyTree, key: Any, n: int) -> Any:
    """The sum of `one(part, key)` over at most `n` parts of the batch, the last perhaps shorter."""
    length = batch_size(batch)
    if length < n:
        raise ValueError(f"batch must have at least {n} examples, got {length}")
    size = -(-length // n)
    whole = length // size
    keys = split_key(key, n)
    stacked = None if key is None else jnp.stack(keys[:whole])

    # Part `i` has every `whole`-th example: so a batch that is split over devices stays split in
    # each part, where parts of neighbours would lie on some devices, and all would compute them.
    # It is taken in the loop: to lay all parts out before would copy the batch.
    rows = jax.tree.map(
        lambda leaf: leaf[: whole * size].reshape(size, whole, *leaf.shape[1:]), batch
    )

    def part(i: Any) -> PyTree:
        take = jax.lax.dynamic_index_in_dim
        return jax.tree.map(lambda leaf: take(leaf, i, axis=1, keepdims=False), rows)

    total = _sum(lambda i, key: one(part(i), key), whole, stacked)
    if whole * size == length:
        return total
    rest = jax.tree.map(lambda leaf: leaf[whole * size :], batch)
    return trees.add(total, one(rest, keys[whole]))


def _sum(one: Callable[[Any, Any], Any], n: int, keys: Any) -> Any:
    """The sum of `one(i, key)` over `i` from 0 to `n - 1`."""
    spec = jax.eval_shape(one, 0, jax.tree.map(lambda key: key[0], keys))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, summed_in(leaf.dtype)), spec)

    def step(total: Any, part: Any) -> tuple[Any, None]:
        found = one(*part)
        return jax.tree.map(lambda t, f: t + f.astype(t.dtype), total, found), None

    total, _ = jax.lax.scan(step, zeros, (jnp.arange(n), keys))
    return cast_like(total, spec)


def batch_size(batch: PyTree) -> int:
    """How many examples: the length of every leaf's first axis."""
    if (length := trees.length(batch)) is None:
        got = trees.shapes_string(batch)
        raise ValueError(f"batch must have leaves of one length, got shapes {got}")
    return length


def summed_in(dtype: Any) -> Any:
    """The dtype in which numbers of `dtype` are summed: float32 at least; integers in their own."""
    return trees.wide_dtype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` in the dtypes of `like`."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)
