"""Computing a gradient in fewer bits than its params have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.arguments import check_grad_fn
from funprop.checks import check_floating_dtype, check_numbers
from funprop.params.frozen import trained
from funprop.params.roles import is_statistic
from funprop.params.selection import Pattern, several, where
from funprop.params.tapped import map_plain
from funprop.transforms.transformed import Transformed, call

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from funprop.gradients import GradFn, Gradient
    from funprop.typing import PyTree


def mixed_precision(
    grad_fn: GradFn,
    compute_dtype: DTypeLike = jnp.bfloat16,
    *,
    keep: Pattern | None = None,
) -> Transformed:
    """The gradient computed in `compute_dtype`, in the dtypes of params again when it comes back.

    Params are cast, all but statistics, and the inputs: the first part of a batch that is a tuple,
    since targets and weights belong to the loss; the whole of any other batch. For anybody's
    grad_fn; of a funprop model `cast(model, dtype)` does the same layer by layer, so that the cast
    params never exist all at once. Float16 wants `loss_scale` too.
    Source: Micikevicius et al., arXiv:1710.03740.

    Args:
      grad_fn: any; its losses should be summed in float32, as funprop's are.
      compute_dtype: of params and inputs.
      keep: a pattern for the names of params that stay as they are (see `fp.where`), as `*/norm`.

    Raises:
      TypeError: `compute_dtype` is not floating.

    Example:
      >>> import funprop as fp
      >>> squares = fp.from_loss(lambda w, x: (((w * x) ** 2).sum().astype(jnp.float32), x.size))
      >>> gradient = mixed_precision(squares)(jnp.ones(2), jnp.array([1.0, 1.001]))
      >>> gradient.grads.tolist(), str(gradient.grads.dtype)
      ([2.0, 2.0], 'float32')
    """
    check_grad_fn(grad_fn)
    check_floating_dtype("compute_dtype", compute_dtype)
    if keep is not None:
        several(keep)

    def lower(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf.astype(compute_dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def function(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Gradient:
        check_numbers("params", params)
        kept = is_statistic(params)
        if keep is not None:
            kept = jax.tree.map(lambda one, other: one or other, kept, where(keep, params))
        low = jax.tree.map(lambda leaf, same: leaf if same else lower(leaf), params, kept)
        if isinstance(batch, tuple) and batch:
            batch = (jax.tree.map(lower, batch[0]), *batch[1:])
        else:
            batch = jax.tree.map(lower, batch)
        gradient = call(grad_fn, low, batch, key, dloss)
        grads = map_plain(
            lambda g, p: None if g is None else g.astype(jnp.result_type(p)),
            gradient.grads,
            trained(params),
        )
        return gradient._replace(grads=grads)

    def in_turn(inner: GradFn) -> Transformed:
        return mixed_precision(inner, compute_dtype, keep=keep)

    return Transformed("mixed_precision", grad_fn, function, in_turn)
