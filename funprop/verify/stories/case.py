"""A wrong gradient, and what there is to explain it with."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from funprop.verify.judging.judge import Verdict
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.internals import steps
from funprop.verify.truth.samples import Sample

LONG = 120  # steps of a forward pass, every turn of a scan counted
TOGETHER = 150  # steps that are looked at one by one, counted for each leaf that is wrong

# Each has a heading in docs/stories.md, with the usual cause and the remedy.
KINDS = (
    "NaN", "zero", "kink", "ignores the cotangent", "not linear", "precision", "factor", "sign",
    "swapped", "transposed", "reversed", "shifted", "wrong axis", "leak", "overwritten", "region",
    "missing term", "counted twice", "sign of a term", "factor of a term", "stale",
    "missing factor", "left out", "permuted",
)  # fmt: skip


class Told(NamedTuple):
    """A story: its kind in a word or two, and what it says of this leaf."""

    kind: str
    sentence: str


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A wrong leaf and what there is to explain it with.

    Attributes:
      tools: of the part.
      samples: where it was measured; those with the same inputs first.
      leaf: which of the differentiable inputs.
      verdict: on it.
      truths: of all leaves, as in the verdict.
      mathematics: whether the exact gradient was found to be right.
      own: how many of the samples it was found wrong at; those behind are there to test what is
        read off at these. All, if it is not said.
      wrong: the leaves that are wrong, this one among them; it alone, if it is not said.
    """

    tools: Instruments
    samples: list[Sample]
    leaf: int
    verdict: Verdict
    truths: list[np.ndarray]
    mathematics: bool = False
    own: int | None = None
    wrong: tuple[int, ...] = ()

    @property
    def place(self) -> int:
        """Which of the inputs."""
        return self.tools.subject.differentiable[self.leaf]

    @property
    def steps(self) -> int:
        """How many steps the forward pass has."""
        return self.tools.kept("steps", self.tools, lambda: steps(self.tools.wide_plain))

    @property
    def together(self) -> tuple[int, ...]:
        """The wrong leaves for which its steps are looked at one by one: the first few."""
        return (self.wrong or (self.leaf,))[: max(1, TOGETHER // max(1, self.steps))]

    @property
    def long(self) -> bool:
        """Whether the forward pass has too many steps to be looked at one by one, or too many for
        as many leaves: programs that do so take up to a quarter of a second a step to compile."""
        return self.steps > LONG or self.leaf not in self.together

    @property
    def short(self) -> str:
        """What the input is called in a sentence: `x`, `w`."""
        name = self.tools.subject.paths[self.place].rpartition(": ")[2].rpartition("/")[2]
        return "x" if name == "dx" else name or "it"

    def with_other_leaf(self) -> list[Any]:
        """The first sample's inputs with another value of the leaf: what moves, depends on it."""
        inputs = list(self.samples[0].inputs)
        leaf = np.asarray(inputs[self.place])
        wave = np.cos(np.arange(leaf.size)).reshape(leaf.shape)
        inputs[self.place] = leaf * (1 + 1e-3 * wave) + 1e-4
        return inputs

    def where_given(self) -> Case | None:
        """The case at the given inputs alone; `None` where that says no more or too little.

        Inputs nearby do not keep what the given ones may have had in common.
        """
        n = sum(s.inputs is self.samples[0].inputs for s in self.samples)
        if n in (1, len(self.samples)) or self.verdict.truth[0].size < 4:
            return None
        cut = self.at_first(n)
        return None if cut.verdict.ok else cut

    def at_first(self, n: int) -> Case:
        """The case at the first `n` samples."""
        cut = self.verdict.at_first(n)
        truths = [t[:n] for t in self.truths]
        return dataclasses.replace(
            self, samples=self.samples[:n], verdict=cut, truths=truths, own=None
        )

    def close(self, candidate: np.ndarray, to: np.ndarray | None = None) -> bool:
        """Whether the candidate is the gradient that was found, at every element that is known.

        Where what was found is hardly wrong the truth is close to it too, and explains nothing.
        """
        v = self.verdict
        if candidate.shape != v.got.shape or (to is None and not self._is_wrong(candidate)):
            return False
        to = v.got if to is None else to
        known = np.isfinite(v.truth)
        slack = 4 * np.where(np.isfinite(v.allowed), v.allowed, 0) + 1e-6 * v.size
        with np.errstate(invalid="ignore"):
            far = np.abs(candidate - to)
        return bool(np.all((far <= slack) | ~known))

    def _is_wrong(self, candidate: np.ndarray) -> bool:
        """Whether the candidate is half as far from the truth as the gradient that was found."""
        v = self.verdict
        wrong = v.wrong & np.isfinite(v.error)
        off = np.abs(candidate - v.truth)[wrong]
        return not wrong.any() or bool(np.any(off > v.error[wrong] / 2))

    def truth_at(self, samples: list[Sample]) -> np.ndarray | None:
        """The leaf's true gradient at other samples; `None` where there is none."""
        try:
            found = [self.tools.truth(s)[self.leaf] / s.unit for s in samples]
        except (NotWideError, ValueError, TypeError, IndexError):
            return None
        return np.stack(found)
