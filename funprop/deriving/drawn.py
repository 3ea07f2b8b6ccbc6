"""Random keys, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from funprop.deriving.rules import call
from funprop.deriving.text import Text, dtype_name

if TYPE_CHECKING:
    from funprop.deriving.flat import Operation


def _each(operation: Operation, given: list[Text], name: str, *more: str) -> Text:
    """Of one key; of an array of them, which JAX's functions refuse, each for itself."""
    axes = tuple(0 if value.shape else None for value in operation.takes)
    if not any(axis == 0 for axis in axes):
        return call(f"jax.random.{name}", given, *more)
    takes = ", ".join(("key", "data")[: len(given)])
    function = f"lambda {takes}: jax.random.{name}({', '.join([takes, *more])})"
    for _ in max((value.shape for value in operation.takes), key=len):
        function = f"jax.vmap({function}, {axes})"
    return call(function, given)


DRAWN: dict[str, Callable[[Operation, list[Text]], Text]] = {
    "random_seed": lambda o, t: call("jax.random.key", t),
    "random_bits": lambda o, t: _each(
        o, t, "bits", str(tuple(o.params["shape"])), dtype_name(f"uint{o.params['bit_width']}")
    ),
    "random_split": lambda o, t: _each(o, t, "split", str(tuple(o.params["shape"]))),
    "random_fold_in": lambda o, t: _each(o, t, "fold_in"),
    "random_wrap": lambda o, t: call("jax.random.wrap_key_data", t),
    "random_unwrap": lambda o, t: call("jax.random.key_data", t),
}
