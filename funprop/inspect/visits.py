"""What each part of a model is given and gives, when the model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.layer import Layer
from funprop.maps import around
from funprop.names import below
from funprop.params.selection import Place

if TYPE_CHECKING:
    from funprop.typing import PyTree


Trail = tuple[tuple[int, int], ...]


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
      ['', 'tanh', 'relu', 'relu[0]', 'relu[1]']
    """
    seen: list[Visit] = []
    trails: list[Trail] = []  # of each visit: (child, which call) from the root
    running: list[tuple[Trail, Counter[int]]] = [((), Counter())]  # each running node's, its calls

    def watched(node: Layer, place: int) -> Layer:
        children = [watched(child, i) for i, child in enumerate(node.children)]
        node = node.rebuild(*children) if children else node
        return watching(node, place, node)

    def watching(node: Layer, place: int, told: Layer) -> Layer:
        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
            above, calls = running[-1]
            trail = (*above, (place, calls[place]))
            calls[place] += 1
            number = len(seen)
            trails.append(trail)
            seen.append(Visit("", told, params, x, key, None))
            running.append((trail, Counter()))
            y, _ = node.forward(params, x, key)
            running.pop()
            seen[number] = seen[number]._replace(y=y)
            return y, ()

        return around(node, lambda node: watching(node, place, told), forward=forward)

    with jax.disable_jit():
        watched(model, 0).forward(params, x, key)
    copied = {places_of(trail[:-1]) for trail in trails if trail[-1][1] > 0}
    return [
        visit._replace(path=path_of(trail, copied, model))
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


def noting(
    model: Layer, note: Callable[[Place, tuple[Any, Any, Any], tuple[Any, Any]], None]
) -> Layer:
    """The same model; of every forward call of every node `note(place, given, gives)` hears: what
    it was given, `(params, x, key)`, and gives, `(y, residuals)`, and where the node is.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> heard = []
      >>> model = noting(fp.serial(fp.tanh()), lambda place, given, gives: heard.append(place))
      >>> _ = model.forward((), jnp.zeros(3))
      >>> heard
      [(0,), ()]
    """

    def noted(node: Layer, at: Place) -> Layer:
        children = [noted(child, (*at, i)) for i, child in enumerate(node.children)]
        return listening(node.rebuild(*children) if children else node, at)

    def listening(node: Layer, at: Place) -> Layer:
        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
            y, residuals = node.forward(params, x, key)
            note(at, (params, x, key), (y, residuals))
            return y, residuals

        return around(node, lambda node: listening(node, at), forward=forward)

    return noted(model, ())


def places_of(trail: Trail) -> tuple[int, ...]:
    """Which child of which, without which call."""
    return tuple(place for place, _ in trail)


def path_of(trail: Trail, copied: set[tuple[int, ...]], model: Layer) -> str:
    """`blocks[3]/dense`: the copy stands with the node that made the copies."""
    path, node = "", model
    for depth, (place, copy) in enumerate(trail[1:], start=1):
        if places_of(trail[:depth]) in copied:
            path = f"{path or node.name}[{copy}]"
        path, node = below(path, node)[place], node.children[place]
    return path
