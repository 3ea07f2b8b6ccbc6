"""An update that uses up its state, and says so where one is given a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop.jitted import Jitted

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Donating(Jitted):
    """`jax.jit(update, donate_argnums=0)`, with all that it can (`lower`, `trace`, ...).

    Looks at the state only where the call has failed: that costs a training loop nothing.

    Raises:
      ValueError: the state was given to an update before; or, as `Jitted`, of the batch.
    """

    first = "state"

    def __init__(self, update: Callable[..., Any]) -> None:
        super().__init__(update, donate_argnums=0)

    def __call__(self, *args: Any, **named: Any) -> Any:
        try:
            return super().__call__(*args, **named)
        except (RuntimeError, ValueError) as error:
            if "deleted" in str(error):  # out of memory, too, leaves a state without its arrays
                check_alive(args[:1] or named.get("state"))
            raise


def check_alive(state: PyTree) -> None:
    """Raise a `ValueError` where the memory of `state` was given to an update."""
    if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "state must not have been given to an update before, which used up its memory: go on "
            "with the state that update gave"
        ) from None
