"""A report for programs: JSON, and the lines that GitHub shows beside the code."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from funprop.version import __version__

if TYPE_CHECKING:
    from funprop.verify.report import Check, Report


def as_json(report: Report) -> str:
    """The report as a JSON object; what is not finite as a string, arrays as lists."""
    found = {
        "ok": report.ok,
        "funprop": __version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "checks": [{**check._asdict(), "help": check.help} for check in report.checks],
        "notes": list(report.notes),
        "examples": [example._asdict() for example in report.examples],
    }
    return json.dumps(_plain(found), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "dtype"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def github_lines(report: Report) -> list[str]:
    """A line for each wrong gradient that GitHub Actions shows in a pull request."""
    return [_annotation(check) for check in report.findings]


def _annotation(check: Check) -> str:
    file, _, line = check.source.rpartition(":")
    where = f"file={_escaped(file, True)},line={line}," if file and line.isdigit() else ""
    title = _escaped(f"gradient of {check.path} is wrong", True)
    return f"::error {where}title={title}::{_escaped(check.problem)}"


def _escaped(text: str, in_property: bool = False) -> str:
    """As GitHub's workflow commands want it."""
    pairs = [("%", "%25"), ("\r", "%0D"), ("\n", "%0A")]
    for character, code in [*pairs, *([(":", "%3A"), (",", "%2C")] if in_property else [])]:
        text = text.replace(character, code)
    return text
