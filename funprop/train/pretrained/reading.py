"""Models out of a folder of Hugging Face's transformers."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.layer import Layer
from funprop.models import keep_products
from funprop.train.pretrained.loaded import Pretrained
from funprop.train.pretrained.plan import CONFIG, HEAD, Plan, planned
from funprop.train.pretrained.tensors import FLOATS, Tensors, folder_of, read_json


def from_pretrained(
    folder: str | os.PathLike[str],
    *,
    dtype: Any = None,
    rewrite: Callable[[Layer], Layer] = keep_products,
) -> Pretrained:
    """GPT-2 or Llama out of a folder that transformers wrote: config.json and safetensors, in one
    file or in many. Nothing is downloaded.

    Which of the two it is config.json says (`model_type`). What is wrong is found before a weight
    is read, and a configuration that asks for what we lack is refused. Weights are read one at a
    time: beside the params there is never more than one leaf in memory. Needs the package
    safetensors (`funprop[train]`).

    Args:
      folder: such as `huggingface-cli download gpt2 --local-dir FOLDER` makes.
      dtype: of the params; that of the file, bfloat16 as a rule, if not given.
      rewrite: of every block, as of `fp.gpt`.

    Raises:
      ValueError: the configuration has what we lack; the weights are of another model (names the
        first tensor); a file is damaged.
      TypeError: an argument is of another kind.
      OSError: there is no such folder, or a file cannot be read.
      ModuleNotFoundError: safetensors is missing.

    Example:
      >>> import tempfile, funprop as fp
      >>> config = {"model_type": "llama", "vocab_size": 50, "hidden_size": 8, "head_dim": 2}
      >>> config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
      >>> model = fp.llama(50, features=8, depth=1, heads=2, head_size=2, hidden=16)
      >>> tokens = jnp.zeros((1, 1), int)
      >>> whole = fp.language_model(model, 50, tied=False)
      >>> params = whole.init(jax.random.key(0), (tokens, tokens))
      >>> loaded = from_pretrained(fp.to_pretrained(tempfile.mkdtemp(), params, config))
      >>> loaded.params.head.w.shape, bool((loaded.params.head.w == params.head.w).all())
      ((50, 8), True)
    """
    place = folder_of(folder)
    wanted = None if dtype is None else _float(dtype)
    if not place.is_dir():
        raise FileNotFoundError(
            f"there is no folder {place}: huggingface-cli download NAME --local-dir {place} "
            "makes one"
        )
    entries = read_json(place / CONFIG)
    plan = planned(entries, place / CONFIG, rewrite)
    with Tensors(place) as tensors:
        names = _names(plan, tensors)
        dtypes = {path: _checked(path, plan, tensors, names, wanted) for path in plan.leaves}
        if plan.tied:
            _check_tied(plan, tensors, names)
        warned = []

        def read(name: str) -> np.ndarray:
            found = tensors.read(names[name])
            if not warned and not np.isfinite(found).all():
                warned.append(name)
            return found

        leaves = [
            jnp.asarray(row.read(shape, dtypes[path], read))
            for path, (row, shape) in plan.leaves.items()
        ]
    if warned:
        warnings.warn(f"{place}: {warned[0]} holds NaN or infinity", stacklevel=2)
    params = plan.tree.unflatten(leaves)
    return Pretrained(plan.model, params, entries, place, plan.vocabulary, plan.tied)


# ---------------------------------------------------------------------------------------- checks


def _names(plan: Plan, tensors: Tensors) -> dict[str, str]:
    """Our names for the tensors, which are a language model's, and theirs; all are there."""
    prefix, found = plan.family.prefix, set(tensors.specs)
    bare = not any(name.startswith(prefix) for name in found)
    wanted = {
        name: name.removeprefix(prefix) if bare else name
        for row, shape in plan.leaves.values()
        for name, _, _ in row.tensors(shape)
    }
    spare = {HEAD} if plan.tied else set()
    for name in wanted.values():
        if name not in found:
            raise _other(tensors, f"there is no {name}")
    for name in sorted(found - set(wanted.values()) - spare):
        if not re.fullmatch(plan.family.buffers, name):
            raise _other(tensors, f"the model has no {name}")
    return wanted


def _checked(
    path: str, plan: Plan, tensors: Tensors, names: dict[str, str], wanted: str | None
) -> Any:
    """The dtype of a leaf, whose tensors have the shapes that they must."""
    row, shape = plan.leaves[path]
    dtypes = {}
    for name, expected, _ in row.tensors(shape):
        found = tensors.specs[names[name]]
        if found.shape != expected:
            raise _other(tensors, f"{names[name]} must have shape {expected}, got {found.shape}")
        if found.dtype not in FLOATS:
            raise ValueError(
                f"{tensors.folder}: {names[name]} must be of floating dtype, got {found.dtype}"
            )
        dtypes[found.dtype] = names[name]
    if wanted is None and len(dtypes) > 1:
        pairs = " and ".join(f"{dtype} ({name})" for dtype, name in dtypes.items())
        raise ValueError(f"{path} is of tensors of one dtype, got {pairs}: dtype says which")
    return _float(wanted or next(iter(dtypes)))


def _check_tied(plan: Plan, tensors: Tensors, names: dict[str, str]) -> None:
    """A head that is stored although it is the table must be the table."""
    if HEAD not in tensors.specs:
        return
    row, _ = next(iter(plan.leaves.values()))
    table = names[row.theirs[0]]
    same = tensors.specs[HEAD] == tensors.specs[table]
    if not same or not np.array_equal(tensors.read(HEAD), tensors.read(table), equal_nan=True):
        raise _other(
            tensors,
            f"{HEAD} must be {table}, as tie_word_embeddings says, and is not",
        )


def _other(tensors: Tensors, what: str) -> ValueError:
    return ValueError(f"weights in {tensors.folder} are of another model than {CONFIG}: {what}")


def _float(dtype: Any) -> Any:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a floating dtype, got {dtype!r}") from None
    if found.name not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(FLOATS)}, got {found.name}")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise ValueError(f"{found.name} is a dtype that JAX has only with jax_enable_x64")
    return found
