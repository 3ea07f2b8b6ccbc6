"""A layer's two passes as one program, in which every value that a layer gives has a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import partial_eval

from funprop.layer import Layer
from funprop.maps import around, map_nodes
from funprop.trees import path_string

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Place(NamedTuple):
    """Which pass of which layer a line of the program belongs to."""

    stage: str
    path: str
    layer: Layer

    def __str__(self) -> str:
        return f"{self.stage}: {self.path or self.layer.name}"


class Program(NamedTuple):
    """Two passes, traced.

    Attributes:
      jaxpr: what they compute; nothing that is not asked for.
      places: what the numbers of its scopes mean.
    """

    jaxpr: Any
    places: list[Place]

    def place(self, stack: str) -> Place | None:
        """The innermost layer of a name stack."""
        found = re.findall(r"funprop_(\d+)_", stack)
        return self.places[int(found[-1])] if found else None


def traced(function: Callable[..., PyTree], arguments: dict[str, PyTree]) -> tuple[Any, Any]:
    """The jaxpr of `function(*arguments)` without what is not needed for what it gives.

    Returns:
      The closed jaxpr, whose inputs are all leaves of `arguments`, used or not; and the outputs, as
      a tree of specs.
    """
    closed, gives = jax.make_jaxpr(function, return_shape=True)(*arguments.values())
    needed = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, needed, instantiate=True)
    return closed.replace(jaxpr=jaxpr), gives


def with_names(layer: Layer, places: list[Place]) -> Layer:
    """The same layer, which names what each of its parts gives, forward and backward.

    Args:
      layer: any.
      places: what the numbers of scopes mean is appended here.
    """

    def numbered(path: str, part: Layer) -> Layer:
        numbers = []
        for stage in ("forward", "backward"):
            numbers.append(len(places))
            places.append(Place(stage, path, part))
        return naming(part, path or part.name, numbers)

    def naming(part: Layer, here: str, numbers: list[int]) -> Layer:
        def forward(params: PyTree, x: PyTree, key: Any = None) -> Any:
            with jax.named_scope(f"funprop_{numbers[0]}_"):
                y, residuals = part.forward(params, x, key)
                return _tagged(y, f"{here}/y"), residuals

        def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> Any:
            with jax.named_scope(f"funprop_{numbers[1]}_"):
                dparams, dx = part.backward(params, residuals, dy)
                if not part.children:
                    dparams = _tagged(dparams, f"{here}/d", "")
                return dparams, _tagged(dx, f"{here}/dx")

        def again(part: Layer) -> Layer:
            return naming(part, here, numbers)

        return around(part, again, forward=forward, backward=backward)

    return map_nodes(numbered, layer)


def _tagged(tree: PyTree, name: str, joint: str = "/") -> PyTree:
    def one(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf  # a random key
        below = path_string(path)
        return checkpoint_name(leaf, f"{name}{joint if below else ''}{below}")

    return jax.tree_util.tree_map_with_path(one, tree)
