"""Sums in 16 bits, at numbers of one sign: with both, a sum that stands still is not seen.

In bfloat16 256 + 1 is 256. Random numbers add up to so little that it does not come to that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify import stories
from funprop.verify.inputs import properties
from funprop.verify.judging import from_values, kinks
from funprop.verify.judging.measured import measured
from funprop.verify.judging.rows import wrong
from funprop.verify.report import Check
from funprop.verify.stories.case import Case
from funprop.verify.subject import Subject
from funprop.verify.truth.evaluate import NotWideError
from funprop.verify.truth.instruments import EPS32, Instruments
from funprop.verify.truth.samples import Sample, drawn_sample

MARGIN = 2.0  # times what is allowed elsewhere: nothing but these numbers says how large terms are


def at_one_sign(subject: Subject, tools: Instruments, rng: np.random.Generator) -> dict[int, Check]:
    """Leaves that are right in exact arithmetic, and lose too much at numbers of one sign.

    In the precisions of 16 bits only, whose largest exact count a sum may well come to.
    """
    if tools.eps <= EPS32:
        return {}
    for name, sample in samples(tools, rng):
        if not all(np.isfinite(y).all() for y in tools.output(sample)):
            continue
        found = {}
        try:
            judgement = measured(tools, [sample], rng)
        except NotWideError:
            return {}
        for k, verdict in enumerate(judgement.running):
            verdict = verdict._replace(allowed=MARGIN * verdict.allowed)
            verdict, _, known = from_values.settled(verdict, tools, [sample], k, given=False)
            verdict = _without_nan(verdict)
            if not verdict.ok:
                verdict, _ = kinks.forgiven(verdict, tools, [sample], k, beyond=0.5, known=known)
            if not verdict.ok:
                right = judgement.exact is not None and judgement.exact[k].ok
                case = Case(tools, [sample], k, verdict, judgement.truths, right)
                found[k] = wrong(subject, k, verdict, stories.told(case), name)
        if found:
            return found
    return {}


def _without_nan(verdict: Any) -> Any:
    """Where no number comes out at inputs that nobody gave, nothing is said here."""
    finite = np.isfinite(verdict.got)
    return verdict._replace(error=np.where(finite, verdict.error, 0.0))


def samples(tools: Instruments, rng: np.random.Generator) -> list[tuple[str, Sample]]:
    """The given inputs, and their absolute values, under cotangents of one sign."""
    given = [properties.drawn(leaf) for leaf in tools.args]
    free = properties.free(tools.args)
    positive = [np.abs(v) if i in free else v for i, v in enumerate(given)]
    kinds = [("cotangents of one sign", given), ("numbers of one sign", positive)]
    same = all(np.array_equal(a, b) for a, b in zip(given, positive, strict=True))
    found = []
    for name, inputs in kinds[:1] if same else kinds:
        sample = drawn_sample(tools, inputs, 1.0, rng)
        found.append((name, sample._replace(dys=[np.abs(d) for d in sample.dys])))
    return found
