"""All four stages with the update inside the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.arguments import check_trainable, objective_meant, run
from funprop.gradients import Gradient, backprop, losses, metrics_of
from funprop.layer import Layer, check_layer, recorded
from funprop.located import check_params
from funprop.params.statistics import fold
from funprop.reprs import of_fields
from funprop.rewrites.fused_update import fused_update, with_opt_state, without_opt_state
from funprop.steps.donating import Donating
from funprop.steps.step import Step, check_key_of, check_state
from funprop.trees import Sum

if TYPE_CHECKING:
    import optax

    from funprop.typing import PyTree


class FusedState(NamedTuple):
    """The state of `fused_step`.

    Attributes:
      updating: params and the optimizer's state together, an `Updating` for each leaf of the model.
      key: a random key, or `None`; update `i` draws from `fold_in(key, i)`.
      count: how many updates were made, `int32`.
    """

    updating: Any
    key: Any
    count: Any

    def __repr__(self) -> str:
        return of_fields(self)

    @property
    def params(self) -> Any:
        """The params alone, as the objective takes them."""
        return without_opt_state(self.updating)


def fused_step(objective: Layer, optimizer: optax.GradientTransformation) -> Step:
    """As `step(backprop(objective), optimizer)`, the full gradient never in memory.

    Each layer is updated in the backward pass as soon as its gradient is known (`fused_update`).
    The loss's weight is known before that: the cotangent that enters is divided by it.

    Args:
      objective: any layer from a batch to a `Sum`, as `objective(model, loss)` makes it.
      optimizer: an optax transform that acts leaf by leaf; a mask is a function of the params of
        one leaf of the model, as `mask=fp.decayed` (see `fused_update`).

    Raises:
      ValueError: the optimizer mixes leaves, or draws random numbers, or has a mask that is no
        function; or, at an update's trace, params that are not this objective's; or there is no key
        and a layer draws from one.
      TypeError: the optimizer is none, or wants more than gradients and params; or as `step`.

    Example:
      >>> import optax, funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> train = fused_step(line, optax.sgd(0.1))
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> state = train.init(line.init(jax.random.key(0), batch), None)
      >>> for _ in range(50):
      ...     state, metrics = train.update(state, batch)
      >>> round(float(state.params.w[0, 0]), 4), float(metrics["loss"].mean) < 1e-6
      (2.0, True)
    """
    check_layer("objective", objective, "objective(model, loss)")
    fused = fused_update(objective, optimizer)
    grad_fn = backprop(objective)

    def init(params: PyTree, key: Any) -> FusedState:
        check_trainable(params)
        check_key_of(key, grad_fn)
        updating = with_opt_state(objective, params, optimizer)
        state = FusedState(updating, key, jnp.zeros((), jnp.int32))
        return jax.tree.map(jnp.copy, state)  # the first update donates it

    def update(state: FusedState, batch: PyTree) -> tuple[FusedState, dict[str, Sum]]:
        check_state(state, FusedState)
        check_key_of(state.key, grad_fn)
        key = None if state.key is None else jax.random.fold_in(state.key, state.count)
        with objective_meant(objective, state.params, batch):
            check_params(objective, state.params, batch)
            (loss, weight), residuals = run(fused, state.updating, batch, key)
        scale = (1 / jnp.where(weight == 0, 1, weight)).astype(loss.dtype)
        updating, _ = fused.backward(state.updating, residuals, Sum(scale, jnp.zeros_like(weight)))
        records = recorded(residuals)
        metrics = losses(Gradient((), loss, weight, metrics_of(records), records))
        return FusedState(fold(updating, records), state.key, state.count + 1), metrics

    return Step(init, Donating(update), parts=("fused_step",), grad_fn=grad_fn)
