"""A backward pass that is meant to be another than that of its own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from funprop.layer import Layer
    from funprop.typing import PyTree


def meant_through(
    layer: Layer,
    params_of: Callable[[PyTree], PyTree] = lambda params: params,
    x_of: Callable[[PyTree], PyTree] = lambda x: x,
) -> Callable[..., PyTree] | None:
    """Whose derivative is meant by a rewrite of `layer`, whose params and input are made from the
    rewrite's; `None` where `layer` means its own.

    Example:
      >>> import funprop as fp
      >>> meant_through(fp.relu()) is None
      True
    """
    intended = layer.intended
    if intended is None:
        return None
    return lambda params, x, key=None: intended(params_of(params), x_of(x), key)
