"""What layers are called: in params, in paths, in messages. One name for all of them."""

from __future__ import annotations

import functools
import itertools
import keyword
import re
import unicodedata
from collections import namedtuple
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from funprop.layer import Layer
    from funprop.typing import PyTree


def label(layer: Layer) -> str:
    """What its parent calls a layer, where no sibling has the same name.

    A node of one child that nobody named goes by its child's name, if that says more.

    Example:
      >>> import funprop as fp
      >>> label(fp.residual(fp.serial(fp.named("attention", fp.dense(8))))), label(fp.relu())
      ('attention', 'relu')
    """
    return layer.name if is_kind(layer) else _innermost(layer).name


def is_kind(layer: Layer) -> bool:
    """Whether a layer's label is but its kind: nobody named it, nor what it alone consists of."""
    node = _innermost(layer)
    return not node.named and (bool(node.children) or node.of_node)


def _innermost(layer: Layer) -> Layer:
    while not layer.named and len(layer.children) == 1:
        (layer,) = layer.children
    return layer


def child_names(layer: Layer) -> tuple[str, ...]:
    """What params and paths call each child: its name, numbered where siblings have the same.

    Example:
      >>> import funprop as fp
      >>> child_names(fp.serial(fp.dense(8), fp.relu(), fp.dense(2)))
      ('dense_0', 'relu', 'dense_1')
    """
    return distinct_names(layer.children)


def distinct_names(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """The names of siblings, as Python can write them, numbered where they are the same."""
    names = [identifier(label(layer)) for layer in layers]
    taken = {name for name in names if names.count(name) == 1}
    found = []
    for name in names:
        if names.count(name) > 1:
            numbered = (f"{name}_{i}" for i in itertools.count())
            name = next(n for n in numbered if n not in taken)
            taken.add(name)
        found.append(name)
    return tuple(found)


def identifier(name: str) -> str:
    """`name` as an attribute, as Python itself reads it: `gated_silu` of `gated(silu)`."""
    name = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", name)).strip("_")
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"layer_{name}"


def below(path: str, layer: Layer) -> tuple[str, ...]:
    """The path of each child of `layer`, which is at `path`: a flat node adds no level, nor does a
    child whose name is empty."""
    each = zip(layer.children, child_names(layer), strict=True)
    paths = tuple("/".join(filter(None, (path, name if label(c) else ""))) for c, name in each)
    return (path, *paths[1:]) if layer.flat else paths


def title(path: str, layer: Layer) -> str:
    """What a table calls the layer at `path`: of one with its child's path, its kind too."""
    told = path and layer.flat and path.rpartition("/")[2] != layer.name
    return f"{path} ({layer.name})" if told else path or layer.name


# ------------------------------------------------------------------------------- names of params


def params_of(children: tuple[Layer, ...], params: Iterable[PyTree]) -> Any:
    """The params of a node from those of its children: a named tuple; of one child, the child's.

    So `params.blocks.output.w` and `params[1][3].w` are the same leaf, and the key path that JAX
    prints is the name that people know.

    Example:
      >>> import funprop as fp
      >>> params_of((fp.dense(2), fp.relu()), ("w", ()))
      Params(dense='w', relu=())
    """
    params = tuple(params)
    return params[0] if len(children) == 1 else params_type(distinct_names(children))(*params)


@functools.cache
def params_type(names: tuple[str, ...]) -> Any:
    """The type of params with these names: one type for equal names, which may be pickled.

    A `NamedTuple`, since JAX flattens these without Python, and every index of a tuple still holds.
    """
    made = namedtuple("Params", names)  # the names are known when it runs
    made.__reduce__ = lambda self: (_made, (names, tuple(self)))  # pyright: ignore
    return made


def _made(names: tuple[str, ...], params: tuple[Any, ...]) -> Any:
    return params_type(names)(*params)


def empty(layer: Layer) -> PyTree:
    """The params of a layer that has none."""
    return params_of(layer.children, map(empty, layer.children)) if layer.children else ()
