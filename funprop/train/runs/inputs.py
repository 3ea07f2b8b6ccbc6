"""What a run's folder tells of its inputs and targets, so that others can be predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from funprop.train.runs.files import as_json, write_text

INPUTS, ENCODER = "inputs.json", "encoder.skops"


def write_inputs(folder: Path, told: dict[str, Any]) -> None:
    """`inputs.json`: what the inputs are, and what the outputs mean."""
    plain = {
        name: [*map(_plain, v)] if isinstance(v, tuple | list) else v for name, v in told.items()
    }
    write_text(folder / INPUTS, as_json(plain, indent=2) + "\n")


def _plain(part: Any) -> Any:
    return part._asdict() if hasattr(part, "_asdict") else part


def read_inputs(folder: Path) -> dict[str, Any]:
    """What `write_inputs` wrote.

    Raises:
      ValueError: it is damaged, or was never written.
    """
    file = folder / INPUTS
    if not file.exists():
        raise ValueError(f"{folder} has no {INPUTS}: it was written by no run that has ended")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged")
    return found
