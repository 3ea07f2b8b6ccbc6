"""Which names of a package are public functions or layers."""

from __future__ import annotations

import inspect
from typing import Any


def functions(module: Any) -> list[str]:
    """Public callables that are no types."""
    return [n for n in _public(module) if callable(v := getattr(module, n)) and not _is_type(v)]


def classes(module: Any, base: type) -> list[str]:
    """Public subclasses of `base`, itself left out."""
    found = [
        n for n in _public(module) if inspect.isclass(v := getattr(module, n)) and v is not base
    ]
    return [n for n in found if issubclass(getattr(module, n), base)]


def _public(module: Any) -> list[str]:
    names = getattr(module, "__all__", None) or dir(module)
    return sorted(n for n in names if not n.startswith("_"))


def _is_type(value: Any) -> bool:
    # jax.numpy.float32 and its like are objects of a metaclass of JAX's own.
    return (
        inspect.isclass(value) or type(type(value)) is not type or "Scalar" in type(value).__name__
    )
