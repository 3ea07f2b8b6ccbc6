"""The arrays of a checkpoint: written and read by orbax, with a digest of each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.train.checkpoints.description import DamagedError
from funprop.train.checkpoints.digests import digests
from funprop.train.named import as_leaf, bits, bits_spec, implementation, is_key, named
from funprop.trees import spec_string

if TYPE_CHECKING:
    from funprop.typing import PyTree

ARRAYS = "arrays"  # the part of a checkpoint that is orbax's
LACKING = ("uint2", "uint4", "float8_e4m3")  # dtypes that JAX has and tensorstore has not
Leaves = dict[str, dict[str, str]]  # spec, digest and kind of key of each, by name


def write(checkpointer: Any, folder: Path, state: PyTree) -> Leaves:
    """Begin to write; what is on the device is copied from it before this returns.

    Returns:
      What is to be checked when it is read.

    """
    import orbax.checkpoint as ocp

    leaves = named(state)
    arrays = {name: bits(leaf) for name, leaf in leaves.items()}
    found = digests(arrays)
    if stored := {name: _on_host(_storable(array)) for name, array in _not_empty(arrays).items()}:
        checkpointer.save(folder / ARRAYS, args=ocp.args.PyTreeSave(stored))
    return {
        name: {"spec": spec_string(array), "digest": found[name], **_key(leaves[name])}
        for name, array in arrays.items()
    }


def read(checkpointer: Any, folder: Path, stored: Leaves, like: PyTree) -> PyTree:
    """What was written, in the structure of `like` and on its devices.

    Raises:
      ValueError: it is another structure's; names the first leaf.
      DamagedError: it cannot be read, or is not what was written.
    """
    leaves = named(like)
    _check_alike(leaves, stored)
    arrays = _read_arrays(checkpointer, folder, {n: _target(leaf) for n, leaf in leaves.items()})
    _check_digests(arrays, stored)
    found = [as_leaf(leaf, arrays[name]) for name, leaf in leaves.items()]
    return jax.tree.structure(like).unflatten(found)


def check(checkpointer: Any, folder: Path, stored: Leaves) -> None:
    """Read all of it; raise `DamagedError` where it is not what was written."""
    specs = {name: _spec_of(leaf["spec"]) for name, leaf in stored.items()}
    _check_digests(_read_arrays(checkpointer, folder, specs), stored)


def check_leaves(state: PyTree) -> None:
    """Raise where one is nothing that can be stored; that is the caller's mistake, and no disk's.

    Raises:
      TypeError: it is no array and no number, or is traced by `jit`; names it.
      ValueError: it has been donated; names it.
    """
    for name, leaf in named(state).items():
        if isinstance(leaf, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
            raise TypeError(f"save must be called outside of jit, got a traced array at {name}")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(f"state must be as an update gave it, {name} was donated to another")
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if not is_key(leaf) and array.dtype.kind in "OSUMm":
            raise TypeError(
                f"a checkpoint holds arrays and numbers, got {type(leaf).__name__} at {name}"
            )


def _key(leaf: Any) -> dict[str, str]:
    return {"key": str(implementation(leaf))} if is_key(leaf) else {}


def _not_empty(arrays: dict[str, Any]) -> dict[str, Any]:
    """Without arrays of no numbers, which orbax does not take: nothing of them need be stored."""
    return {name: array for name, array in arrays.items() if array.size}


def _storable(array: Any) -> Any:
    """An array, or the spec of one, with its bits as bytes where tensorstore lacks its dtype."""
    if array.dtype.name not in LACKING:
        return array
    if isinstance(array, jax.ShapeDtypeStruct):
        return array.update(dtype=np.uint8)
    narrow = jnp.issubdtype(array.dtype, jnp.integer)
    return array.astype(np.uint8) if narrow else array.view(np.uint8)


def _on_host(array: Any) -> Any:
    """NumPy's, of what one process has as a whole: orbax copies that. Of a JAX array it asks
    tensorstore for its metrics twice a save, and they are never freed (tensorstore 0.1.86)."""
    if isinstance(array, jax.Array) and array.is_fully_replicated and jax.process_count() == 1:
        return np.asarray(array)
    return array


def _unstored(array: Any, spec: Any) -> Any:
    if spec.dtype.name not in LACKING:
        return array
    narrow = jnp.issubdtype(spec.dtype, jnp.integer)
    return array.astype(spec.dtype) if narrow else array.view(spec.dtype)


def _check_alike(leaves: dict[str, Any], stored: Leaves) -> None:
    for name in (*leaves, *stored):
        if name not in stored:
            raise ValueError(f"it has no {name}")
        if name not in leaves:
            raise ValueError(f"it has {name}, which the state has not")
        leaf = leaves[name]
        wanted, got = spec_string(bits_spec(leaf)), stored[name]["spec"]
        if wanted != got:
            raise ValueError(f"at {name} expected {wanted}, got {got}")
        if not is_key(leaf) and not isinstance(leaf, np.ndarray | np.generic) and _wide(leaf):
            raise ValueError(f"{name} is {wanted}, which JAX has with jax_enable_x64 alone")
        kind, stored_kind = _key(leaf).get("key"), stored[name].get("key")
        if kind != stored_kind:
            wanted, got = (f"a key of {k}" if k else "numbers" for k in (kind, stored_kind))
            raise ValueError(f"at {name} expected {wanted}, got {got}")


def _wide(leaf: Any) -> bool:
    """Whether it is to be an array that JAX would make narrower."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype


def _target(leaf: Any) -> Any:
    """What orbax shall make: arrays over several devices as they are in `leaf`, else NumPy's."""
    spec = bits_spec(leaf)
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, jax.sharding.Sharding) and len(sharding.device_set) > 1:
        sharding = jax.NamedSharding(sharding.mesh, jax.P()) if is_key(leaf) else sharding  # pyright: ignore[reportAttributeAccessIssue]
        return spec.update(sharding=sharding)
    return np.empty(spec.shape, spec.dtype) if spec.size == 0 else spec


def _spec_of(text: str) -> jax.ShapeDtypeStruct:
    dtype, _, shape = text.rstrip("]").partition("[")
    return jax.ShapeDtypeStruct(tuple(int(n) for n in shape.split(",") if n), np.dtype(dtype))


def _read_arrays(checkpointer: Any, folder: Path, specs: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    wanted = {name: _storable(spec) for name, spec in _not_empty(specs).items()}
    how = {name: _how(spec) for name, spec in wanted.items()}
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=how)
    found: dict[str, Any] = {}
    if wanted:
        with _reading():
            found = checkpointer.restore(folder / ARRAYS, args=args)
    return {
        name: _unstored(found[name], spec) if name in wanted else np.empty(spec.shape, spec.dtype)
        for name, spec in specs.items()
    }


def _how(spec: Any) -> Any:
    import orbax.checkpoint as ocp

    if getattr(spec, "sharding", None) is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=spec.sharding, global_shape=spec.shape, dtype=spec.dtype)


def _check_digests(arrays: dict[str, Any], stored: Leaves) -> None:
    for name, array in arrays.items():
        if spec_string(array) != stored[name]["spec"]:
            raise DamagedError(f"{name} is not what was written")
    found = digests(arrays)
    for name, leaf in stored.items():
        if found[name] != leaf["digest"]:
            raise DamagedError(f"{name} is not what was written")


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever a reader of damaged files raises is damage."""
    try:
        with quiet():
            yield
    except DamagedError:
        raise
    except MemoryError:
        raise DamagedError("a size in it cannot be") from None
    except Exception as error:
        raise DamagedError(f"it cannot be read ({type(error).__name__})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, orbax's own log stays silent: what went wrong is told by whoever called it."""
    logger = logging.getLogger("absl")

    def not_of_orbax(record: logging.LogRecord) -> bool:  # each its own: threads may overlap
        return "orbax" not in record.pathname

    logger.addFilter(not_of_orbax)
    try:
        yield
    finally:
        logger.removeFilter(not_of_orbax)
