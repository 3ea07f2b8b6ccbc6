"""Params in a file: safetensors, under the names that people write, with a digest of every leaf."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.checks import check_known, to_path
from funprop.train.named import implementation, is_key
from funprop.train.whole_file import whole_file
from funprop.trees import path_string, spec_string

if TYPE_CHECKING:
    from funprop.typing import PyTree

DIGESTS = "sha256"  # the entry of the file's metadata that has them: JSON, name to digest
KEYS = "keys"  # another: JSON, name of a random key to what its bits are for (`rbg`)
ALONE = "params"  # the name of an array that is all there is
# What the format calls the dtypes that it has, and JAX too.
DTYPES = {
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{"bool": "BOOL", "bfloat16": "BF16", "complex64": "C64"},
}


def save(path: str | os.PathLike[str], params: PyTree) -> None:
    """Write every leaf of `params` into one safetensors file, under its name (`dense_0/w`).

    A file of that name is replaced when all of the new one is on the disk, not before. NaN and
    infinity are written, with a warning. Needs the package safetensors (`funprop[train]`).

    Args:
      path: of the file; its folder is there already.
      params: any pytree of arrays, random keys among them.

    Raises:
      TypeError: a leaf is no array, or of a dtype that the format does not have; names it.
      ValueError: two leaves have one name.
      OSError: the file cannot be written.
      ModuleNotFoundError: safetensors is missing.

    Example:
      >>> import tempfile, funprop as fp
      >>> model, x = fp.dense(2), jnp.zeros((1, 3))
      >>> params = model.init(jax.random.key(0), x)
      >>> file = Path(tempfile.mkdtemp()) / "params.safetensors"
      >>> save(file, params)
      >>> again = load(file, jax.eval_shape(model.init, jax.random.key(0), x))
      >>> bool((again.w == params.w).all())
      True
    """
    _installed()
    from safetensors.numpy import save as packed

    file = to_path("path", path)
    check_known("params", params)
    leaves = _by_name("params", params)
    arrays = {name: _stored(name, leaf) for name, leaf in leaves.items()}
    _warn_where_not_finite("params", arrays)
    digests = {name: _digest(name, array) for name, array in arrays.items()}
    metadata = {DIGESTS: json.dumps(digests)}
    if keys := _keys(leaves):
        metadata[KEYS] = json.dumps(keys)
    content = packed(arrays, metadata)
    with whole_file(file) as draft:
        draft.write_bytes(content)


def load(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """What `save` wrote: the very values, in the structure of `like`.

    They are JAX's arrays, but for NumPy's where `like` has those, of dtypes that JAX may not have.

    Nothing is read before names, shapes and dtypes are those of `like`, and nothing is returned
    whose digest differs. What is split over devices in `like` (a `NamedSharding`) is so again.

    Args:
      path: of the file.
      like: params of the same model, or specs of them:
        `jax.eval_shape(model.init, jax.random.key(0), x)`.

    Raises:
      ValueError: the file holds the params of another model (names the first leaf), is damaged, or
        was not written by `save`.
      TypeError: a leaf of `like` is neither an array nor a spec.
      OSError: there is no such file, or it cannot be read.
      ModuleNotFoundError: safetensors is missing.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "params.safetensors"
      >>> save(file, {"w": jnp.arange(3.0)})
      >>> load(file, {"w": jax.ShapeDtypeStruct((3,), jnp.float32)})["w"].tolist()
      [0.0, 1.0, 2.0]
    """
    _installed()
    from safetensors import SafetensorError, safe_open

    file = to_path("path", path)
    with file.open("rb"):  # says in Python's own words what is missing or not allowed
        pass
    expected = _by_name("like", like)
    try:
        with safe_open(file, framework="np") as stored:
            digests = _entry(stored.metadata(), DIGESTS)
            keys, expected_keys = _entry(stored.metadata(), KEYS), _keys(expected)
            _check_names(file, expected, stored.keys(), digests)
            for name, leaf in expected.items():
                part = stored.get_slice(name)
                _check_spec(file, name, leaf, part.get_dtype(), tuple(part.get_shape()))
                _check_key(file, name, expected_keys.get(name), keys.get(name))
            arrays = {name: stored.get_tensor(name) for name in expected}
    except SafetensorError:
        raise ValueError(f"{file} is damaged, or no safetensors file") from None
    for name, array in arrays.items():
        if _digest(name, array) != digests[name]:
            raise ValueError(f"{file} is damaged: {name} is not what was written")
    _warn_where_not_finite(str(file), arrays)
    leaves = [_as(leaf, arrays[name]) for name, leaf in expected.items()]
    return jax.tree.structure(like).unflatten(leaves)


def _installed() -> None:
    try:
        import safetensors  # noqa: F401  # whether it is there
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "files of params need safetensors: pip install 'funprop[train]'"
        ) from None


def _by_name(what: str, tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree under their names, each an array or a spec."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_string(path) or ALONE
        if name in leaves:
            raise ValueError(f"{what} must have a name for each leaf, got two leaves at {name}")
        if name == "__metadata__" or not name.isprintable():
            raise ValueError(f"{what}: a leaf cannot be named {name!r} in a file")
        known = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
        if not isinstance(leaf, known) or isinstance(leaf, np.ma.MaskedArray):
            raise TypeError(f"{what}: at {name} expected an array, got {type(leaf).__name__}")
        dtype = _raw(leaf).dtype.name
        if dtype not in DTYPES:
            raise TypeError(f"{what}: at {name} is {dtype}, which safetensors does not have")
        leaves[name] = leaf
    return leaves


def _keys(leaves: dict[str, Any]) -> dict[str, str]:
    """Of each random key, the implementation that its bits are for: they alone do not tell it."""
    return {name: str(implementation(leaf)) for name, leaf in leaves.items() if is_key(leaf)}


def _raw(leaf: Any) -> Any:
    """A spec of what is stored: the bits, for random keys."""
    return jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf


def _stored(name: str, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise ValueError(f"params: {name} was donated to an update and is gone")
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise ValueError(f"params: {name} is split over processes: gather it first")
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _digest(name: str, array: Any) -> str:
    """Of the values, and of what says how to read them."""
    described = f"{name}\n{spec_string(array)}\n".encode()
    return hashlib.sha256(described + array.tobytes()).hexdigest()


def _entry(metadata: dict[str, str] | None, name: str) -> dict[str, str]:
    try:
        found = json.loads((metadata or {})[name])
    except (KeyError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_names(
    file: Path, expected: dict[str, Any], stored: list[str], digests: dict[str, str]
) -> None:
    if sorted(stored) != sorted(digests):
        raise ValueError(f"{file} has no digest for each array: damaged, or not written by save")
    for name in (*expected, *stored):
        if name not in stored or name not in expected:
            where = "the file" if name in expected else "like"
            raise ValueError(f"params in {file} are of another model: {where} has no {name}")


def _check_spec(file: Path, name: str, leaf: Any, dtype: str, shape: tuple[int, ...]) -> None:
    raw = _raw(leaf)
    if (dtype, shape) != (DTYPES[raw.dtype.name], raw.shape):
        known = {short: long for long, short in DTYPES.items()}
        raise ValueError(
            f"params in {file} are of another model: at {name} expected {spec_string(raw)}, got "
            f"{known.get(dtype, dtype)}[{','.join(map(str, shape))}]"
        )
    known_dtype = raw.dtype.name  # whatever its byte order
    if not _is_numpy(leaf) and jax.dtypes.canonicalize_dtype(known_dtype).name != known_dtype:
        raise ValueError(f"at {name} is {known_dtype}, which JAX has only with jax_enable_x64")


def _check_key(file: Path, name: str, expected: str | None, found: str | None) -> None:
    if expected != found:
        wanted, got = (f"a key of {kind}" if kind else "numbers" for kind in (expected, found))
        raise ValueError(
            f"params in {file} are of another model: at {name} expected {wanted}, got {got}"
        )


def _is_numpy(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | np.generic)


def _as(leaf: Any, array: Any) -> Any:
    """The stored values of `leaf` as it is: NumPy's, a key, or split over the same devices."""
    if _is_numpy(leaf):
        return array[()] if isinstance(leaf, np.generic) else array
    value = jnp.asarray(array)
    if is_key(leaf):
        value = jax.random.wrap_key_data(value, impl=implementation(leaf))
    sharding = getattr(leaf, "sharding", None)
    split = isinstance(sharding, jax.sharding.NamedSharding)
    return jax.device_put(value, sharding) if split else value


def _warn_where_not_finite(what: str, arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
            warnings.warn(f"{what}: {name} holds NaN or infinity", stacklevel=3)
            return
