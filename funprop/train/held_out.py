"""Measuring on data that is not trained on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop import trees
from funprop.gradients import GradFn, measure
from funprop.train.arrays import copies

if TYPE_CHECKING:
    from funprop.typing import PyTree

# Held-out data is measured in batches of at least this many examples.
MEASURED_AT_ONCE = 1024


def params_of(state: Any) -> Any:
    """Those to predict with: the average where the state has one (see `ema`)."""
    average = getattr(state, "average", None)
    return state.params if average is None else average


def measuring(
    held_out: PyTree,
    by: Callable[[PyTree, PyTree], dict[str, trees.Sum]],
    batch_size: int,
    mesh: jax.sharding.Mesh | None,
    state: Any,
) -> Callable[[Any], list[dict[str, trees.Sum]]]:
    """`state -> sums over each batch of the held-out data`, which is put on the device once.

    Raises:
      TypeError: here, if it can be seen without computing, or when called: `measure` gives
        something else than sums.
    """
    if getattr(state, "members", None) is not None:
        by = _of_members(by)
    n = len(jax.tree.leaves(held_out)[0])
    at_once = max(batch_size, MEASURED_AT_ONCE)
    batches = [
        copies(jax.tree.map(lambda leaf, i=i: leaf[i : i + at_once], held_out), mesh)
        for i in range(0, n, at_once)
    ]
    if hasattr(by, "eval_shape"):  # jitted: what is wrong is found before it is trained for
        for batch in (batches[0], batches[-1]):
            _check(by.eval_shape(params_of(state), batch))  # pyright: ignore

    def measured(state: Any) -> list[dict[str, trees.Sum]]:
        params = params_of(state)
        return [_check(by(params, batch)) for batch in batches]

    return measured


@functools.lru_cache(maxsize=32)
def measure_of(grad_fn: GradFn) -> Callable[..., Any]:
    """`measure(grad_fn)`; kept, so that another `fit` compiles nothing."""
    return measure(grad_fn)


@functools.lru_cache(maxsize=32)
def _of_members(measure: Callable[..., Any]) -> Callable[..., Any]:
    """The same of every member of a population; kept, so that each kind is compiled for once."""
    return jax.jit(jax.vmap(measure, (0, None)))


def _check(found: Any) -> dict[str, trees.Sum]:
    if not isinstance(found, dict):
        raise TypeError(
            "measure must give {name: Sum}, as fp.measure(grad_fn) does, got "
            f"{type(found).__name__}"
        )
    for name, value in found.items():
        if not isinstance(value, trees.Sum):
            raise TypeError(
                f"measure must give {{name: Sum}}, got {type(value).__name__} for {name!r}"
            )
    return found
