"""From rules over the paths of params to where each of them lies on a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from funprop.arguments import require_mesh
from funprop.checks import check_arrays, described
from funprop.params.selection import Pattern, by_name, matches, require_match
from funprop.trees import path_string, spec_string
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree

Choice = PartitionSpec | Callable[[Any], PartitionSpec]
Rules = Sequence[tuple[Pattern, Choice]] | Callable[[str, Any], PartitionSpec]

REST = "*"


def make_mesh(**axes: int) -> Mesh:
    """A mesh over the first devices, its axes named and partitioned by XLA (`AxisType.Auto`).

    Args:
      **axes: how many devices along each axis.

    Raises:
      TypeError: how many is no integer.
      ValueError: no axis, one that is not positive, or more devices than there are.

    Example:
      >>> dict(make_mesh(data=1, model=1).shape)
      {'data': 1, 'model': 1}
    """
    axes = {name: whole_number(size, name) for name, size in axes.items()}
    if not axes or min(axes.values()) < 1:
        raise ValueError(f"axes must be one or more, each at least 1, got {axes}")
    there, wanted = len(jax.devices()), math.prod(axes.values())
    if wanted > there:
        raise ValueError(f"a mesh must need at most {there} devices, got {axes}, which is {wanted}")
    sizes, names = tuple(axes.values()), tuple(axes)
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(axes))


def shardings(params: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """The `NamedSharding` of every param, as `out_shardings` of `jax.jit` and others want them.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`s like them.
      mesh: whose axes the specs name.
      rules: pairs of a pattern for names (see `fp.where`), as `blocks/attention/qkv/w` or `*/w`,
        and a `PartitionSpec`, or a function of a param's shape to one. Order means nothing: a param
        must not match two with different specs. Of several names in a tuple one at least must
        match. Only the pattern `"*"` is for what no other matches. Or a function
        `(name, leaf) -> PartitionSpec`.

    Raises:
      ValueError: a pattern matches no param; a param matches none, or several that differ; a spec
        names an axis that the mesh lacks, or one twice, is longer than the param has axes, or does
        not divide them.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> params = {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}
      >>> placed = shardings(params, make_mesh(model=1), [("w", P(None, "model")), ("*", P())])
      >>> placed["w"].spec == P(None, "model"), placed["b"].spec == P()
      (True, True)
    """
    require_mesh(mesh)
    check_arrays("params", params)
    check_rules(rules)
    choose = chosen_by(rules)
    for pattern in _patterns(rules):
        if pattern != REST:
            require_match(pattern, by_name(params))

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path_string(path)
        spec = choose(name, leaf)
        check_spec(name, leaf, mesh, spec)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, params)


def check_rules(rules: Any) -> None:
    """Raise a `TypeError` where what was given is neither pairs nor a function."""
    pairs = isinstance(rules, list | tuple) and all(
        isinstance(rule, list | tuple) and len(rule) == 2 for rule in rules
    )
    if not callable(rules) and not pairs:
        raise TypeError(
            "rules must be pairs of a pattern and a PartitionSpec, or a function, got "
            + described(rules)
        )


def chosen_by(rules: Rules) -> Callable[[str, Any], PartitionSpec]:
    """Rules as a function `(path, leaf) -> PartitionSpec`, patterns that match nothing or not."""
    if callable(rules):
        return rules

    def choose(path: str, leaf: Any) -> PartitionSpec:
        found = [rule for rule in rules if rule[0] != REST and matches(path, rule[0])]
        found = found or [rule for rule in rules if rule[0] == REST]
        if not found:
            raise ValueError(
                f'a param must match a rule, got none for {path}; ("*", P()) is for the rest'
            )
        specs = [spec(leaf) if callable(spec) else spec for _, spec in found]
        if any(_short(spec) != _short(specs[0]) for spec in specs):
            both = ", ".join(
                f"{pattern!r}: {spec}" for (pattern, _), spec in zip(found, specs, strict=True)
            )
            raise ValueError(f"a param must match one rule, got {path} by {both}")
        return specs[0]

    return choose


def check_spec(path: str, leaf: Any, mesh: Mesh, spec: PartitionSpec) -> None:
    """Raise a `ValueError` where the leaf at `path` cannot lie on `mesh` by `spec`."""
    if not isinstance(spec, PartitionSpec):
        raise TypeError(f"a rule must give a PartitionSpec, got {spec!r} for {path}")
    what = f"got {spec} for {path}, {spec_string(leaf)}"
    used = [name for axes in spec for name in names_of(axes)]
    missing = [name for name in used if name not in mesh.shape]
    if missing:
        raise ValueError(f"a spec must name axes of the mesh, {tuple(mesh.shape)}, {what}")
    if len(set(used)) < len(used):
        raise ValueError(f"a spec must name an axis of the mesh once, {what}")
    if len(spec) > len(leaf.shape):
        raise ValueError(f"a spec must be at most as long as the shape, {what}")
    for length, axes in zip(leaf.shape, spec, strict=False):
        if length % devices(mesh, axes):
            raise ValueError(
                f"a spec must divide the shape, {what}: {length} over {devices(mesh, axes)} devices"
            )


def names_of(axes: Any) -> tuple[str, ...]:
    """The axes of the mesh in one entry of a `PartitionSpec`: none, one, or several."""
    if axes is None:
        return ()
    return axes if isinstance(axes, tuple) else (axes,)


def devices(mesh: Mesh, axes: Any) -> int:
    """In how many parts one entry of a `PartitionSpec` cuts."""
    return math.prod(mesh.shape[name] for name in names_of(axes))


def _patterns(rules: Any) -> list[Pattern]:
    """The patterns of rules, and of those that they were made from."""
    if callable(rules):
        inner = getattr(rules, "rules", None)
        return [] if inner is None else _patterns(inner)
    return [pattern for pattern, _ in rules]


def _short(spec: PartitionSpec) -> tuple[Any, ...]:
    """Without what changes nothing: `P("a")` and `P(("a",), None)` are one."""
    entries = [names_of(axes) for axes in spec]
    while entries and not entries[-1]:
        entries.pop()
    return tuple(entries)
