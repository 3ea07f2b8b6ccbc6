"""What every check is given: the step, its states, the batch, what was said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from funprop.verify.training import draws
from funprop.verify.training.batches import Examples
from funprop.verify.training.closeness import Difference, Noise, differences, noise
from funprop.verify.training.layout import Layout, is_key
from funprop.verify.training.report import StepCheck
from funprop.verify.training.running import Refused, Result, Steps, Traced

UPDATES = 8  # how far a step is followed


class NotAsked(Exception):  # noqa: N818  # an answer, not a mistake
    """A check cannot be asked of this step: the reason."""


@dataclasses.dataclass
class Case:
    """A step to be judged, and what people said of it.

    Attributes:
      steps: it runs.
      path: the arrays of the states that it goes through from the given one on, `UPDATES` of them.
      examples: the batch.
      said: the options of `verify_step`, by name; `None` for what was not said.
      seed: of orders and of what masked places are filled with.
    """

    steps: Steps
    path: list[list[Any]]
    metrics: list[dict[str, Any]]
    examples: Examples
    said: dict[str, Any]
    seed: int = 0

    @property
    def layout(self) -> Layout:
        """Of the state."""
        return self.steps.layout

    @property
    def here(self) -> list[Any]:
        """The state at which laws are asked: behind the first update, so that moments are there."""
        return self.path[1]

    @property
    def draws(self) -> bool | None:
        """Whether the step draws random numbers; `None` where nobody knows."""
        traced = self.steps.traced(self.here, self.examples.batch)
        return draws.draws(traced.jaxpr) if isinstance(traced, Traced) else None

    def run(self, batch: Any, arrays: Sequence[Any] | None = None) -> Result:
        """The update, random numbers held still.

        Raises:
          NotAsked: it does not take this batch, or draws in a way that cannot be held still.
        """
        return self.on(self.steps, batch, arrays)

    def on(self, steps: Steps, batch: Any, arrays: Sequence[Any] | None = None) -> Result:
        """The update of another form of the step, random numbers held still.

        Raises:
          NotAsked: as `run`.
        """
        try:
            return steps.quiet(self.here if arrays is None else arrays, batch)
        except Refused as refused:
            raise NotAsked(f"{refused}") from None
        except Exception as error:  # whatever a step of somebody raises
            n = Examples(batch, self.examples.axis).n
            reason = str(error).strip().split("\n")[0][:120]
            raise NotAsked(f"a batch of {n} examples is refused: {reason}") from None

    def eps(self, batch: Any) -> float:
        """The rounding unit of the narrowest floats that the step computes with."""
        traced = self.steps.traced(self.here, batch)
        if isinstance(traced, Traced):
            return draws.narrowest(traced.jaxpr)
        return float(np.finfo(np.float32).eps)

    def noise(self, batch: Any) -> Noise:
        """How much rounding moves an update of this batch."""
        return noise(lambda arrays, b: self.run(b, arrays), self.here, batch, self.eps(batch))

    def all_places(self) -> list[int]:
        """Every array of the state but for keys."""
        return [i for i, leaf in enumerate(self.here) if not is_key(leaf) and not raw_key(leaf)]

    def learned(self) -> list[int]:
        """The params and what is of their shapes."""
        return [*self.layout.params, *self.layout.moments(self.here)]

    def apart(
        self, batch: Any, other: Any, places: Sequence[int], metrics: bool = True
    ) -> list[Difference]:
        """Where the updates of two batches that should give the same do not."""
        want, got = self.run(batch), self.run(other)
        return differences(
            got, want, self.here, self.noise(batch), self.layout.paths, places, metrics
        )

    def smallest(self, law: Callable[[Examples], list[Difference]], least: int = 2) -> int:
        """The number of examples of the smallest batch, found by halving, that breaks a law."""
        n = self.examples.n
        while n // 2 >= least:
            try:
                if not law(self.examples.part(n // 2)):
                    break
            except NotAsked:
                break
            n //= 2
        return n

    def broken(
        self,
        name: str,
        law: Callable[[Examples], list[Difference]],
        sentence: Callable[[list[Difference]], str],
        least: int = 2,
    ) -> list[StepCheck]:
        """The row for a law that two updates must hold: none where they do."""
        found = law(self.examples)
        if not found:
            return []
        worst = found[0]
        n = self.smallest(law, least)
        return [
            StepCheck(
                name, sentence(found), leaf=worst.path, error=worst.error, allowed=worst.allowed,
                examples=n,
            )
        ]  # fmt: skip


def raw_key(leaf: Any) -> bool:
    """Whether a leaf may be a key as `jax.random.PRNGKey` makes it."""
    return getattr(leaf, "dtype", None) == np.uint32 and np.shape(leaf)[-1:] in ((2,), (4,))
