"""What each part of a model is given and gives, when the model runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.layer import Layer, map_nodes

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Visit(NamedTuple):
    """One call of one layer's forward.

    Attributes:
      path: where in the model, as in `repeat[3]/dense`; empty for the model itself.
      layer: which layer.
      params, x, key: what its forward was given.
      y: what it gave.
    """

    path: str
    layer: Layer
    params: Any
    x: Any
    key: Any
    y: Any


def visits(model: Layer, params: PyTree, x: PyTree, key: Any = None) -> list[Visit]:
    """Run `model` forward and list every call of every part, each node before its children.

    Runs without `jit`, so that the copies under a scan are seen one by one. Keeps no residuals.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.tanh(), fp.repeat(fp.relu(), 2))
      >>> params = model.init(jax.random.key(0), jnp.zeros(3))
      >>> [visit.path for visit in visits(model, params, jnp.zeros(3))]
      ['', 'tanh', 'repeat', 'repeat[0]/relu', 'repeat[1]/relu']
    """
    seen: list[Visit] = []
    trails: list[
        tuple[tuple[str, int], ...]
    ] = []  # for each visit: (child, which call) from the root
    running: list[tuple[Any, Counter[str]]] = [
        ((), Counter())
    ]  # each running node's trail and calls

    def watch(static_path: str, node: Layer) -> Layer:
        name = static_path.rpartition("/")[2]

        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
            above, calls = running[-1]
            trail = (*above, (name, calls[name]))
            calls[name] += 1
            place = len(seen)
            trails.append(trail)
            seen.append(Visit("", node, params, x, key, None))
            running.append((trail, Counter()))
            y, _ = node.forward(params, x, key)
            running.pop()
            seen[place] = seen[place]._replace(y=y)
            return y, ()

        return dataclasses.replace(node, forward=forward)

    with jax.disable_jit():
        map_nodes(watch, model).forward(params, x, key)
    repeated = {_names(trail) for trail in trails if trail[-1][1] > 0}
    return [
        visit._replace(path=_path(trail, repeated, model.name))
        for visit, trail in zip(seen, trails, strict=True)
    ]


def compiled_visits(model: Layer, params: PyTree, x: PyTree, key: Any = None) -> list[Visit]:
    """As `visits`, all in one compiled program; without `y`, which it need not compute.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.tanh(), fp.relu())
      >>> [visit.x.tolist() for visit in compiled_visits(model, ((), ()), jnp.zeros(1))]
      [[0.0], [0.0], [0.0]]
    """
    seen: list[Visit] = []

    def run(params: PyTree, x: PyTree) -> list[tuple[Any, Any, Any]]:
        seen.extend(visits(model, params, x, key))
        return [(visit.params, visit.x, visit.key) for visit in seen]

    values = jax.jit(run)(params, x)
    return [
        visit._replace(params=p, x=here, key=k, y=None)
        for visit, (p, here, k) in zip(seen, values, strict=True)
    ]


def _names(trail: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    return tuple(name for name, _ in trail)


def _path(trail: tuple[tuple[str, int], ...], repeated: set[tuple[str, ...]], root: str) -> str:
    """`repeat[3]/dense`: the copy stands with the node that made the copies."""
    parts = [""]
    for depth, (name, copy) in enumerate(trail[1:], start=2):
        if _names(trail[:depth]) in repeated:
            parts[-1] = f"{parts[-1] or root}[{copy}]"
        parts.append(name)
    return "/".join(part for part in parts if part)
