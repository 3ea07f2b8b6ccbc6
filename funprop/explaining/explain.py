"""`explain`: one training step told in four stages: forward, loss, backward, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from funprop.arguments import check_given, check_optimizer, check_trainable, objective_meant, run
from funprop.checks import check_known, described
from funprop.explaining import page, report
from funprop.explaining.calls import Call, calls_of
from funprop.explaining.notes import Note, notes_of
from funprop.explaining.updates import RATE, Update, applied, updates_of
from funprop.gradients import Gradient
from funprop.inspect.table import as_html
from funprop.layer import Layer, check_layer
from funprop.located import check_params

if TYPE_CHECKING:
    import os

    from funprop.typing import PyTree


class Explanation(NamedTuple):
    """One training step. `print` shows it as tables; `to_html` writes a page to click through.

    Attributes:
      objective: the model and its loss.
      loss, weight: the sum of the loss's terms, and of their weights.
      gradient: as `backprop` gives it: sums over the batch.
      calls: every call of every layer, in forward order.
      updates: what the update does to each leaf of params.
      notes: what is off, and what people do about it.
      optimizer: in words.
    """

    objective: Layer
    loss: float
    weight: float
    gradient: Gradient
    calls: tuple[Call, ...]
    updates: tuple[Update, ...]
    notes: tuple[Note, ...]
    optimizer: str

    @property
    def layers(self) -> tuple[Call, ...]:
        """The calls of the layers that are made of no others."""
        return tuple(call for call in self.calls if call.whole)

    def __repr__(self) -> str:
        mean = self.loss / (self.weight or 1.0)
        n = len(self.notes)
        return f"Explanation({self.objective}, loss {mean:.4g}, {n} note{'' if n == 1 else 's'})"

    def __str__(self) -> str:
        return report.text(self)

    def __rich__(self) -> Any:
        return report.rich(self)

    def _repr_html_(self) -> str:
        parts = [
            f"<h4>{stage.title}</h4>{as_html(stage.rows, stage.left)}"
            for stage in report.stages(self)
        ]
        return "".join(parts)

    def plain(self) -> str:
        """The tables as plain text."""
        return report.plain(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page that needs no network: the network as a graph, with every layer's formula
        and numbers, and a slider through the step.

        Raises:
          OSError: it cannot be written.
        """
        page.write(self, path)


def explain(
    objective: Layer,
    params: PyTree,
    batch: PyTree,
    *,
    key: Any = None,
    optimizer: Any = None,
    opt_state: Any = None,
) -> Explanation:
    """One training step on this model and batch, told in the four stages of backpropagation.

    For every layer: what it computes (its `Formula`), what went forward, what cotangent came back
    and its params' gradients; then the loss, and what the update does to every weight. Run without
    `jit`, layer by layer: slower than an update, and all activations of the batch are held.

    Args:
      objective: as `objective(model, loss)` makes it.
      params: its params.
      batch: `(inputs, targets)` or `(inputs, targets, weights)`.
      key: for what draws in training; `None` for inference.
      optimizer: of optax; plain SGD at 0.1 if not given, and then nothing is said of its size.
      opt_state: the optimizer's; a new one if not given.

    Raises:
      TypeError: `objective` is none (it may be a model without a loss), `optimizer` is none of
        optax's, the key is no random key.
      ValueError: `params` are not this objective's.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> told = explain(line, fp.DenseParams(jnp.array([[1.0]]), None), batch)
      >>> told.layers[0].path, told.layers[0].formula.backward
      ('dense', 'dx = dy w^T; dw = x^T dy; db = sum of dy')
      >>> told.layers[0].dy.values, told.updates[0].after.values
      ([[-2.0], [-4.0]], [[1.5]])
    """
    if optimizer is not None:
        check_optimizer(optimizer)
    words = f"plain SGD, learning rate {RATE}" if optimizer is None else "the optimizer given"

    def after(gradient: Gradient) -> PyTree:
        return applied(gradient, params, optimizer, opt_state)

    return explained(
        objective, params, batch, key, after, words, sizes_matter=optimizer is not None
    )


def explained(
    objective: Layer,
    params: PyTree,
    batch: PyTree,
    key: Any,
    after: Callable[[Gradient], PyTree],
    words: str,
    *,
    sizes_matter: bool,
) -> Explanation:
    """`explain`, where `after` gives the params after the update."""
    check_layer("objective", objective, "objective(model, loss)")
    check_given(batch, key, None)
    if not isinstance(batch, tuple):
        raise TypeError(f"batch must be (inputs, targets), got {described(batch)}")
    with objective_meant(objective, params, batch):
        check_params(objective, params, batch)
        check_known("params", params)
        check_known("batch", batch)
        check_trainable(params)
        run(objective, params, batch, key)
    gradient, calls = calls_of(objective, params, batch, key)
    updates = updates_of(objective, gradient, params, after(gradient))
    notes = notes_of(calls, updates, gradient, sizes_matter)
    loss, weight = float(gradient.loss), float(gradient.weight)
    return Explanation(objective, loss, weight, gradient, calls, updates, notes, words)
