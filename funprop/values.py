"""Values as people give them: the numbers that makers take, those that are known while a program is
traced, and integers of every width. Imports nothing of ours."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

if TYPE_CHECKING:
    from funprop.typing import Array, Int, Num

LARGEST = np.iinfo(np.int32).max
FINITE: tuple[Callable[[float], bool], str] = (  # for number_within
    lambda x: 0 < x < math.inf,
    "positive and finite",
)


def whole_number(value: Any, name: str, least: int | None = None) -> int:
    """`value` as an `int`.

    Raises:
      TypeError: it is no integer.
      ValueError: it is below `least`.

    Example:
      >>> whole_number(5.0, "batch_size", 1)
      Traceback (most recent call last):
        ...
      TypeError: batch_size must be an integer, got 5.0
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_told(value)}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def real_number(value: Any, name: str) -> float:
    """`value` as a number of Python's: one of Python, NumPy or JAX, that is known.

    Raises:
      TypeError: it is none.

    Example:
      >>> real_number(np.float32(0.5), "rate")
      0.5
      >>> real_number("0.5", "rate")
      Traceback (most recent call last):
        ...
      TypeError: rate must be a number, got '0.5'
    """
    words = isinstance(value, bool | np.bool_ | str | bytes | Tracer)
    if words or not hasattr(value, "__float__") or np.ndim(value):
        raise TypeError(f"{name} must be a number, got {_told(value)}")
    if type(value) in (int, float):
        return value  # as it is, for what messages say
    try:
        return float(value)
    except TypeError:  # a key, say
        raise TypeError(f"{name} must be a number, got {_told(value)}") from None


def number_within(value: Any, name: str, holds: Callable[[float], bool], told: str) -> Any:
    """`value` as a number for which `holds`; one that is traced, as a number of the members of a
    `population` is, is taken as it is: each member's was looked at before.

    Raises:
      TypeError: it is none.
      ValueError: it does not hold.

    Example:
      >>> number_within(-1, "delta", lambda x: x > 0, "positive")
      Traceback (most recent call last):
        ...
      ValueError: delta must be positive, got -1
    """
    if isinstance(value, Tracer) and np.ndim(value) == 0:
        return value
    number = real_number(value, name)
    if not holds(number):
        raise ValueError(f"{name} must be {told}, got {number}")
    return number


def seed_number(seed: Any) -> int:
    """`seed` as an `int` that a random key can be made of, no two of which give the same.

    Raises:
      TypeError: it is no integer.
      ValueError: it is out of range.

    Example:
      >>> seed_number(2**32)
      Traceback (most recent call last):
        ...
      ValueError: seed must be from 0 to 2**32 - 1, got 4294967296
    """
    number = whole_number(seed, "seed")
    if not 0 <= number < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {number}")
    return number


def is_zero(value: Any) -> bool:
    """Whether a number is zero, and known to be."""
    return not isinstance(value, Tracer) and value == 0


def _told(value: Any) -> str:
    plain = value is None or isinstance(value, str | bytes | float | bool)
    return short(value) if plain else type(value).__name__


def short(value: Any) -> str:
    """How an error message writes a value: its `repr`, of one line and cut where it is long.

    Example:
      >>> short((2, "a")), short("a" * 500)
      ("(2, 'a')", "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...")
    """
    line, *more = repr(value).split("\n", 1)
    return f"{line[:48]}..." if more or len(line) > 60 else line


def short_line(error: BaseException) -> str:
    r"""What an error says, in one line of bounded length.

    Example:
      >>> short_line(KeyError("a")), short_line(ValueError("no\nnumbers"))
      ("KeyError: 'a'", 'no')
    """
    first = str(error).split("\n", 1)[0]
    line = first if isinstance(error, ValueError) and first else f"{type(error).__name__}: {first}"
    return f"{line[:157]}..." if len(line) > 160 else line.removesuffix(": ")


def known(x: Any) -> np.ndarray | None:
    """The values of `x` where they can be looked at: not inside `jit`, nor on other machines.
    Integers come in 64 bits, booleans as 0 and 1. NumPy computes at once, inside a trace too.

    Example:
      >>> known(jnp.arange(3)).tolist()
      [0, 1, 2]
      >>> jax.jit(lambda x: x if known(x) is None else -x)(jnp.arange(3)).tolist()
      [0, 1, 2]
    """
    if isinstance(x, (Tracer, jax.ShapeDtypeStruct)):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    values = np.asarray(x)
    narrow = values.dtype == bool or jnp.issubdtype(values.dtype, jnp.integer)
    if narrow and values.dtype not in (np.int64, np.uint64):
        return values.astype(np.int64)  # so that they can be compared with any number
    return values


def dtype_in_jax(numbers: Any, name: str) -> np.dtype:
    """The dtype that JAX gives NumPy's numbers, which must fit in it: in 32 bits, where 64 are off.

    Infinity and NaN do; complex numbers are not looked at.

    Raises:
      ValueError: one does not fit.

    Example:
      >>> dtype_in_jax(np.ones(2), "x")
      dtype('float32')
      >>> dtype_in_jax(np.array([2**32]), "x")
      Traceback (most recent call last):
        ...
      ValueError: x must fit in int32, got 4294967296: set jax_enable_x64, or use less
    """
    native = numbers.dtype.newbyteorder("=")
    dtype = jax.dtypes.canonicalize_dtype(native)
    if dtype == native or not numbers.size or native.kind == "c":
        return dtype
    limits: Any = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype)
    for value in (numbers.min(), numbers.max()):
        if np.isfinite(value) and not limits.min <= value <= limits.max:
            raise ValueError(
                f"{name} must fit in {dtype}, got {value}: set jax_enable_x64, or use less"
            )
    return dtype


def to_int32(numbers: Num[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers of any width, or booleans, as `int32`: labels, ids and lengths are compared, and
    looked up with, in this width alone.

    A narrow one wraps where it is compared with a number of classes that it cannot hold, and JAX
    cuts a wide one of NumPy to its lower 32 bits. What does not fit becomes -1, which is in no
    range.

    Example:
      >>> to_int32(np.array([3, 2**32 + 1])).tolist()
      [3, -1]
      >>> to_int32(jnp.array([255], jnp.uint8)) + 1
      Array([256], dtype=int32)
    """
    if not isinstance(numbers, jax.Array):
        numbers = np.asarray(numbers)  # before JAX cuts it
    elif numbers.dtype == jnp.int32:
        return numbers
    if numbers.dtype == bool or jnp.iinfo(numbers.dtype).max <= LARGEST:
        return jnp.asarray(numbers.astype(np.int32))
    fits = (numbers >= 0) & (numbers <= numbers.dtype.type(LARGEST))
    return jnp.where(fits, numbers.astype(np.int32), -1)
