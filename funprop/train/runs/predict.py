"""`funprop predict RUN FILE --out FILE`: what a trained model says of other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from funprop.layer import Layer
from funprop.train.params_file import load
from funprop.train.runs.files import PARAMS, digests_of_files, read_settings
from funprop.train.runs.folder import check_is_run
from funprop.train.runs.inputs import ENCODER, INPUTS, read_inputs
from funprop.train.runs.predictions import Said, said_of, said_of_task
from funprop.train.tables.targets import Target

AT_ONCE = 1024  # rows in one call


def predict(run: Path, file: Path, out: Path) -> str:
    """Write what the model of a run says of the rows of a table, of images, or of arrays.

    Args:
      run: its folder, which has all that is needed; but for tasks of one's own, whose module is
        imported.
      file: a table with the columns that were learnt from; an image, or a folder of them; or, where
        a task of arrays was trained, inputs in a `.npy` or `.npz` file.
      out: a table, by its suffix, with a row for each; or `.npy`, for outputs as they are.

    Returns:
      Lines that say what was written, and what in the data training had not.

    Raises:
      ValueError: there is no run, or its files are damaged; a column is missing, or holds something
        else than it did; `out` has another suffix.
      OSError: a file cannot be read or written.
    """
    settings = _settings(run)
    if out.exists() and file.exists() and out.samefile(file):
        raise ValueError(f"out must be another file than {file}")
    if (run / INPUTS).exists():
        told = read_inputs(run)
        of_kind = {"table": _table, "images": _images}.get(str(told.get("kind")))
        if of_kind is None:
            raise ValueError(f"{run / INPUTS} is damaged")
        said = of_kind(run, file, told, settings["model"])
    else:
        said = _arrays(run, file, settings)
    said.write(out)
    return "\n".join([f"{said.rows:,} rows written to {out}: {said.names(out)}", *said.notes])


def _settings(run: Path) -> dict[str, Any]:
    """Of a run whose files are what was written."""
    if not run.exists():
        raise ValueError(f"there is no run {run}")
    check_is_run(run)
    settings = read_settings(run)
    if settings is None:
        raise ValueError(f"run.json of {run} is damaged or gone: the same command writes it anew")
    if not (run / PARAMS).exists():
        raise ValueError(f"{run} has no {PARAMS}: it was killed; the same command goes on with it")
    if settings.get("keep") == "all":
        raise ValueError(f"{run} keeps all members of a sweep: predict by one of --keep best")
    if settings.get("finished"):
        found, written = digests_of_files(run), settings.get("files", {})
        for name in (PARAMS, INPUTS, ENCODER):
            if found.get(name) != written.get(name):
                raise ValueError(f"{run / name} is damaged: it is not what was written")
    return settings


def _table(run: Path, file: Path, told: dict[str, Any], model: str) -> Said:
    from funprop.train.runs.table_models import Recipe, models
    from funprop.train.tables import encoding
    from funprop.train.tables.columns import Column
    from funprop.train.tables.frames import frame
    from funprop.train.tables.reading import is_table, read

    if not is_table(file):
        raise ValueError(f"the run is of a table, so must be what is predicted, got {file}")
    columns = [Column(c["name"], c["kind"], tuple(c["parts"])) for c in told["columns"]]
    targets = [Target(**{**t, "classes": tuple(t["classes"])}) for t in told["targets"]]
    recipe = Recipe(**{**told["recipe"], "hidden": tuple(told["recipe"]["hidden"])})
    table = read(file, as_text=[c.name for c in columns if c.kind == "category"])
    encoder = encoding.load(run / ENCODER)
    try:
        rows = frame(table, columns)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    inputs = encoding.encoded(encoder, rows)
    outputs = _outputs(run, models(targets, recipe)[model](), inputs)
    each = [outputs] if len(targets) == 1 else outputs
    notes = encoding.unknown(encoder, rows) + encoding.lacking(encoder, rows, columns)
    return said_of(targets, each, notes=tuple(notes))


def _images(run: Path, file: Path, told: dict[str, Any], model: str) -> Said:
    from funprop.train.runs import images

    files = images.images_in(file) if file.is_dir() else [file]
    if not files:
        raise ValueError(f"{file} has no images")
    if not file.exists():
        raise FileNotFoundError(f"there is no file {file}")
    inputs = images.read(files, told["size"], told["channels"])
    outputs = _outputs(run, images.models(len(told["classes"]))[model](), inputs)
    names = [str(one.relative_to(file)) if file.is_dir() else one.name for one in files]
    return said_of([Target("", tuple(told["classes"]))], [outputs], first={"file": names})


def _arrays(run: Path, file: Path, settings: dict[str, Any]) -> Said:
    from funprop.train.runs.sources import task_of

    data = settings.get("data", "text")
    if "optimizer" not in settings:
        raise ValueError(f"{run} is a language model of {data}: it writes text, and predicts none")
    task = task_of(data, {})
    network = task.built(settings["model"])
    like = task.test[0]
    inputs = _inputs(file, like)
    outputs = _outputs(run, network, inputs)
    return said_of_task(task.told_of(network), outputs)


def _inputs(file: Path, like: Any) -> Any:
    """Inputs out of a file, each with the shape that the task's have."""
    if file.suffix not in (".npy", ".npz"):
        raise ValueError(f"inputs of a task of arrays must be in .npy or .npz, got {file}")
    try:
        found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                arrays = {name: found[name] for name in found.files}
            if len(arrays) > 1 and "inputs" not in arrays:
                raise ValueError(f"there is no array 'inputs', but {', '.join(arrays)}")
            found = arrays.get("inputs", next(iter(arrays.values()), None))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {file}") from None
    except Exception as error:  # of zip, of NumPy
        raise ValueError(f"{file} holds no inputs: {str(error)[:160]}") from None
    shape = getattr(like, "shape", None)
    if shape is None:
        raise ValueError("a task whose inputs are several arrays is predicted in Python")
    if found is None or found.shape[1:] != shape[1:] or not len(found):
        got = getattr(found, "shape", None)
        wanted = ", ".join(map(str, ("n", *shape[1:])))
        raise ValueError(f"{file} must hold inputs of shape [{wanted}], got {got}")
    if not np.can_cast(found.dtype, like.dtype, "same_kind"):
        raise ValueError(f"{file} must hold {like.dtype}, got {found.dtype}")
    found = found.astype(like.dtype)
    if np.issubdtype(found.dtype, np.floating) and not np.isfinite(found).all():
        raise ValueError(f"{file} must hold finite numbers")
    return found


def _outputs(run: Path, network: Layer, inputs: Any) -> Any:
    """Of the run's params, for all rows."""
    n = len(inputs)
    size = min(n, AT_ONCE)
    specs = jax.ShapeDtypeStruct((size, *inputs.shape[1:]), inputs.dtype)
    params = load(run / PARAMS, jax.eval_shape(network.init, jax.random.key(0), specs))
    forward = jax.jit(lambda p, x: network.forward(p, x)[0])
    parts = []
    for start in range(0, n, size):
        some = inputs[start : start + size]
        filled = np.concatenate([some, np.repeat(some[-1:], size - len(some), 0)])
        parts.append(jax.device_get(forward(params, filled)))
    return jax.tree.map(lambda *each: np.concatenate(each)[:n], *parts)
