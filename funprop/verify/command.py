"""`funprop verify package.module:object`: the object found, judged, and the table printed."""

from __future__ import annotations

import os
import sys
from typing import Any

from funprop.imported import imported
from funprop.verify.rules import verify_rules
from funprop.verify.targets import verify
from funprop.verify.written import github_lines


def run(place: str, rules: bool = False, seed: int = 0, as_json: bool = False) -> bool:
    """Judge the object at `package.module:object`, print the table; whether it is right.

    Args:
      place: of a pair `(target, example)`, or of a triple `(target, example, reference)`, where
        `example()` gives the target's arguments as a tuple.
      rules: judge every custom rule that the target reaches instead.
      seed: of the cotangents and of the inputs that are tried.
      as_json: print JSON in the place of the table.

    Raises:
      ValueError: there is no such object, or it is no such pair.
      TypeError, ValueError: as `verify`.
    """
    target, example, *reference = _found(place)
    args = example()
    if not isinstance(args, tuple):
        raise ValueError(f"{place}: example() must give a tuple, got {type(args).__name__}")
    if rules:
        report = verify_rules(target, *args, seed=seed)
    else:
        report = verify(target, *args, reference=next(iter(reference), None), seed=seed)
    print(report.to_json() if as_json else report)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # On standard error, where JSON may be read from the other; GitHub looks at both.
        print(*github_lines(report), sep="\n", file=sys.stderr)
    return report.ok


def _found(place: str) -> tuple[Any, ...]:
    found = imported(place)
    pair = isinstance(found, tuple) and len(found) in (2, 3)
    if not (pair and callable(found[1])):
        raise ValueError(f"{place} must be (target, example) or (target, example, reference)")
    return found
