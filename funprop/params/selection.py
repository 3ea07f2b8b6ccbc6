"""Choosing parts of a model by their paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

from funprop.layer import Layer, child_names

Place = tuple[int, ...]  # which child of which child: unlike names, it outlasts other rewrites


def places(where: str, model: Layer, *, into_shared: bool = True) -> frozenset[Place]:
    """The parts of `model` whose path matches the pattern `where`, the outermost of each path.

    Paths are those of messages and summaries, `residual/serial/dense[2]`; `*` stands for anything.

    Args:
      where: the pattern.
      model: is itself never among them.
      into_shared: whether there may be some below a node that shares params.

    Raises:
      ValueError: nothing matches; or what does is below a node that shares params.
    """
    pattern = where.replace("[", "[[]")  # brackets are part of names here
    found = set()

    def look(node: Layer, path: str, place: Place, shared: bool) -> None:
        shared |= node.shares
        for i, (child, name) in enumerate(zip(node.children, child_names(node), strict=True)):
            below = f"{path}/{name}" if path else name
            if not fnmatch.fnmatchcase(below, pattern):
                look(child, below, (*place, i), shared)
            elif shared and not into_shared:
                raise ValueError(f"a part whose params are shared cannot be chosen, got {below}")
            else:
                found.add((*place, i))

    look(model, "", (), False)
    if not found:
        raise ValueError(f"a part of {model.name} must match the pattern, got {where!r}")
    return frozenset(found)


def map_places(
    chosen: frozenset[Place], model: Layer, function: Callable[[Layer], Layer], at: Place = ()
) -> Layer:
    """`function` applied to the chosen parts of `model`; a part with none inside stays as it is."""
    if at in chosen:
        return function(model)
    if not any(place[: len(at)] == at for place in chosen):
        return model
    children = [
        map_places(chosen, child, function, (*at, i)) for i, child in enumerate(model.children)
    ]
    return model.rebuild(*children) if children else model
