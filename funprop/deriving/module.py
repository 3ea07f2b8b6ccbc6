"""A program as a module of Python: its head, what is taken apart, its lines, what it returns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from jax.extend.core import Literal

from funprop.deriving.flat import Value
from funprop.deriving.source import Source
from funprop.deriving.text import Names, Text, tuple_of, wrapped
from funprop.params.selection import by_name

if TYPE_CHECKING:
    from funprop.deriving.trace import Program
    from funprop.layer import Layer

PARTS_OF_BATCH = ("inputs", "targets", "weights")
DOCSTRINGS = {
    "gradient": "The loss and its weight, summed over the batch; the gradient, by params' names.",
    "backward": "`y`; the gradient, by params' names; the cotangent of `x`.",
}


def module(layer: Layer, program: Program, arguments: dict[str, Any], gives: Any) -> str:
    """The source.

    Args:
      layer: whose backward pass it is.
      program: both passes.
      arguments: by name, what the function takes; params by the names of their leaves.
      gives: what it gives, as a tuple of trees of specs.
    """
    name = "gradient" if "batch" in arguments else "backward"
    names = Names({name, *arguments})
    source = Source(program, names)
    unpacked, takes = [], []
    unused = _unused(program)
    for argument, tree in arguments.items():
        for label, code, leaf in _leaves(argument, tree):
            value = Value(tuple(leaf.shape), leaf.dtype)
            takes.append(value)
            if len(takes) - 1 in unused:
                continue
            local = argument if code == argument else names.new(label)
            source.texts[value] = Text(local)
            if local != code:
                unpacked.append(f"    {local} = {code}")
    results = iter([source.code(value) for value in source.function(program.jaxpr, takes)])
    lines = [
        f'"""The backward pass of {layer.name}, written by funprop: it needs JAX alone."""',
        "",
        *("import jax", "import jax.numpy as jnp", "from jax import lax", "", ""),
        f"def {name}({', '.join(arguments)}):",
        f'    """{DOCSTRINGS[name]}"""',
        *unpacked,
        *source.lines,
        "",
        *_returned(gives, results),
    ]
    return "\n".join(part for line in lines for part in wrapped(line)) + "\n"


def _unused(program: Program) -> set[int]:
    jaxpr = program.jaxpr.jaxpr
    atoms = [*(atom for equation in jaxpr.eqns for atom in equation.invars), *jaxpr.outvars]
    used = {atom for atom in atoms if not isinstance(atom, Literal)}
    return {i for i, variable in enumerate(jaxpr.invars) if variable not in used}


def _leaves(argument: str, tree: Any) -> Iterator[tuple[str, str, Any]]:
    """Of each leaf of an argument: what to call it, how to get it, and itself."""
    if argument == "params":
        for name, leaf in by_name(tree).items():
            yield name, f"params[{json.dumps(name)}]", leaf
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        code = f"{argument}{jax.tree_util.keystr(path)}"
        place = getattr(path[0], "idx", -1) if len(path) == 1 else -1
        known = argument == "batch" and 0 <= place < len(PARTS_OF_BATCH)
        yield PARTS_OF_BATCH[place] if known else code, code, leaf


def _returned(gives: Any, results: Iterator[str]) -> Iterator[str]:
    yield "    return ("
    for tree in gives:
        if isinstance(tree, dict):
            yield "        {"
            yield from (f"            {key!r}: {_tree(tree[key], results)}," for key in tree)
            yield "        },"
        else:
            yield f"        {_tree(tree, results)},"
    yield "    )"


def _tree(tree: Any, results: Iterator[str]) -> str:
    """A tree in Python; nodes that are none of Python's own as the tuple of their leaves."""
    if tree is None:
        return "None"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {_tree(tree[key], results)}" for key in tree) + "}"
    if isinstance(tree, tuple | list):
        parts = [_tree(part, results) for part in tree]
        return tuple_of(parts) if isinstance(tree, tuple) else f"[{', '.join(parts)}]"
    if jax.tree.structure(tree) == jax.tree.structure(0):
        return next(results)
    return tuple_of([next(results) for _ in jax.tree.leaves(tree)])
