"""What became of each member of a population: a table, the best first, and a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from funprop.checks import described
from funprop.inspect.table import aligned, as_html
from funprop.steps import Population
from funprop.train.fit import Fit

if TYPE_CHECKING:
    from funprop.typing import Float, Int

SHOWN = 12  # members that `print` shows; of more, those in the middle are left out


class PopulationTable(NamedTuple):
    """The members of a population after a `fit`. `print` shows it as a table, the best first.

    Attributes:
      numbers: what differs, `[members]` each, by name.
      seed: which of the keys each had.
      epochs: of the rows of the history, `[rows]`.
      curves: every metric after every row, `[rows, members]`, by its name in the history.
      metric: which the order is by: the held-out loss, or the loss where nothing was held out.
      order: the members, the best first; those that diverged last.
    """

    numbers: dict[str, Float[np.ndarray, " members"]]
    seed: Int[np.ndarray, " members"]
    epochs: Float[np.ndarray, " rows"]
    curves: dict[str, Float[np.ndarray, "rows members"]]
    metric: str
    order: tuple[int, ...]

    @property
    def best(self) -> int:
        """The member with the least last value of `metric`."""
        return self.order[0]

    def __repr__(self) -> str:
        first, *lines = aligned(self._cells(), left=[])
        return "\n".join([first, "-" * max(map(len, [first, *lines])), *lines])

    def _repr_html_(self) -> str:
        return as_html(self._cells(), left=[])

    def _cells(self) -> list[list[str]]:
        told = [name.replace("held_out/", "held-out ") for name in self.curves]
        head = ["member", *self.numbers, "seed", *told]
        shown: Sequence[int] = self.order
        hidden = len(shown) > SHOWN
        if hidden:
            shown = (*shown[: SHOWN // 2], *shown[-(SHOWN // 2) :])
        rows = [
            [
                str(i),
                *(f"{values[i]:.3g}" for values in self.numbers.values()),
                str(self.seed[i]),
                *(_short(curve[-1, i]) for curve in self.curves.values()),
            ]
            for i in shown
        ]
        if hidden:
            rows.insert(SHOWN // 2, ["...", *[""] * (len(head) - 1)])
        return [head, *rows]

    def draw(self, file: str | os.PathLike[str], title: str = "") -> None:
        """A picture, a PNG: the curves of all, and the last value against each of the numbers.

        Raises:
          ModuleNotFoundError: matplotlib is missing.
        """
        from funprop.train.population_picture import draw

        draw(self, file, title)


def population_table(result: Fit) -> PopulationTable:
    """A table of the members of a population that `fit` has trained.

    Raises:
      TypeError: `result` is no `Fit`.
      ValueError: it is not of a population, or has no rows.

    Example:
      >>> import jax.numpy as jnp, optax, funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> make = lambda rate: fp.step(fp.backprop(line), optax.sgd(rate))
      >>> data = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> train = fp.population(make, rate=[0.0, 0.1, 9.0])
      >>> params = jax.tree.map(jnp.zeros_like, line.init(jax.random.key(0), data))
      >>> state = train.init(params, jax.random.key(0))
      >>> population_table(fp.fit(train, state, data, epochs=9, batch_size=2, progress=None))
      member  rate  seed     loss
      ---------------------------
           1   0.1     0   0.0002
           0     0     0  10.0000
           2     9     0    2e+27
    """
    if not isinstance(result, Fit):
        raise TypeError(f"result must be what fit gives, got {described(result)}")
    if not isinstance(result.state, Population):
        raise ValueError(
            f"result must be of a population, got that of a {type(result.state).__name__}"
        )
    rows = [row for row in result.history if "members" in row]
    if not rows:
        raise ValueError("result must have a row of history, got none")
    names = rows[-1]["members"]
    curves = {name: np.array([row["members"][name] for row in rows]) for name in names}
    metric = "held_out/loss" if "held_out/loss" in curves else "loss"
    last = curves[metric][-1]
    order = np.argsort(np.where(np.isnan(last), np.inf, last), kind="stable")
    numbers = {k: np.asarray(v) for k, v in jax.device_get(result.state.numbers).items()}
    seed, epochs = np.asarray(result.state.seed), np.array([row["epoch"] for row in rows])
    return PopulationTable(numbers, seed, epochs, curves, metric, tuple(order.tolist()))


def _short(value: float) -> str:
    return f"{value:.4f}" if not abs(value) >= 1e4 else f"{value:.0e}"
