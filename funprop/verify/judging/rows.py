"""What is reported of one part: a row for each leaf, right or wrong."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from funprop.verify.judging.judge import Verdict
from funprop.verify.report import Check, Example, Report
from funprop.verify.stories.case import Told
from funprop.verify.subject import MismatchError, Subject


class Findings(NamedTuple):
    """What was found of one part."""

    checks: list[Check]
    notes: list[str]
    examples: list[Example]


def row(subject: Subject, k: int, verdict: Verdict, note: str = "") -> Check:
    """A leaf that is right."""
    return Check(
        subject.name,
        subject.leaf(k),
        verdict.relative(verdict.error),
        verdict.relative(verdict.allowed),
        verdict.worst[1:],
        note=note,
        source=subject.source,
    )


NEARBY = "inputs near the given ones"


def wrong(
    subject: Subject,
    k: int,
    verdict: Verdict,
    told: Told | None,
    point: str = "",
    note: str = "",
    given: int | None = None,
) -> Check:
    """A leaf that is wrong, with the story that explains it.

    Args:
      subject: the part; `k`: which of its leaves.
      verdict: on the leaf.
      told: the story.
      point: what is particular about the inputs; empty for those that were given.
      note: what else should be known.
      given: how many of the verdict's samples are at the given inputs; all, if it is not said.
    """
    here = verdict.at_first(given or len(verdict.got))
    if here.ok:
        point = NEARBY
    else:
        verdict = here
    worst = verdict.worst
    got, true = float(verdict.got[worst]), float(verdict.truth[worst])
    numbers = f"at {list(worst[1:])} it is {got:.4g}"
    if told is None or told.kind != "kink":  # there any of many is right
        numbers = f"{numbers} and should be {true:.4g}"
    if told is None:
        others = int(np.sum(verdict.wrong[worst[0]])) - 1
        more = f", and {others} more elements" if others > 0 else ""
        sentence = f"wrong, in no way that is known here: {numbers}{more}"
    else:
        sentence = f"wrong: {told.sentence}: {numbers}"
    if point:
        sentence = f"{sentence}, with {point}"
    found = row(subject, k, verdict, note)
    return found._replace(problem=sentence, story=told.kind if told else "", point=point)


def misfit(subject: Subject, error: MismatchError) -> Check:
    """A gradient of another structure, shape or dtype than what it belongs to."""
    return Check(
        subject.name,
        error.path,
        math.inf,
        0.0,
        problem=error.sentence,
        story="structure",
        source=subject.source,
    )


def as_report(found: list[Findings]) -> Report:
    """The report of many parts: one row a gradient, the worst that was found of it, and those that
    are wrong first."""
    worst: dict[str, Check] = {}
    for check in (check for f in found for check in f.checks):
        before = worst.get(check.path)
        worst[check.path] = (
            check if before is None or _badness(check) > _badness(before) else before
        )
    wrong = [check for check in worst.values() if check.problem]
    right = [check for check in worst.values() if not check.problem]
    return Report(
        (*wrong, *right),
        tuple(dict.fromkeys(note for f in found for note in f.notes)),
        tuple(example for f in found for example in f.examples),
    )


def _badness(check: Check) -> tuple[bool, float]:
    """Of two rows of one gradient the one that is wrong counts, else that nearer to its bound."""
    share = check.error / check.allowed if check.allowed and math.isfinite(check.allowed) else 0.0
    return bool(check.problem), share
