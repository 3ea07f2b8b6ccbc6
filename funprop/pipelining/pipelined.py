"""A gradient whose blocks are spread over the devices of a mesh axis, as stages of a pipeline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.arguments import check_trainable, objective_meant, run
from funprop.checks import described
from funprop.gradients import Gradient, backprop, metrics_of
from funprop.keys import split_key
from funprop.layer import Layer, recorded
from funprop.linear_map import forward_only
from funprop.located import check_params
from funprop.pipelining.cut import cut
from funprop.pipelining.executor import Device, Sums
from funprop.pipelining.schedule import Schedule
from funprop.properties import refuse_mixing
from funprop.transforms.devices import axis_size, share_by_share
from funprop.transforms.microbatch import batch_size, microbatch
from funprop.transforms.transformed import Transformed, what_mixes

if TYPE_CHECKING:
    from funprop.gradients import GradFn
    from funprop.typing import PyTree

BATCH = ("data", "fsdp")  # the axes that split the batch, where the mesh has them, as in `shard`


def pipeline(
    objective: Layer, mesh: jax.sharding.Mesh, schedule: Schedule, axis: str = "pipe"
) -> Transformed:
    """`backprop(objective)`, with the blocks of its one `repeat` spread over the devices of a mesh
    axis: each has a run of them, its stage, and hands activations on and cotangents back.

    The sums are those of `microbatch(backprop(objective), n)` with the schedule's `n` microbatches:
    the same parts of the batch, the same keys, up to rounding; so it goes where any grad_fn does.
    The blocks' params lie along `axis` by their stacked dimension, and so do their gradients; give
    `shard` the rules `[("blocks", P("pipe")), ("*", P())]`, with the name of the `repeat`. What is
    before the blocks is computed by the first stage alone, and what is behind them, loss and all,
    by the last, in its `B`; but the params of both lie whole on every device. What `tap` sees of
    cotangents is left out.

    If the mesh has axes named data or fsdp, they split the batch: each row along `axis` is a
    pipeline of its own, with a key of its own.

    Args:
      objective: as of `backprop`; it has one `repeat`, at any depth, and nothing goes around it.
      mesh: with as many devices along `axis` as the schedule has stages.
      schedule: as `gpipe`, `one_f_one_b` or `zero_bubble` makes it.
      axis: of the mesh.

    Raises:
      TypeError: `objective`, `mesh` or `schedule` is none; or, at trace time, blocks hand on
        integers.
      ValueError: the objective has no `repeat`, or several, or it shares its params, or something
        goes around it; the stages are not as many as the devices, or do not divide the blocks; the
        mesh has axes that are not `AxisType.Auto`; or, when called, the microbatches do not divide
        the batch (of each device along data), or a layer mixes examples.

    Example:
      >>> import funprop as fp
      >>> deep = fp.objective(fp.repeat(fp.residual(fp.dense(3)), 4), fp.mean_squared())
      >>> batch = jnp.ones((8, 3)), jnp.ones((8, 3))
      >>> params = deep.init(jax.random.key(0), batch)
      >>> grad_fn = pipeline(deep, fp.make_mesh(pipe=1), fp.zero_bubble(1, 4))
      >>> a, b = grad_fn(params, batch), fp.backprop(deep)(params, batch)
      >>> bool(abs(a.loss - b.loss) < 1e-5 * b.loss), float(a.weight)
      (True, 24.0)
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be such as zero_bubble(4, 16), got {described(schedule)}")
    parts, plain = cut(objective), backprop(objective)
    stages, n = axis_size(mesh, axis), schedule.microbatches
    if schedule.stages != stages:
        raise ValueError(
            f"schedule must have as many stages as devices along {axis!r}, {stages}, got "
            f"{schedule.stages}"
        )
    own = parts.share(stages)
    data = tuple(name for name in BATCH if name in mesh.shape and name != axis)
    shares = math.prod(mesh.shape[name] for name in data)

    def function(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Gradient:
        refuse_mixing("pipeline", what_mixes(plain, key))
        size = batch_size(batch)
        if size % (n * shares):
            each = f" on each of {shares} shares" if shares > 1 else ""
            raise ValueError(f"batch must divide by {n} microbatches{each}, got {size} examples")
        with objective_meant(objective, params, batch):
            check_params(objective, params, batch)
            check_trainable(params)
            records = _records(objective, params, batch, key)
        parts.check_in_line(params, batch, key)

        def device(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Sums:
            if key is not None and data:
                key = jax.random.fold_in(key, jax.lax.axis_index(data))
            keys = None if key is None else jnp.stack(split_key(key, n))
            rows = jax.tree.map(lambda leaf: leaf.reshape(-1, n, *leaf.shape[1:]), batch)
            one = Device(parts, schedule, axis, own, params, rows, keys, dloss)
            return one.sums(records.num_leaves, data)

        whole, stacked = jax.P(), jax.P(axis)
        lie = parts.replaced(jax.tree.map(lambda _: whole, params), stacked)
        specs = (lie, jax.P(data or None), whole, whole)
        outs = Sums(stacked, whole, whole, whole, stacked, whole)
        # As in transforms/devices.py: without JAX's account of what is the same on all devices.
        over_mesh = jax.shard_map(
            device, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False
        )
        # Compiled as one also where nothing around it is: else JAX compiles each operation alone.
        sums: Sums = jax.jit(over_mesh)(params, batch, key, dloss)
        sums = forward_only(
            "pipeline has no reverse mode, only jax.jvp: take jax.grad of microbatch(backprop("
            f"objective), {n}), whose sums are the same",
            sums,
        )
        found = records.unflatten([*sums.stem, *sums.inside, *sums.head])
        grads = parts.replaced(sums.others, sums.blocks)
        return Gradient(grads, sums.loss.total, sums.loss.weight, metrics_of(found), found)

    def in_turn(inner: GradFn) -> GradFn:
        def keys(key: Any, count: int) -> list[Any]:
            return [jax.random.fold_in(key, i) for i in range(count)]

        one = microbatch(inner, n)
        return share_by_share(one, shares, keys) if data else one

    return Transformed("pipeline", plain, function, in_turn)


def _records(objective: Layer, params: PyTree, batch: PyTree, key: Any) -> Any:
    """The structure of what the objective records."""

    def records(params: PyTree, batch: PyTree, key: Any) -> PyTree:
        return recorded(run(objective, params, batch, key)[1])

    return jax.tree.structure(jax.eval_shape(records, params, batch, key))
