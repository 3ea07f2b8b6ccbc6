"""Random keys: which functions take one, and one for each child."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop.checks import check_function, check_key, require_key
from funprop.drawing import split

if TYPE_CHECKING:
    from funprop.typing import Array, Key


def with_key(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """`function(params, x)` lifted to `(params, x, key=None)`; one that takes a key stays, and a
    key that is none is refused."""
    if not takes_key(function, what):
        return lambda params, x, key=None: function(params, x)

    def with_checked(params: Any, x: Any, key: Any = None) -> Any:
        check_key(key)
        return function(params, x, key)

    return with_checked


def takes_key(function: Callable[..., Any], what: str) -> bool:
    """Whether `function` has a third argument, beside params and input, that must be given or is
    called `key`."""
    check_function(what, function, "(params, x) or (params, x, key)")
    arguments = inspect.signature(function).parameters.values()
    places = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty or p.name == "key"]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in arguments)
    if len(needed) != 3 and not (len(needed) <= 2 and (len(places) >= 2 or open_ended)):
        raise TypeError(
            f"{what} must take (params, x) or (params, x, key), got {len(places)} arguments"
        )
    return len(needed) == 3


def split_key(key: Key[Array, ""] | None, n: int) -> tuple[Any, ...]:
    """One key for each of `n` children; for no key, none for each."""
    return (None,) * n if key is None else split(key, n)


def stacked_keys(key: Key[Array, ""] | None, n: int) -> Any:
    """One key for each of `n` copies, as an array; `None` for no key."""
    if key is None:
        return None
    require_key(key)
    return jax.random.split(key, n)
