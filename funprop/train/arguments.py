"""What `fit` is given, refused at the door where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from funprop.arguments import check_mesh
from funprop.steps import Step
from funprop.steps.donating import check_alive
from funprop.steps.step import check_step as is_step
from funprop.train.arrays import AXIS
from funprop.values import whole_number


def check_sizes(n: int, epochs: int, batch_size: Any, last: str = "short") -> tuple[int, int]:
    """`epochs` and `batch_size`, where `n` examples can be trained on so.

    Raises:
      TypeError: one is no integer.
      ValueError: it is out of its range.
    """
    epochs = whole_number(epochs, "epochs", 1)
    size = whole_number(batch_size, "batch_size")
    if not 1 <= size <= n:
        raise ValueError(f"batch_size must be from 1 to {n}, the number of examples, got {size}")
    if last not in ("short", "pad", "drop"):
        raise ValueError(f"last must be 'short', 'pad' or 'drop', got {last!r}")
    return epochs, size


def check_step(step: Any, state: Any) -> None:
    """Raise where `step` is no Step, or `state` none of its states, or one that is used up."""
    is_step(step)
    if "scan" in step.parts:
        raise ValueError("step must not be a scan: fit runs many updates in a device call itself")
    if not hasattr(state, "params"):
        raise TypeError(
            "state must be what step.init(params, key) gives, got something without params: "
            f"{type(state).__name__}"
        )
    check_alive(state)


def check_state(step: Step, state: Any) -> None:
    """Raise where `state` is that of another step; for when an update by it has failed."""
    try:
        fitting = [
            jax.eval_shape(step.init, state.params, key) for key in (None, jax.random.key(0))
        ]
    except Exception:
        return  # what failed is something else
    if jax.tree.structure(state) not in map(jax.tree.structure, fitting):
        raise TypeError(
            f"state must be what step.init(params, key) gives, a {type(fitting[0]).__name__}, got "
            f"the {type(state).__name__} of another step or optimizer"
        )


def check_options(held_out: Any, measure: Any, stop: Any, progress: Any, mesh: Any) -> None:
    """Raise where one of them is not what `fit` takes."""
    if held_out is None and measure is not None:
        raise ValueError("measure is of held_out data, and there is none")
    if held_out is not None and measure is None:
        raise ValueError("held_out needs measure: the step does not say what its gradient is of")
    if measure is not None and not callable(measure):
        raise TypeError(
            f"measure must be a function, as fp.measure makes it, got {type(measure).__name__}"
        )
    if not isinstance(stop, Sequence):
        raise TypeError(f"stop must be a list of rules, got {_told(stop)}")
    for rule in stop:
        if not callable(rule):
            raise TypeError(f"stop must hold rules, functions of the history, got {_told(rule)}")
    if progress is not None and not callable(progress):
        raise TypeError(
            f"progress must be None or a function that makes a display, got {_told(progress)}"
        )
    if mesh is None:
        return
    check_mesh(mesh)
    if AXIS not in mesh.shape:
        raise ValueError(f"mesh must have an axis {AXIS!r}, got {mesh.axis_names}")


def check_divides(mesh: Any, batch_size: int) -> None:
    """Raise where the devices of a mesh cannot have equal parts of a batch."""
    if mesh is not None and batch_size % mesh.shape[AXIS]:
        raise ValueError(
            f"batch_size must be a multiple of {mesh.shape[AXIS]} devices, got {batch_size}"
        )


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | str) else type(value).__name__
