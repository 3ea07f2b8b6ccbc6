"""Gradients whose bits do not depend on how many devices and processes there are."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.properties import refuse_mixing
from funprop.transforms.devices import axis_size, check_split_once, on_each, share_by_share
from funprop.transforms.microbatch import batch_size, cast_like, summed_in
from funprop.transforms.pairwise_sum import hidden_zero, sum_of_all, sums_of_own
from funprop.transforms.transformed import Transformed, call, made_of, refuse, what_mixes
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.gradients import GradFn, Gradient
    from funprop.typing import PyTree


def ordered(
    grad_fn: GradFn, parts: int, mesh: jax.sharding.Mesh | None = None, axis: str = "data"
) -> Transformed:
    """The same gradient, bit by bit the same on any number of devices and processes.

    The batch is cut into `parts`, and part `i` is always the same rows, with the same key. Each
    device takes as many as there are for it, one after the other, by the same compiled loop body
    everywhere. Their sum is one tree of pairs, whose branches stand on one device or on many: how
    it is bracketed is a matter of `parts` alone. A device has its own branch summed up before
    anything is sent, so that with powers of two as much travels as in any sum over devices.
    In float32 at least.

    The bits do depend on `parts`, on JAX's version and on the machine: a processor's instructions,
    and its cores where a part's own products are large enough to be split over them.

    Args:
      grad_fn: of a batch whose leaves all have the examples along their first axis.
      parts: into how many the batch is cut: a multiple of any number of devices to come.
      mesh: the devices, of one process or of many, as for `data_parallel`; one device without it,
        with the bits of many.
      axis: of the mesh, over which the batch is split; over others all is repeated.

    Raises:
      TypeError: `grad_fn` is none, or `mesh`, or `parts` no integer.
      ValueError: `parts` is not positive, or no multiple of the devices; the mesh has no such axis,
        or axes that are not `AxisType.Auto`; noise would be added in every part; `grad_fn` is split
        over devices already; or, when called, `parts` does not divide the batch, its leaves are
        empty or of unequal length, or there is a key and a layer mixes examples (`batch_norm`).

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> rows = fp.from_loss(lambda w, x: (((w * x) ** 2).sum(), x.size))
      >>> gradient = ordered(rows, 4, mesh)(jnp.array(1.0), jnp.arange(8.0))
      >>> float(gradient.loss), float(gradient.weight), float(gradient.grads)
      (140.0, 8.0, 280.0)
    """
    parts = whole_number(parts, "parts", 1)
    refuse("ordered", made_of(grad_fn), {"noise": "it must be added once, to the sum of all parts"})
    check_split_once("ordered", grad_fn)
    devices = 1 if mesh is None else axis_size(mesh, axis)
    if parts % devices:
        raise ValueError(f"the {devices} devices along {axis!r} must divide parts, got {parts}")

    def share(params: PyTree, own: tuple[PyTree, Any], _: None, dloss: Any) -> Gradient:
        one = functools.partial(call, grad_fn, params, dloss=dloss)
        zero = hidden_zero(own[0])
        spec = jax.eval_shape(one, *jax.tree.map(lambda leaf: leaf[0], own))

        def wide(i: Any) -> Gradient:
            found = one(*jax.tree.map(lambda leaf: leaf[i], own))
            return jax.tree.map(lambda leaf: leaf.astype(summed_in(leaf.dtype)), found)

        sums = sums_of_own(wide, parts // devices, zero)
        total = sum_of_all(sums, zero, parts, devices, None if mesh is None else axis)
        return cast_like(total, spec)

    def function(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Gradient:
        refuse_mixing("ordered", what_mixes(grad_fn, key))
        size, rest = divmod(batch_size(batch), parts)
        if not size and not rest:
            raise ValueError(f"batch must have at least {parts} examples, got 0")
        if rest:
            raise ValueError(f"parts must divide the batch, got {parts} and {batch_size(batch)}")
        cut = jax.tree.map(
            lambda leaf: jnp.asarray(leaf).reshape(parts, size, *leaf.shape[1:]), batch
        )
        keys = None if key is None else jax.random.split(key, parts)
        each = share if mesh is None else on_each(mesh, axis, share)
        return each(params, (cut, keys), None, dloss)

    def in_turn(inner: GradFn) -> GradFn:
        return share_by_share(inner, parts, jax.random.split)

    return Transformed("ordered", grad_fn, function, in_turn)
