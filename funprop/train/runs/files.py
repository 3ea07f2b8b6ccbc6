"""What a run may be asked for, and what is written of it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import optax

from funprop.train.checkpoints.folder import check_installed as checkpoints_installed
from funprop.train.params_file import save
from funprop.train.stopping import Row
from funprop.train.whole_file import whole_file
from funprop.values import seed_number
from funprop.version import __version__

if TYPE_CHECKING:
    from funprop.typing import PyTree

SETTINGS, HISTORY, PARAMS = "run.json", "history.jsonl", "params.safetensors"
CHECKPOINTS = "checkpoints"
OUTCOME = (
    "stopped",
    "final",
    "nonfinite_update",
    "finished",
    "versions",
    "files",
)  # what is no setting


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raise a `ValueError` where `given` is none of those that are known."""
    if given not in known:
        raise ValueError(f"unknown {what} {given!r}, there are {', '.join(known)}")


def check_rate(rate: float) -> None:
    """Raise a `ValueError` where a learning rate is not positive and finite."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"learning_rate must be positive and finite, got {rate}")


def check_seed(seed: int) -> None:
    """Raise a `ValueError` where a seed is none of a random key's."""
    seed_number(seed)


def check_installed() -> None:
    """Raise a `ModuleNotFoundError` where what the run is written with is missing."""
    checkpoints_installed()
    for what, module in (("the picture", "matplotlib"), ("the file of params", "safetensors")):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"{what} needs {module}: pip install 'funprop[train]'")


def write_run(folder: Path, write: Callable[[Path], None]) -> None:
    """`write(folder)`; where that fails for the folder's sake, into one for temporary files, since
    training may have taken days.

    Raises:
      OSError: it has failed; says where the results are instead.
    """
    try:
        write(folder)
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="funprop-"))
        write(elsewhere)
        raise OSError(f"{error}; what was reached is in {elsewhere}") from None


def save_reached(folder: Path, params: PyTree) -> None:
    """`params.safetensors`, to be loaded by `funprop.load`; whatever they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where training diverged, that is said
        save(folder / PARAMS, params)


def write_history(folder: Path, history: Sequence[Row]) -> None:
    """`history.jsonl`: one JSON object a line, one line an epoch; NaN and infinity as null."""
    write_text(folder / HISTORY, "".join(f"{as_json(row)}\n" for row in history))


def write_settings(folder: Path, settings: dict[str, Any], finished: bool = False) -> None:
    """`run.json`: what a run was asked for and came to, with the versions of what it ran on."""
    versions = {
        "funprop": __version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }
    files = digests_of_files(folder) if finished else {}
    whole = {**settings, "finished": finished, "files": files, "versions": versions}
    whole = json.loads(as_json(whole))
    whole["sha256"] = _digest(whole)
    write_text(folder / SETTINGS, as_json(whole, indent=2) + "\n")


def digests_of_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a run, but for `run.json` itself."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    wanted = [name for name in names if name != SETTINGS and not name.startswith(".")]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in wanted}


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What `write_settings` wrote; `None` where that is not there, or damaged."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.pop("sha256", None) != _digest(found):
        return None
    return found


def _digest(settings: dict[str, Any]) -> str:
    """Of no other file's content: one that stands in its place is not taken for it."""
    return hashlib.sha256(
        f"{SETTINGS}\n{json.dumps(settings, sort_keys=True)}".encode()
    ).hexdigest()


def read_history(folder: Path) -> list[Row]:
    """The rows that are whole; what was being written when a process was killed is left out."""
    try:
        lines = (folder / HISTORY).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows


def write_text(file: Path, text: str) -> None:
    """Text into a file that is there as a whole or not at all; UTF-8, wherever one is."""
    with whole_file(file) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def as_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_without_nan(value), allow_nan=False, indent=indent)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def contents(folder: Path) -> str:
    """A line that says what was written."""
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    return f"Written to {folder}: {', '.join(names)}"
