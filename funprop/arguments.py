"""Is what was given what was meant? Asked where calls come in, each a sentence where it is not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.checks import check_key, check_numbers, described, is_number, is_scalar
from funprop.jitted import check_integers
from funprop.layer import Layer, output_spec
from funprop.params.frozen import trained
from funprop.trees import Sum

if TYPE_CHECKING:
    from funprop.typing import PyTree


def check_grad_fn(given: Any) -> None:
    """Raise a `TypeError` where what was given cannot be a grad_fn: a layer, a step, a loss."""
    wanted = (
        "grad_fn must be a function (params, batch, key) -> Gradient, as backprop(objective) or "
        "from_loss(loss_fn) makes it"
    )
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"{wanted}, got {described(given)}")
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # it cannot be told
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        told = str(signature)
        told = told if len(told) < 60 else "(...)"
        raise TypeError(f"{wanted}, got {described(given)}{told}") from None


def require_mesh(given: Any) -> None:
    """Raise a `TypeError` where what was given is no mesh."""
    if not isinstance(given, jax.sharding.Mesh):
        got = "None" if given is None else type(given).__name__
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {got}")


def check_optimizer(given: Any) -> None:
    """Raise a `TypeError` where what was given is no optax transform."""
    both = all(callable(getattr(given, name, None)) for name in ("init", "update"))
    if not both or hasattr(given, "parts") or isinstance(given, type):  # parts: those of a Step
        raise TypeError(
            "optimizer must be an optax transform, as optax.sgd(0.1) is, got " + described(given)
        )


def check_mesh(given: Any) -> None:
    """Raise where what was given is no mesh (a `TypeError`), or one whose axes are not left to the
    compiler (a `ValueError`), as those of a plain `jax.make_mesh` are not."""
    require_mesh(given)
    if any(kind is not jax.sharding.AxisType.Auto for kind in given.axis_types):
        raise ValueError(
            f"mesh must have axes of AxisType.Auto, got {given.axis_types}; see make_mesh"
        )


def check_trainable(params: PyTree) -> None:
    """Raise a `TypeError` where a leaf that would be trained is no floating number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained(params)):
        number = isinstance(leaf, (float, complex)) or (
            hasattr(leaf, "dtype") and trees.is_float(leaf)
        )
        if not (number and is_number(leaf)):
            raise TypeError(
                f"params must be floating numbers where they are trained, got {described(leaf)} at "
                f"{trees.path_string(path) or 'params'}: freeze it, or keep it apart from params"
            )


def check_given(batch: PyTree, key: Any, dloss: Any, name: str = "batch") -> None:
    """What every grad_fn asks of what it is called with, beside params.

    Args:
      batch, key, dloss: these.
      name: of what is called `batch` here.

    Raises:
      TypeError: a leaf of the batch holds no numbers, the key is no random key, or `dloss` no
        number.
      ValueError: an integer of the batch does not fit in the 32 bits that JAX has.
    """
    check_numbers(name, batch)
    check_integers(batch, name)
    check_key(key)
    if dloss is not None and not (is_number(dloss) and is_scalar(dloss)):
        raise TypeError(f"dloss must be one number, got {described(dloss)}")


def as_sum(name: str, given: Any) -> Sum:
    """A loss as a `Sum`, or a `TypeError`."""
    if isinstance(given, tuple) and [jnp.shape(leaf) for leaf in given] == [(), ()]:
        plain = any(isinstance(part, int | float) for part in given)  # as `x.size` is
        return trees.sum_of(*given) if plain else Sum(*given)
    got = ", ".join(map(trees.spec_string, jax.tree.leaves(given)))
    raise TypeError(f"{name} must give a Sum, (total, weight) over the batch, got {got}")


def run(objective: Layer, params: PyTree, batch: PyTree, key: Any) -> tuple[Sum, PyTree]:
    """`objective.forward`, whose output must be a `Sum`."""
    loss, residuals = objective.forward(params, batch, key)
    return as_sum("objective", loss), residuals


@contextmanager
def objective_meant(objective: Layer, params: PyTree, batch: PyTree) -> Iterator[None]:
    """Within, what fails because `objective` is a model without a loss fails with that sentence."""
    try:
        yield
    except (AttributeError, TypeError, ValueError):
        if isinstance(batch, tuple) and _is_model(objective, params, batch):
            raise TypeError(
                "objective must give a Sum, as objective(model, loss) does, got the model "
                f"{objective.name} alone"
            ) from None
        raise


def _is_model(layer: Layer, params: PyTree, batch: tuple[Any, ...]) -> bool:
    try:
        return not isinstance(output_spec(layer, params, batch[0]), Sum)
    except Exception:  # then it is none, or the params are not its
        return False
