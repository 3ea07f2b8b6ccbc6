"""What is said of a loss or a gradient that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from funprop.inspect.table import aligned
from funprop.nonfinite.numbers import Numbers, quantity, short

LONGEST = 400  # of a sentence
SHOWN = 48  # rows of a table that a person still reads
LEGEND = "given, gives: the largest finite number of input and output, backward of their cotangents"
NEAR = 8  # those before and after what went bad, in a longer one


class Call(NamedTuple):
    """One call of one layer, forward or backward.

    Attributes:
      path: where in the model, as `blocks[3]/attention/output`; of what a node adds itself, its
        kind too, as `blocks[3] (residual)`.
      during: `forward` or `backward`.
      part: which part of the batch, from zero, where a transform cuts it.
      given: forward, of the input; backward, of the cotangent of the output.
      gives: forward, of the output, the activation; backward, of the cotangent of the input.
      gradients: backward, of the gradient of each of its params, by name.
      kept: of what it keeps for backward, where that alone is not finite.
    """

    path: str
    during: str
    part: int
    given: Numbers
    gives: Numbers
    gradients: dict[str, Numbers]
    kept: Numbers = Numbers()

    @property
    def finite(self) -> bool:
        """Whether all that it gives and keeps is."""
        each = (self.gives, self.kept, *self.gradients.values())
        return all(found.finite for found in each)


class FirstBad(NamedTuple):
    """What was first to hold infinity or NaN.

    Attributes:
      kind: `activation`, `residual` (what a layer keeps for its backward pass, where its output is
        finite and its backward then gives what is not), `cotangent` (of the layer's input),
        `gradient` (of one of its params), `parameter`, `input` (a leaf of the batch), `update`
        (what the optimizer made of a finite gradient), or `equation`, where there are no layers.
      during: `forward`, `backward`, or empty: it was there before.
      path: of the layer's call, of the parameter, or of the leaf of the batch.
      leaf: of a gradient, which of the layer's params.
      numbers: how many of how many, and where the first is.
      largest: the largest finite number that the layer was given.
      why: the equation, its numbers and its line, or what the layer itself says; empty where that
        cannot be told.
    """

    kind: str
    during: str
    path: str
    leaf: str
    numbers: Numbers
    largest: float
    why: str

    def __str__(self) -> str:
        how = self.numbers.counted()
        place = list(self.numbers.at) if self.numbers.at else None
        first = f", first at {place}" if place else ""
        because = f" ({self.why})" if self.why else ""
        if self.kind == "equation":
            scope = f" in {self.path}" if self.path else ""
            return f"{self.why}{scope}, {self.during}: {how}{first}"
        if self.kind in ("parameter", "update"):
            told = "" if self.kind == "parameter" else ", of a finite gradient"
            return f"{self.kind} {self.path}{told}: {how}{first}{because}"
        if self.kind == "input":
            example = f", first in example {place[0]}" if place else ""
            return f"{self.path} of the batch: {how}{example}{because}"
        if self.kind in ("activation", "residual"):
            given = f"its input's largest was {short(self.largest)}"
            return f"{self.kind} of {self.path}, {self.during}: {how}; {given}{because}"
        what = (
            f"gradient of {self.leaf} of"
            if self.kind == "gradient"
            else "cotangent of the input of"
        )
        given = f"the cotangent of its output was at most {short(self.largest)}"
        return f"{what} {self.path}, {self.during}: {how}; {given}{because}"


class NonfiniteReport(NamedTuple):
    """What `find_nonfinite` found. `print` shows a sentence and a table.

    Attributes:
      loss: the mean, as the update saw it.
      gradients: of each leaf of the gradient, by name.
      first: what was first to go bad; `None` where nothing did, or it cannot be told.
      calls: every call of every layer in order, forward and then backward, part after part; empty
        where there are no layers.
      notes: what else there is to say.
    """

    loss: float
    gradients: dict[str, Numbers]
    first: FirstBad | None
    calls: tuple[Call, ...]
    notes: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """Whether the loss and all gradients are, and what came of them."""
        bad = (not found.finite for found in self.gradients.values())
        return (
            self.first is None and quantity(self.loss) not in ("NaN", "infinite") and not any(bad)
        )

    def sentence(self, update: int | None = None) -> str:
        """What happened, in at most 400 characters."""
        start = "" if update is None else f"update {update:,}: "
        told = start + self._outcome()
        if self.first is not None:
            told += f". First bad: {self.first}"
        elif not self.finite:
            told += ". " + (self.notes[0] if self.notes else "What was first cannot be told")
        return told if len(told) <= LONGEST else told[: LONGEST - 3] + "..."

    def _outcome(self) -> str:
        bad = [(name, found) for name, found in self.gradients.items() if not found.finite]
        loss = quantity(self.loss)
        if loss in ("NaN", "infinite"):
            return f"the loss is {loss}"
        if not bad:
            return f"the loss is {loss} and all gradients are finite"
        name, found = bad[0]
        more = f" (and of {len(bad) - 1} more of {len(self.gradients)})" if bad[1:] else ""
        return f"the loss is {loss}, the gradient of {name}{more} is {found.kind}"

    def table(self, most: int | None = None) -> str:
        """Every call in order; of more than `most`, those at the ends and around what went bad."""
        if not self.calls:
            rows = [(name, short(g.largest), _bad(g)) for name, g in self.gradients.items()]
            head = ("gradient of", "largest", "not finite")
            return "\n".join(aligned([head, *rows], left=(0,)))
        parts = {call.part for call in self.calls}
        rows = [_row(call, len(parts) > 1) for call in self.calls]
        at = next((i for i, call in enumerate(self.calls) if self._is_first(call)), None)
        if at is not None:
            rows[at] = (*rows[at][:-1], f"{rows[at][-1]}  <- first")
        head = ("pass", "layer", "given", "gives", "not finite", "gradients, largest", "")
        lines = aligned([head, *rows], left=(0, 1, 5, 6))
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *_near(lines[1:], at, most), rule, LEGEND])

    def _is_first(self, call: Call) -> bool:
        first = self.first
        return (
            first is not None
            and (first.path, first.during) == (call.path, call.during)
            and (not call.finite)
        )

    def __str__(self) -> str:
        return "\n".join([self.sentence(), "", self.table(SHOWN), *self.notes])


def _row(call: Call, with_part: bool) -> tuple[str, ...]:
    during = f"{call.during} {call.part}" if with_part else call.during
    worst = sorted(call.gradients.values(), key=lambda g: (g.finite, -g.largest))[:2]
    told = ", ".join(f"{g.leaf or 'params'} {_size(g)}" for g in worst)
    given, gives = (short(numbers.largest) for numbers in (call.given, call.gives))
    bad = _bad(call.gives)
    if not call.kept.finite and call.during == "forward":
        bad = f"keeps {_bad(call.kept)}"
    return during, call.path, given, gives, bad, told, ""


def _size(numbers: Numbers) -> str:
    return short(numbers.largest) if numbers.finite else numbers.counted()


def _bad(numbers: Numbers) -> str:
    return "" if numbers.finite else numbers.counted()


def _near(lines: Sequence[str], at: int | None, most: int | None) -> list[str]:
    if most is None or len(lines) <= most:
        return list(lines)
    middle = len(lines) // 2 if at is None else at
    shown: list[str] = []
    left_out = 0
    for i, line in enumerate(lines):
        near = abs(i - middle) <= NEAR or i < 3 or i >= len(lines) - 3
        if near and left_out:
            shown.append(f"... {left_out} more")
        left_out = 0 if near else left_out + 1
        if near:
            shown.append(line)
    return shown
