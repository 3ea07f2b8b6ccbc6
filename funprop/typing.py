"""The words of our annotations: what pyright and readers need, and nothing that runs.

`Float[Array, "n i"]` is an `Array` to a type checker, and a shape to a reader: so jaxtyping writes
it, which nobody need install to have our types.
"""

from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Inexact
from typing import Annotated as Int
from typing import Annotated as Key
from typing import Annotated as Num
from typing import Annotated as Shaped
from typing import Annotated as UInt
from typing import Annotated as UInt8
from typing import Annotated as UInt32
from typing import Any, TypeAlias

from jax import Array

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
