"""Many updates in one device call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from funprop.steps.donating import Donating
from funprop.steps.step import Step, check_step
from funprop.trees import Sum

if TYPE_CHECKING:
    from funprop.typing import PyTree


def scan(step: Step) -> Step:
    """Many updates in one device call: `update(state, batches)` with a leading axis of batches.

    The metrics come back with that axis too, one entry an update. The bits are those of single
    updates.

    Raises:
      TypeError: `step` is none.

    Example:
      >>> import jax.numpy as jnp, optax, funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> many = scan(fp.step(fp.backprop(line), optax.sgd(0.1)))
      >>> batches = jnp.ones((50, 4, 1)), jnp.full((50, 4, 1), 3.0)
      >>> one = jax.tree.map(lambda leaf: leaf[0], batches)
      >>> state, metrics = many.update(many.init(line.init(jax.random.key(0), one), None), batches)
      >>> metrics["loss"].mean.shape, round(float(state.params.w[0, 0]), 3)
      ((50,), 3.0)
    """
    check_step(step)

    def update(state: Any, batches: PyTree) -> tuple[Any, dict[str, Sum]]:
        return jax.lax.scan(step.update, state, batches)

    parts = ("scan", *step.parts)
    return Step(step.init, Donating(update), step.check, parts, grad_fn=step.grad_fn)
