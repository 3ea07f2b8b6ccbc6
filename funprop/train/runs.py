"""A run: what it may be asked for, and its folder, written as a whole or not at all."""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

import funprop
from funprop.layer import Layer
from funprop.located import check_params
from funprop.params.selection import name_of
from funprop.train.stopping import Row

if TYPE_CHECKING:
    from jaxtyping import PyTree


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raise a `ValueError` where `given` is none of those that are known."""
    if given not in known:
        raise ValueError(f"unknown {what} {given!r}, there are {', '.join(known)}")


def check_rate(rate: float) -> None:
    """Raise a `ValueError` where a learning rate is not positive and finite."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"learning_rate must be positive and finite, got {rate}")


def run_folder(name: str, out: Path | None) -> Path:
    """Where a run is written: `out`, or a new folder under `runs/` with the time in its name.

    Raises:
      ValueError: it exists already.
    """
    out = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_new(out)
    return out


def check_new(folder: Path) -> None:
    """Raise a `ValueError` where `folder` exists already: a run never writes over another."""
    if folder.exists():
        raise ValueError(f"the run folder {folder} exists already")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name only when all has been written.

    Raises:
      ValueError: `folder` exists already.
    """
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft)
        raise


def write_history(file: Path, history: Sequence[Row]) -> None:
    """One JSON object a line, one line an epoch."""
    file.write_text("".join(json.dumps(row) + "\n" for row in history))


def write_settings(file: Path, settings: dict[str, Any]) -> None:
    """What a run was asked for and came to, with the versions of what it ran on, as JSON."""
    versions = {
        "funprop": funprop.__version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }
    file.write_text(json.dumps({**settings, "versions": versions}, indent=2) + "\n")


def contents(folder: Path) -> str:
    """A line that says what was written."""
    return f"Written to {folder}: " + ", ".join(sorted(file.name for file in folder.iterdir()))


def save_params(file: Path, layer: Layer, params: PyTree) -> None:
    """Every leaf of `params` under its path, as NumPy's `.npz`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    arrays: dict[str, Any] = {name_of(path): np.asarray(leaf) for path, leaf in leaves}
    np.savez(file, **arrays)


def load_params(file: Path, layer: Layer, x_spec: Any) -> PyTree:
    """What `save_params` wrote, for a layer of the same shape.

    Args:
      file: the `.npz`.
      layer: whose params they are.
      x_spec: its input, or specs of it.

    Raises:
      ValueError: the file holds the params of another model; names the first leaf.

    Example:
      >>> import tempfile, jax.numpy as jnp, funprop as fp
      >>> params = fp.dense(2).init(jax.random.key(0), jnp.zeros((1, 3)))
      >>> file = Path(tempfile.mkdtemp()) / "params.npz"
      >>> save_params(file, fp.dense(2), params)
      >>> again = load_params(file, fp.dense(2), jnp.zeros((1, 3)))
      >>> bool((again.w == params.w).all())
      True
    """
    expected = jax.eval_shape(layer.init, jax.random.key(0), x_spec)
    paths, tree = jax.tree_util.tree_flatten_with_path(expected)
    with np.load(file) as stored:
        names = {name_of(path): spec for path, spec in paths}
        for name in (*names, *stored.files):
            if name not in stored or name not in names:
                where = "the file" if name in names else "the model"
                raise ValueError(f"params in {file} are of another model: {where} has no {name}")
        params = tree.unflatten(jax.numpy.asarray(stored[name]) for name in names)
    check_params(layer, params, x_spec)
    return params
