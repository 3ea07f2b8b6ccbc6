"""Models into a folder that Hugging Face's transformers loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

from funprop.checks import described
from funprop.params import Frozen
from funprop.rewrites import LowRank
from funprop.train.pretrained.loaded import TOKENIZER, Pretrained
from funprop.train.pretrained.plan import CONFIG, Plan, planned
from funprop.train.pretrained.tensors import (
    FLOATS,
    INDEX,
    WEIGHTS,
    Spec,
    folder_of,
    read_json,
    write,
)
from funprop.train.whole_file import whole_file
from funprop.trees import path_string

if TYPE_CHECKING:
    from funprop.typing import PyTree

# What goes with a model, and stays as it is.
BESIDE = (
    *(TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "generation_config.json", "chat_template.jinja"),
)


def to_pretrained(
    folder: str | os.PathLike[str],
    params: PyTree,
    like: Pretrained | dict[str, Any] | str | os.PathLike[str],
) -> Path:
    """Write a folder that transformers loads: config.json and model.safetensors; and, of a model
    that came from a folder, what else goes with it (the tokenizer).

    Each file is there as a whole or not at all, and nothing is written before all fits. Weights
    keep their dtype, and are written one at a time.

    Args:
      folder: made where it is not there.
      params: of `like`'s `language_model`; without adapters (see `merged`).
      like: what `from_pretrained` gave, a folder, or the entries of config.json, `model_type`
        among them: what is not said has transformers' own default.

    Returns:
      The folder.

    Raises:
      ValueError: the params are of another model than `like`, or adapted; the configuration has
        what we lack; or the folder holds a model in many files.
      TypeError: an argument is of another kind.
      OSError: it cannot be written.

    Example:
      >>> import tempfile, jax.numpy as jnp, funprop as fp
      >>> model = fp.language_model(fp.gpt(50, features=8, depth=1, heads=2), 50)
      >>> tokens = jnp.zeros((1, 1), int)
      >>> params = model.init(jax.random.key(0), (tokens, tokens))
      >>> config = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 8, "n_layer": 1, "n_head": 2}
      >>> folder = to_pretrained(Path(tempfile.mkdtemp()) / "mine", params, config)
      >>> sorted(file.name for file in folder.iterdir())
      ['config.json', 'model.safetensors']
    """
    place = folder_of(folder)
    entries, source = _config(like)
    plan = planned(entries, CONFIG if source is None else source / CONFIG)
    leaves = _leaves(plan, params)
    if (place / INDEX).exists():
        raise ValueError(f"folder must hold no model in many files, got {place}")
    # The larger numbers first, so that each begins where such a number may.
    leaves = dict(sorted(leaves.items(), key=lambda pair: -pair[1].dtype.itemsize))
    dtypes = {leaf.dtype.name for leaf in leaves.values()}
    entries = _completed(plan, entries, dtypes)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, leaf in leaves.items():
            yield from plan.leaves[path][0].written(np.asarray(leaf))

    specs = {
        name: Spec(leaf.dtype.name, shape)
        for path, leaf in leaves.items()
        for name, shape, _ in plan.leaves[path][0].tensors(leaf.shape)
    }
    new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    try:
        write(place / WEIGHTS, specs, tensors())
        with whole_file(place / CONFIG) as draft:
            draft.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        if source is not None and source.resolve() != place.resolve():
            _copy(source, place)
    except BaseException:
        if new:
            shutil.rmtree(place, ignore_errors=True)
        raise
    return place


# ---------------------------------------------------------------------------------------- checks


def _config(like: Any) -> tuple[dict[str, Any], Path | None]:
    """The entries of a configuration, and the folder that they come from."""
    if isinstance(like, Pretrained):
        return like.config, like.folder
    if isinstance(like, dict):
        return like, None
    if isinstance(like, str | os.PathLike):
        return read_json(Path(like) / CONFIG), Path(like)
    raise TypeError(f"like must be a Pretrained, a folder or a dictionary, got {described(like)}")


def _leaves(plan: Plan, params: PyTree) -> dict[str, Any]:
    """The leaves by their paths: those that the plan has, of its shapes."""
    for part in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, LowRank | Frozen)):
        if isinstance(part, LowRank | Frozen):
            raise ValueError(
                "params must be without adapters and what is frozen: merged(params) makes such"
            )
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    leaves = {path_string(path): leaf for path, leaf in found}
    for path in (*plan.leaves, *leaves):
        if path not in leaves or path not in plan.leaves:
            where = "params have" if path in plan.leaves else f"{CONFIG} has"
            raise ValueError(f"params are of another model than {CONFIG}: {where} no {path}")
        leaf, shape = leaves[path], plan.leaves[path][1]
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array | np.ndarray):
            raise TypeError(f"params: at {path} expected an array, got {described(leaf)}")
        if leaf.shape != shape:
            raise ValueError(
                f"params are of another model than {CONFIG}: at {path} expected shape {shape}, got "
                f"{leaf.shape}"
            )
        if leaf.dtype.name not in FLOATS:
            raise ValueError(f"params: at {path} expected floating numbers, got {leaf.dtype}")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(f"params: {path} was donated to an update and is gone")
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            raise ValueError(f"params: {path} is split over processes: gather it first")
    return {path: leaves[path] for path in plan.leaves}


def _completed(plan: Plan, entries: dict[str, Any], dtypes: set[str]) -> dict[str, Any]:
    """The entries with what transformers reads: the class, and the dtype of all weights."""
    known = {"torch_dtype", "dtype"} & entries.keys() or {"dtype"}
    told = {name: dtypes.copy().pop() for name in known} if len(dtypes) == 1 else {}
    return {**entries, "architectures": [plan.family.architectures[0]], **told}


def _copy(source: Path, place: Path) -> None:
    for name in BESIDE:
        if (source / name).is_file():
            with whole_file(place / name) as draft:
                draft.write_bytes((source / name).read_bytes())
