"""A step over many devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from funprop.arguments import check_mesh
from funprop.checks import described
from funprop.sharding.rules import Rules, devices, shardings
from funprop.steps.step import Step, parts_of, proposed, updating

if TYPE_CHECKING:
    from funprop.typing import PyTree

BATCH = ("data", "fsdp")  # the axes that split the batch, where the mesh has them


def shard(step: Step, mesh: Mesh, rules: Rules, *, batch: tuple[str, ...] | None = None) -> Step:
    """The same step with its state spread over a mesh and its batch split.

    A leaf of the state lies as its param does if the param's path is in its own and it has the
    param's shape: moments, averages, copies. All else is on every device. The results are those of
    one device up to rounding, as sums are taken in another order.

    `scan(shard(step))` and `shard(scan(step))` are the same; in both the second axis is split.

    Args:
      step: any step; its update must take its examples along the first axis of the batch.
      mesh: as `make_mesh` makes it.
      rules: where params lie (see `shardings`), such as `fsdp_rules(mesh)`.
      batch: the axes of the mesh that split the batch; by default those named data and fsdp.

    Returns:
      A step whose `init` cuts params and makes the rest of the state in place, so no device holds
      all of it, and whose `update` takes its batch from the host or from the devices. To make
      params in place too: `jax.jit(init, out_shardings=shardings(...))`.

    Source: Xu et al., arXiv:2105.04663 (GSPMD).

    Raises:
      TypeError: `step` is none, or `mesh`.
      ValueError: the step is sharded already; the mesh has axes that are not `AxisType.Auto`;
        `batch` names others than the mesh has; or, at init or an update's trace, rules and params
        do not go together, or the devices along `batch` do not divide the examples.

    Example:
      >>> import jax.numpy as jnp, optax, funprop as fp
      >>> mesh = fp.make_mesh(data=1)
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> train = shard(fp.step(fp.backprop(line), optax.sgd(0.1)), mesh, fp.fsdp_rules(mesh))
      >>> data = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> state = train.init(line.init(jax.random.key(0), data), None)
      >>> for _ in range(50):
      ...     state, metrics = train.update(state, data)
      >>> round(float(state.params.w[0, 0]), 4), train.parts
      (2.0, ('shard', 'step'))
    """
    if "shard" in parts_of(step):
        raise ValueError(f"step must not be sharded already, got {step.parts}")
    check_mesh(mesh)
    axes = tuple(name for name in BATCH if name in mesh.shape) if batch is None else batch
    if not set(axes) <= set(mesh.shape):
        raise ValueError(f"batch must name axes of the mesh, {tuple(mesh.shape)}, got {axes}")
    # Each scan inside takes one batch after the other from an axis in front.
    in_front = step.parts.count("scan")
    split = NamedSharding(mesh, PartitionSpec(*[None] * in_front, axes or None))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def init(params: PyTree, key: Any) -> Any:
        params = jax.device_put(params, shardings(params, mesh, rules))
        key = jax.device_put(key, everywhere)
        placed = state_shardings(jax.eval_shape(step.init, params, key), mesh, rules)
        return jax.jit(step.init, out_shardings=placed)(params, key)

    def propose(state: Any, batch: PyTree, dloss: Any = None) -> tuple[Any, Any, Any]:
        if not hasattr(state, "params"):
            raise TypeError(
                "state must be what init of the same step gives, got " + described(state)
            )
        _check_batch(batch, in_front, axes, devices(mesh, axes))
        placed = state_shardings(state, mesh, rules)
        state = jax.lax.with_sharding_constraint(state, placed)
        batch = jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, split), batch)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells layers that they are split
            state, *told = proposed(step, state, batch, dloss)
        metrics, finite = jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, everywhere), tuple(told)
        )
        return jax.lax.with_sharding_constraint(state, placed), metrics, finite

    parts = "shard", *step.parts
    return Step(init, updating(propose), step.check, parts, propose, step.grad_fn)


def state_shardings(state: Any, mesh: Mesh, rules: Rules) -> PyTree:
    """The `NamedSharding` of every leaf of a step's state, from that of its params."""
    placed = jax.tree.leaves(shardings(state.params, mesh, rules))
    params: dict[Any, list[Any]] = {}
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(state.params), placed, strict=True
    ):
        params.setdefault(leaf.shape, []).append((path, place))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path: Any, leaf: Any) -> NamedSharding:
        mine = [param for param in params.get(leaf.shape, ()) if _within(param[0], path)]
        return max(mine, key=lambda param: len(param[0]))[1] if mine else everywhere

    return jax.tree_util.tree_map_with_path(place, state)


def _within(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    """Whether all of `inner` is in `outer`, in that order; between may be what a state adds."""
    rest = iter(outer)
    return all(key in rest for key in inner)


def _check_batch(batch: PyTree, axis: int, axes: tuple[str, ...], parts: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if leaf.ndim <= axis or leaf.shape[axis] % parts:
            raise ValueError(
                f"batch must have an axis {axis} that divides by {parts}, the devices of "
                f"{axes}, got shape {leaf.shape}"
            )
