"""An object that the command line names: `package.module:object`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def imported(place: str) -> Any:
    """What `package.module:object` names, the current folder being looked into first.

    Raises:
      ValueError: it is no such name, or nothing has it; says which part.

    Example:
      >>> imported("math:pi")
      3.141592653589793
    """
    module, colon, name = place.partition(":")
    if not colon or not name or not all(map(str.isidentifier, module.split("."))):
        raise ValueError(f"object must be package.module:object, got {place!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{place}: {error}") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{place}: {module} has no {name}")
        found = getattr(found, part)
    return found
