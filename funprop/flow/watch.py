"""Looking, now and then in a run, at how activations, cotangents and updates are spread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from funprop.arguments import check_given
from funprop.checks import described, is_number, is_scalar
from funprop.flow.observed import Told, observed, parts_of, updates_of
from funprop.flow.spread import Spread, spread
from funprop.layer import Layer
from funprop.nonfinite.update import given_by
from funprop.steps.step import Step, check_step
from funprop.transforms.transformed import objective_of
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree


class LayerFlow(NamedTuple):
    """One layer at one look.

    Attributes:
      activation: of its output.
      cotangent: of its output too, of the sum of the loss over the examples.
      update: of what an update adds to its params; `None` where it has none that are trained.
      ratio: the root mean square of the update, by that of the params; NaN where there is none.
      dead: of an elementwise layer, the share of units that give 0 for all examples; else 0.
      saturated: of an elementwise layer, the share of numbers that pass on less than 2% of their
        cotangent, and are not 0; else 0.
    """

    activation: Spread | None
    cotangent: Spread | None
    update: Spread | None
    ratio: float
    dead: float
    saturated: float


class Look(NamedTuple):
    """All layers at one time.

    Attributes:
      epoch, update: how much of the run was done.
      layers: each by its path, in order; each copy of what is repeated apart.
    """

    epoch: float
    update: int
    layers: dict[str, LayerFlow]


class Watch:
    """What `watch` gives.

    Attributes:
      looks: a list of `Look`; `gradient_flow` makes a picture of them.
    """

    def __init__(self, *, every: int = 300, examples: int = 64) -> None:
        self.every = whole_number(every, "every", 1)
        self.examples = whole_number(examples, "examples", 1)
        self.looks: list[Look] = []
        self._of: Step | None = None
        self._program: Any = None

    def due(self, update: int) -> bool:
        """Whether a look is, at a row after so many updates."""
        return not self.looks or update - self.looks[-1].update >= self.every

    def look(self, step: Step, state: Any, batch: PyTree, epoch: float, update: int) -> Look:
        """One look, for loops of your own; `state` stays as it is.

        Raises:
          TypeError: `step` is no step, `state` not its state, `batch` no numbers, or `epoch` or
            `update` no number.
          ValueError: the objective within `step` is not known.
        """
        objective = watchable(step)
        check_given(batch, None, None)
        if not (is_number(epoch) and is_scalar(epoch)):
            raise TypeError(f"epoch must be a number, got {described(epoch)}")
        update = whole_number(update, "update", 0)
        if self._of is not step:
            self._of, self._program = step, jax.jit(_program(step, objective, self.examples))
        told = jax.device_get(self._program(state, batch))
        layers = {
            path: flow
            for part, rows in zip(parts_of(objective), told, strict=True)
            for path, flow in zip(part.paths(), _by_copy(rows), strict=True)
            if flow is not None
        }
        self.looks.append(Look(float(epoch), update, layers))
        return self.looks[-1]


def watch(*, every: int = 300, examples: int = 64) -> Watch:
    """What `fit(..., watch=)` fills: how activations, cotangents and updates are spread, by layer.

    `fit` looks before the first update and then where a row of the history is due, at the end of an
    epoch, if there were `every` updates since the last look. A look is a gradient and an update
    from the state then, on the first batch of the run, in a program of its own; both are thrown
    away, so training has the same bits with and without. It looks through transforms
    (`mixed_precision`, `microbatch`) at the objective within; the update is that of the whole step.

    Args:
      every: at least so many updates lie between two looks: one costs as much as three of them, or
        up to seven of a small model.
      examples: so many of the batch activations and cotangents are taken of, the first.

    Returns:
      A `Watch`; its `looks` are a list of `Look`, of which `gradient_flow` makes a picture.

    Raises:
      TypeError: an argument is no whole number.
      ValueError: one is below 1.

    Example:
      >>> import jax.numpy as jnp, optax, funprop as fp
      >>> model = fp.serial(fp.dense(4), fp.relu(), fp.dense(1))
      >>> objective = fp.objective(model, fp.mean_squared())
      >>> data = jnp.linspace(-1, 1, 32)[:, None], jnp.ones((32, 1))
      >>> train = fp.step(fp.backprop(objective), optax.sgd(0.1))
      >>> state = train.init(objective.init(jax.random.key(0), data), None)
      >>> seen = watch(every=1)
      >>> _ = fp.fit(train, state, data, epochs=3, batch_size=8, progress=None, watch=seen)
      >>> [look.update for look in seen.looks], list(seen.looks[0].layers)
      ([0, 4, 8, 12], ['dense_0', 'relu', 'dense_1'])
      >>> seen.looks[0].layers["dense_0"].activation.size, seen.looks[-1].layers["relu"].dead < 1
      (32, True)
    """
    return Watch(every=every, examples=examples)


def watchable(step: Step) -> Layer:
    """The objective of a step; raises where it has none that can be looked into."""
    check_step(step)
    objective = None if step.grad_fn is None else objective_of(step.grad_fn)
    if objective is None:
        got = described(step.grad_fn)
        raise ValueError(
            f"watch needs a step of backprop(objective), whose layers it sees, got {got}"
        )
    return objective


def check_watch(given: Any, step: Step, mesh: Any, state: Any) -> None:
    """Raise where it is nothing that `fit` can fill, in this run."""
    if given is None:
        return
    if not isinstance(given, Watch):
        raise TypeError(f"watch must be a watch(), got {described(given)}")
    watchable(step)
    if mesh is not None or hasattr(state, "members"):
        what = "a mesh" if mesh is not None else "a population"
        raise ValueError(f"watch must be of one run on one process, got {what}")


def _program(step: Step, objective: Layer, examples: int) -> Any:
    def looked(state: Any, batch: PyTree) -> list[Told]:
        params, key, _ = given_by(state)
        some = jax.tree.map(lambda leaf: leaf[:examples], batch)
        told = observed(objective, params, some, key)
        if step.propose is None:
            return told
        after = given_by(step.propose(state, batch)[0]).params
        added = updates_of(objective, params, after)
        each = zip(told, added, strict=True)
        return [rows._replace(update=u, weights=w) for rows, (u, w) in each]

    return looked


def _by_copy(rows: Told) -> list[LayerFlow | None]:
    flows: list[LayerFlow | None] = []
    for i in range(len(rows.y)):
        added = None if rows.update is None else spread(rows.update[i])
        y, dy = spread(rows.y[i]), spread(rows.dy[i])
        if added is None and y is not None and y.size <= 2:  # a loss: a sum and its weight
            flows.append(None)
            continue
        size = (float(rows.weights[i]) / added.size) ** 0.5 if added else 0.0
        ratio = added.rms / size if added and size else float("nan")
        flat, of, dead, units = (float(n) for n in np.asarray(rows.units[i], np.float64))
        flows.append(LayerFlow(y, dy, added, ratio, dead / max(units, 1), flat / max(of, 1)))
    return flows
