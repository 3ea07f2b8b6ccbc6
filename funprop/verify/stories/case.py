"""A wrong gradient, and what there is to explain it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from funprop.verify.judging.judge import Verdict
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.internals import steps
from funprop.verify.truth.samples import Sample

LONG = 120  # steps of a forward pass, every turn of a scan counted
BLOCK = 2**16  # numbers of a leaf that are compared at once: what does not fit differs in the first
LINES = 8  # of a large leaf, in each of the other axes
TOGETHER = 150  # steps that are looked at one by one, counted for each leaf that is wrong

# Each has a heading in docs/stories.md, with the usual cause and the remedy.
KINDS = (
    "NaN", "zero", "kink", "ignores the cotangent", "not linear", "precision", "factor", "sign",
    "swapped", "transposed", "reversed", "shifted", "wrong axis", "leak", "overwritten", "region",
    "missing term", "counted twice", "sign of a term", "factor of a term", "stale",
    "missing factor", "left out", "permuted",
)  # fmt: skip


Places = tuple[slice, ...]  # of `[sample, *leaf]`


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
        if candidate.shape != self.verdict.got.shape:
            return False
        return self.fits(lambda at: candidate[at], to)

    def fits(self, candidate: Callable[[Places], np.ndarray], to: np.ndarray | None = None) -> bool:
        """The same of a candidate that is made for some places at a time."""
        blocks = list(_blocks(self.verdict.got.shape))
        other = self.verdict.got if to is None else to
        return all(self._near(candidate(at), other[at], at) for at in blocks) and (
            to is not None or self._is_wrong(candidate, blocks)
        )

    def moved(self, move: Callable[[np.ndarray], np.ndarray], axis: int) -> bool:
        """The same of the truth moved along one of its axes alone.

        Of a large leaf some lines along that axis are looked at first.
        """
        v = self.verdict
        if v.truth.size > BLOCK:
            steps = [1 if a in (0, axis) else -(-n // LINES) for a, n in enumerate(v.truth.shape)]
            lines = tuple(slice(None, None, step) for step in steps)
            if not self._near(move(v.truth[lines]), v.got[lines], lines):
                return False
        return self.close(move(v.truth))

    def _near(self, candidate: np.ndarray, to: np.ndarray, at: Places) -> bool:
        """Whether two gradients agree, which are those at some places."""
        v = self.verdict
        allowed = v.allowed[at]
        slack = 4 * np.where(np.isfinite(allowed), allowed, 0) + 1e-6 * v.size
        with np.errstate(invalid="ignore"):
            far = np.abs(candidate - to)
        return bool(np.all((far <= slack) | ~np.isfinite(v.truth[at])))

    def _is_wrong(self, candidate: Callable[[Places], np.ndarray], blocks: list[Places]) -> bool:
        """Whether the candidate is half as far from the truth as the gradient that was found."""
        v, any_wrong = self.verdict, False
        for at in blocks:
            error = v.error[at]
            wrong = (error > v.allowed[at]) & np.isfinite(error)
            if np.any(wrong & (np.abs(candidate(at) - v.truth[at]) > error / 2)):
                return True
            any_wrong |= bool(wrong.any())
        return not any_wrong

    def truth_at(self, samples: list[Sample]) -> np.ndarray | None:
        """The leaf's true gradient at other samples; `None` where there is none."""
        try:
            found = [self.tools.truth(s)[self.leaf] / s.unit for s in samples]
        except (NotWideError, ValueError, TypeError, IndexError):
            return None
        return np.stack(found)


def _blocks(shape: tuple[int, ...]) -> Iterator[Places]:
    """Parts of an array, `[sample, *leaf]`, by its samples and the first axis of the leaf."""
    numbers = int(np.prod(shape))
    if numbers <= BLOCK or len(shape) < 2:
        yield (slice(None),)
        return
    rows = max(1, BLOCK * shape[0] * shape[1] // numbers)
    for sample in range(shape[0]):
        for row in range(0, shape[1], rows):
            yield slice(sample, sample + 1), slice(row, row + rows)
