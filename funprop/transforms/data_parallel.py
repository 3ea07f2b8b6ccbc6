"""A batch split over devices, by an explicit collective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from funprop.properties import refuse_mixing
from funprop.transforms.devices import axis_size, check_split_once, on_each, share_by_share
from funprop.transforms.microbatch import batch_size, cast_like, summed_in
from funprop.transforms.transformed import Transformed, call, made_of, refuse, what_mixes

if TYPE_CHECKING:
    from funprop.gradients import GradFn, Gradient
    from funprop.typing import PyTree


def data_parallel(grad_fn: GradFn, mesh: jax.sharding.Mesh, axis: str = "data") -> Transformed:
    """The same gradient, each device of a mesh taking its share of the batch.

    Params are whole on every device, and so is the result. Exact, with masks and weights too, since
    a `Gradient` holds sums; summed in float32 at least. Each device gets a key of its own. The last
    bits depend on how many devices there are: for bits that do not, see `ordered`.

    Args:
      grad_fn: of a batch whose leaves all have the examples along their first axis.
      mesh: `jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))`, say, of the
        devices of one process or of many.
      axis: of the mesh, over which the batch is split; over others all is repeated.

    Raises:
      TypeError: `grad_fn` is none, or `mesh`.
      ValueError: the mesh has no such axis, or axes that are not `AxisType.Auto`; noise would be
        added on every device; `grad_fn` is split over devices already; or, when called, the devices
        do not divide the batch, or its leaves are of unequal length, or there is a key
        and a layer mixes examples (`batch_norm`).

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> rows = fp.from_loss(lambda w, x: (((w * x) ** 2).sum(), x.size))
      >>> gradient = data_parallel(rows, mesh)(jnp.array(1.0), jnp.arange(4.0))
      >>> float(gradient.loss), float(gradient.weight), float(gradient.grads)
      (14.0, 4.0, 28.0)
    """
    devices = axis_size(mesh, axis)
    noise = "it must be added once, to the sum over all devices"
    refuse("data_parallel", made_of(grad_fn), {"noise": noise})
    check_split_once("data_parallel", grad_fn)

    def function(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Gradient:
        refuse_mixing("data_parallel", what_mixes(grad_fn, key))
        if batch_size(batch) % devices:
            raise ValueError(
                f"the {devices} devices along {axis!r} must divide the batch, got "
                f"{batch_size(batch)} examples"
            )

        def share(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Gradient:
            if key is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            found = call(grad_fn, params, batch, key, dloss)
            wide = jax.tree.map(lambda leaf: leaf.astype(summed_in(leaf.dtype)), found)
            return cast_like(jax.lax.psum(wide, axis), found)

        return on_each(mesh, axis, share)(params, batch, key, dloss)

    def in_turn(inner: GradFn) -> GradFn:
        def keys(key: Any, n: int) -> list[Any]:
            return [jax.random.fold_in(key, i) for i in range(n)]

        return share_by_share(inner, devices, keys)

    return Transformed("data_parallel", grad_fn, function, in_turn)
