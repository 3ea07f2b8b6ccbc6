"""A call of somebody's public function, and the inputs that most of them take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """Arguments to call a public function at.

    Attributes:
      args: arrays, or pytrees of them.
      options: what is static, by keyword.
      function: called with the public function and `args`, where a plain call will not do.
    """

    args: tuple[Any, ...]
    options: dict[str, Any]
    function: Callable[..., Any] | None = None


Calls = dict[str, list[Call]]


class Table(NamedTuple):
    """The public functions of one package.

    Attributes:
      name: of the package, as a user imports it.
      module: where a name is looked up.
      calls: one row for each public name.
      excused: names that have no call, and why.
    """

    name: str
    module: Any
    calls: Calls
    public: list[str]
    excused: dict[str, str]


def at(*args: Any, **options: Any) -> Call:
    """The public function itself, at these arrays."""
    return Call(args, options)


def by(function: Callable[..., Any], *args: Any) -> Call:
    """A function of the public one and these arrays, which calls it."""
    return Call(args, {}, function)


def every(names: str, *calls: Call) -> Calls:
    """The same calls for many names."""
    return {name: list(calls) for name in names.split()}


def excuse(**names: str) -> dict[str, str]:
    """`why="name name"` as a reason for each name."""
    return {name: why.replace("_", " ") for why, listed in names.items() for name in listed.split()}


_rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Random numbers, the same in every run."""
    return _rng.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Random numbers between 0.2 and 3."""
    return _rng.uniform(0.2, 3.0, shape).astype(np.float32)


def unit(*shape: int) -> np.ndarray:
    """Random numbers between 0.05 and 0.95."""
    return _rng.uniform(0.05, 0.95, shape).astype(np.float32)


def array(*values: float) -> np.ndarray:
    """These numbers in float32."""
    return np.array(values, np.float32)


# Kinks of the usual activations, values near to them and far out.
POINTS = array(-100, -7, -3, -1, -0.5, -1e-3, 0, 1e-3, 0.3, 1, 2, 3, 6, 7, 100)
MASK = np.array([True, True, False, True])
