"""What a layer itself can say of the batches of a run whose loss is NaN."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.steps import Step

if TYPE_CHECKING:
    from funprop.typing import PyTree

# A run whose loss is NaN ends; without jit, batches of a large model may take minutes each.
SEARCH_SECONDS = 20


def look_into(step: Step, state: Any, pick: Callable[..., PyTree], data: PyTree, rows: Any) -> None:
    """Run batches with their values known: a layer that can say what is wrong with them (a label
    out of range, say) then raises."""
    grad_fn = step.grad_fn
    objective = getattr(getattr(grad_fn, "plain", grad_fn), "objective", None)
    if objective is None:
        return
    params, until = state.params, time.monotonic() + SEARCH_SECONDS
    if hasattr(state, "members"):
        params = jax.tree.map(lambda leaf: leaf[0], params)
    with jax.disable_jit():
        for row in itertools.takewhile(lambda _: time.monotonic() < until, np.asarray(rows)):
            objective.forward(params, pick(data, jnp.asarray(row)))
