"""Choosing parts of a model, and params, by their names: one language for both.

A pattern is a path, `blocks/attention/output`, in which `*` stands for anything, `/` too, and `*/`
in front for any depth; what is below a part that matches is meant with it. `blocks[-1]` and
`blocks[:2]` mean some of the copies that `repeat` made. Several patterns, in a tuple, mean what any
of them does.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax

from funprop.checks import described
from funprop.layer import Layer
from funprop.names import below
from funprop.params.roles import UNTRAINED, declared
from funprop.trees import path_string
from funprop.values import short

if TYPE_CHECKING:
    from funprop.typing import PyTree

Pattern = str | tuple[str, ...]
Place = tuple[int, ...]  # which child of which child: unlike names, it outlasts other rewrites


def where(pattern: Pattern, params: PyTree) -> PyTree:
    """Which params are meant by their names: a tree like `params` of booleans, as a mask of optax.

    Args:
      pattern: a path such as `blocks/attention/output/w`, or one of a part, which means all below
        it; `*` stands for anything, as in `*/w`. Several in a tuple mean what any of them does.
      params: any pytree; the names are those that JAX prints, without those of `Frozen` and
        `LowRank` around them. In a tree of what is trained (`fp.trained`, what an optimizer of
        `step` is given) a pattern may mean parts that are frozen: it means nothing of it then.

    Raises:
      ValueError: a pattern matches nothing, nor anything that may be in a part that is frozen; the
        nearest names are told.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.dense(4), fp.relu(), fp.named("head", fp.dense(2)))
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> where("*/w", params)
      Params(dense=DenseParams(w=True, b=False), relu=(), head=DenseParams(w=True, b=False))
      >>> where("haed", params)
      Traceback (most recent call last):
      ValueError: the pattern 'haed' must match a name, the nearest are head, head/w, head/b
    """
    names = list(by_name(params))
    for each in several(pattern):
        if "[" in each:
            raise ValueError(f"a mask holds for all copies of a leaf alike, got {short(each)}")
        if not any(_may_hold(path, each) or matches(path, each) for path in _left_out(params)):
            require_match(each, names)
    found = [matches(name, pattern) for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def by_name(params: PyTree) -> dict[str, Any]:
    """Every leaf by its name, in the order of the model.

    Example:
      >>> by_name({"dense": {"w": 1.0, "b": 2.0}})
      {'dense/b': 2.0, 'dense/w': 1.0}
    """
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def matches(name: str, pattern: Pattern) -> bool:
    """Whether a leaf, or a part that it is in, is meant by a pattern, or by one of several."""
    prefixes = list(_prefixes(name))
    return any(fits(p, each) for each in several(pattern) for p in prefixes)


def fits(name: str, pattern: str) -> bool:
    """`*/w` is `w` at any depth, at none too."""
    return fnmatch.fnmatchcase(name, pattern) or (
        pattern.startswith("*/") and fnmatch.fnmatchcase(name, pattern[2:])
    )


def _may_hold(path: str, pattern: str) -> bool:
    """Whether what a pattern means may be below a path, of which nobody can tell what was there."""
    ends = (i + 1 for i, letter in enumerate(pattern) if letter in "*/")
    return not path or any(fits(f"{path}/", pattern[:end]) for end in ends)


def _left_out(node: Any, path: tuple[Any, ...] = ()) -> Iterable[str]:
    """Where `trained` left something out: `None`, but for params that a layer goes without."""
    if node is None:
        yield path_string(path)
    said = declared(node) or {}
    children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda part: part is not node)
    for key, child in children:
        if child is None and said.get(getattr((*key, None)[0], "name", ""), "frozen") in UNTRAINED:
            yield from _left_out(None, (*path, *key))
        elif child is not None and key:
            yield from _left_out(child, (*path, *key))


def require_match(pattern: Pattern, names: Iterable[str]) -> None:
    """Raise where none of the names of leaves is meant, and tell the nearest."""
    names = list(names)
    if not any(matches(name, pattern) for name in names):
        raise ValueError(_no_match(pattern, (p for name in names for p in _prefixes(name))))


def require_name(pattern: str, names: dict[str, bool]) -> None:
    """Raise where no part is meant, and tell the nearest, or which one is frozen already.

    Args:
      pattern: for parts.
      names: the path of each, and whether it is frozen as a whole.
    """
    if any(fits(name, pattern) for name in names):
        return
    for name, frozen in names.items():
        if frozen and _may_hold(name, pattern):
            raise ValueError(
                f"the pattern {short(pattern)} must match a name; all below {name} is frozen "
                "already"
            )
    raise ValueError(_no_match(pattern, names))


def several(pattern: Pattern) -> tuple[str, ...]:
    """The patterns in what may be one or a tuple of them."""
    each = (pattern,) if isinstance(pattern, str) else pattern
    if not isinstance(each, tuple | list) or not all(isinstance(p, str) for p in each) or not each:
        raise TypeError(
            f"a pattern must be a string or several in a tuple, got {described(pattern)}"
        )
    return tuple(each)


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


def _no_match(pattern: Pattern, names: Iterable[str]) -> str:
    every = list(dict.fromkeys(name for name in names if name))
    near = difflib.get_close_matches(several(pattern)[0].strip("*/"), every, 3, 0.4) or every[:3]
    told = f", the nearest are {', '.join(near)}" if near else ", there are none"
    return f"the pattern {short(pattern)} must match a name{told}"


# ------------------------------------------------------------------------------- parts of a model


def places(pattern: Pattern, model: Layer, *, into_shared: bool = True) -> frozenset[Place]:
    """The parts of `model` that a pattern means, the outermost of each path.

    Args:
      pattern: as of `where`; but what it names are parts, not their params.
      model: is itself never among them.
      into_shared: whether there may be some below a node that makes its child's params from others.

    Raises:
      ValueError: nothing matches; or what does is below a node whose params are made of others.
    """
    found: set[Place] = set()
    for each in several(pattern):
        if "[" in each:
            raise ValueError(
                f"copies can be frozen or adapted one by one, no more, got {short(each)}"
            )
        names: dict[str, bool] = {}
        matched = set(_places(each, model, "", (), names))
        require_name(each, names)
        for place in matched if not into_shared else ():
            _refuse_shared(model, place, each)
        found |= matched
    return frozenset(p for p in found if not any(p[:i] in found for i in range(len(p))))


def _places(
    pattern: str, node: Layer, path: str, place: Place, names: dict[str, bool]
) -> Iterable[Place]:
    for i, (child, name) in enumerate(zip(node.children, below(path, node), strict=True)):
        names[name] = child.frozen
        if fits(name, pattern):
            yield (*place, i)
        else:
            yield from _places(pattern, child, name, (*place, i), names)


def _refuse_shared(node: Layer, place: Place, pattern: str) -> None:
    for depth, i in enumerate(place):
        made = node.shares and not (node.hands_on and place[depth + 1 : depth + 2] == (0,))
        if made:
            raise ValueError(
                f"a part whose params are made of others cannot be chosen, got {short(pattern)}"
            )
        node = node.children[i]


def within(place: Place, chosen: frozenset[Place]) -> bool:
    """Whether a chosen part is at `place` or below it."""
    return any(other[: len(place)] == place for other in chosen)


def map_places(
    chosen: frozenset[Place], model: Layer, function: Callable[[Layer], Layer], at: Place = ()
) -> Layer:
    """`function` applied to the chosen parts of `model`; a part with none inside stays as it is."""
    if at in chosen:
        return function(model)
    if not within(at, chosen):
        return model
    children = [
        map_places(chosen, child, function, (*at, i)) for i, child in enumerate(model.children)
    ]
    return model.rebuild(*children) if children else model
