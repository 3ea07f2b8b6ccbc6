"""Many updates in one device call, compiled once a kind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop import trees
from funprop.metrics import COLUMNS, check_names
from funprop.steps.retraced import expected
from funprop.train.sums import nothing, plus

if TYPE_CHECKING:
    from funprop.typing import PyTree

Pick = Callable[[Any, Any], Any]


class Runner:
    """The updates of a step over rows of data.

    Attributes:
      run: `(state, sums, data, rows, first, end) -> (state, sums)`: updates `first` to `end` of a
        block of batches, and the sums of their metrics added to those before. Sums go on from call
        to call: added up call by call, their bits would depend on how long calls are, which is
        measured. The bounds are data, so one compilation serves calls of any length.
      at_once: how many updates were last found to suit one call, by the kind of batches.
      probed: for which kinds it is known that padding has no say.
    """

    def __init__(self, update: Callable[..., Any], pick: Pick, donate: bool) -> None:
        # Traced once, for the metrics and for the run: what is jitted within keeps its trace.
        @functools.partial(jax.jit, inline=True)
        def updated(state: Any, data: PyTree, row: Any) -> Any:
            with expected():
                return update(state, pick(data, row))

        def run(state: Any, sums: Any, data: PyTree, rows: Any, first: Any, end: Any) -> Any:
            def one(i: Any, carry: Any) -> Any:
                state, metrics = updated(carry[0], data, rows[i])
                return state, plus(carry[1], metrics)

            return jax.lax.fori_loop(first, end, one, (state, sums))

        self.run = jax.jit(run, donate_argnums=0 if donate else ())
        self.at_once: dict[Any, int] = {}
        self.probed: set[Any] = set()
        self._updated = updated
        self._metrics: dict[Any, dict[str, trees.Sum]] = {}

    def metrics(self, state: Any, data: PyTree, rows: Any) -> dict[str, trees.Sum]:
        """The specs of the metrics of one update; the step is traced for it once a kind."""
        key = kind(state, data, rows)
        if key not in self._metrics:

            def told(state: Any, data: PyTree, rows: Any) -> dict[str, trees.Sum]:
                return self._updated(state, data, rows[0])[1]

            found = jax.eval_shape(told, state, data, rows)
            _check(found)
            self._metrics[key] = found
        return self._metrics[key]

    def zeros(self, state: Any, data: PyTree, rows: Any) -> dict[str, trees.Sum]:
        """The sums before the first update."""
        return nothing(self.metrics(state, data, rows))


def _check(metrics: dict[str, trees.Sum]) -> None:
    """Raise where they are not what an epoch's row can be made of."""
    if "loss" not in metrics:
        raise ValueError(f"metrics of update must have a 'loss', got {', '.join(metrics)}")
    check_names((n for n in metrics if not n.startswith("gradient_norm/")), COLUMNS[1:])
    loss = jax.tree.leaves(metrics["loss"])[0].shape  # of a population, a number a member
    what = f"{loss[0]} numbers, one a member" if len(loss) == 1 else "scalars"
    for name, leaf in metrics.items():
        shapes = [part.shape for part in jax.tree.leaves(leaf)]
        if shapes != [loss[:1]] * 2:
            raise ValueError(f"metric {name!r} must be a Sum of {what}, got shapes {shapes}")


@functools.lru_cache(maxsize=32)
def runner(update: Callable[..., Any], pick: Pick, donate: bool) -> Runner:
    """The `Runner` of a step's `update`; kept, so that another `fit` compiles nothing.

    Args:
      update: of a step.
      pick: `(data, row) -> batch`.
      donate: whether the memory of the state given becomes that of the next, or both stay.
    """
    return Runner(update, pick, donate)


def kind(*trees_: Any) -> Any:
    """What one compilation serves: structure, shapes and dtypes."""
    specs = trees.spec(trees_)
    return jax.tree.structure(specs), tuple(jax.tree.leaves(specs))
