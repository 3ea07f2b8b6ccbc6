"""The words of our annotations, which nothing imports when it runs.

Those of jaxtyping: `Float[Array, "n i"]` is an `Array` to a type checker, a shape to a reader.
Its `PyTree` is of an unknown type to a checker; ours is any.
"""

from typing import Any, TypeAlias

from jaxtyping import (
    Array,
    Bool,
    Float,
    Inexact,
    Int,
    Key,
    Num,
    Shaped,
    UInt,
    UInt8,
    UInt32,
)

PyTree: TypeAlias = Any

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Inexact",
    "Int",
    "Key",
    "Num",
    "PyTree",
    "Shaped",
    "UInt",
    "UInt8",
    "UInt32",
]
