"""Python as text: expressions that know how tightly they bind, names, numbers, lines."""

from __future__ import annotations

import builtins
import keyword
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

COMPARE, ADD, MULTIPLY, UNARY, POWER, ATOM = range(6)  # Python's order of precedence


class Text(NamedTuple):
    """An expression.

    Attributes:
      code: Python.
      binds: how tightly, from `COMPARE` to `ATOM`.
      full: whether it has its value's shape; else it only broadcasts to that.
      number: of a literal, its value.
      bare: without its leading axes of one, which NumPy adds itself beside others; empty where it
        has none.
    """

    code: str
    binds: int = ATOM
    full: bool = True
    number: Any = None
    bare: str = ""

    def within(self, binds: int) -> str:
        """In parentheses, where it binds less tightly than what is around it."""
        return self.code if self.binds >= binds else f"({self.code})"

    @property
    def atom(self) -> str:
        return self.within(ATOM)


def binary(operator: str, binds: int, a: Text, b: Text) -> Text:
    # Comparisons and bit operators do not nest as arithmetic does: always in parentheses.
    left = binds if binds > COMPARE else COMPARE + 1
    return Text(f"{a.within(left)} {operator} {b.within(binds + 1)}", binds)


def dtype_name(dtype: Any) -> str:
    name = np.dtype(dtype).name
    return "jnp.bool_" if name == "bool" else f"jnp.{name}"


def number(value: Any, dtype: Any) -> str:
    """A scalar in Python: the shortest that is the same value in its dtype."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return str(bool(value))
    if dtype.kind in "iu":
        return str(int(value))
    if dtype.kind == "c":
        return f"complex({complex(value).real!r}, {complex(value).imag!r})"
    if np.isnan(value):
        return "jnp.nan"
    if np.isinf(value):
        return "jnp.inf" if value > 0 else "-jnp.inf"
    narrow = np.float32(value) if dtype.itemsize < 8 else np.float64(value)
    return repr(float(str(narrow)))


def array(value: Any) -> str:
    """A constant array: a range, one number, or all of them; or a random key."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data, kind = array(jax.random.key_data(value)), jax.random.key_impl(value)
        return f"jax.random.wrap_key_data({data}, impl={str(kind)!r})"
    value = np.asarray(value)
    dtype = dtype_name(value.dtype)
    counts = value.ndim == 1 and value.dtype.kind in "iu" and value.size > 2
    if counts and (value == np.arange(value.size)).all():
        return f"jnp.arange({value.size}, dtype={dtype})"
    if value.size and (value == value.flat[0]).all():
        return f"jnp.full({value.shape}, {number(value.flat[0], value.dtype)}, {dtype})"

    def nested(part: Any) -> str:
        if part.ndim == 0:
            return number(part, value.dtype)
        return f"[{', '.join(map(nested, part))}]"

    return f"jnp.array({nested(value)}, {dtype})"


TAKEN = {*dir(builtins), *keyword.kwlist, "jax", "jnp", "lax", "params", "carry", "xs"}


class Names:
    """Names that are free: what is asked for, or that with a number."""

    def __init__(self, taken: set[str]) -> None:
        self.used = TAKEN | taken

    def new(self, wanted: str) -> str:
        name = re.sub(r"\W+", "_", wanted).strip("_") or "value"
        name = f"_{name}" if name[0].isdigit() else name
        found, n = name, 1
        while found in self.used:
            n += 1
            found = f"{name}_{n}"
        self.used.add(found)
        return found


def tuple_of(codes: list[str]) -> str:
    return f"({', '.join(codes)}{',' if len(codes) == 1 else ''})"


def wrapped(line: str, width: int = 99) -> list[str]:
    """A line of code, broken after the outermost comma or operator that is inside brackets."""
    indent = len(line) - len(line.lstrip())
    lines: list[str] = []
    before = 0  # how many brackets are open where the line begins
    while len(line) > width and not line.lstrip().startswith("#"):
        depth, found = before, []
        for i, letter in enumerate(line[:width]):
            depth += (letter in "([{") - (letter in ")]}")
            if depth and letter == " " and i > indent + width // 3:
                found.append((depth, -i))
        if not found:
            break
        least, at = min(found)
        lines.append(line[:-at])
        before = least
        line = " " * (indent + 4) + line[-at + 1 :]
    return [*lines, line]
