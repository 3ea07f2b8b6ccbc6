"""A layer, and its backward pass, to be judged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.functions import by_vjp
from funprop.layer import Layer, leaf_of
from funprop.names import title
from funprop.params import is_trained, trained
from funprop.params.tapped import untap
from funprop.verify.subject import (
    MismatchError,
    Subject,
    is_floating,
    without_keys,
)
from funprop.verify.subjects.of_function import check_intended


def of_layer(layer: Layer, params: Any, x: Any, key: Any = None, path: str = "") -> Subject:
    """A layer at a point. Of a combinator the children's backward is taken by autodiff, so that
    what is left to judge is its own."""
    judged = _alone(layer)
    leaves, structure = jax.tree.flatten((params, x, key))
    leaves, with_keys = without_keys([jnp.asarray(leaf) for leaf in leaves])
    n_params, n_data = len(jax.tree.leaves(params)), len(jax.tree.leaves((params, x)))
    given = jax.tree.leaves((is_trained(params), jax.tree.map(lambda _: True, (x, key))))
    differentiable = tuple(
        i
        for i, (leaf, own) in enumerate(zip(leaves, given, strict=True))
        if own and is_floating(leaf)
    )

    def output(*inputs: Any) -> list[Any]:
        params, x, key = structure.unflatten(with_keys(inputs))
        return jax.tree.leaves(layer.forward(params, x, key)[0])

    def meant(*inputs: Any) -> list[Any]:
        return jax.tree.leaves((layer.intended or output)(*structure.unflatten(with_keys(inputs))))

    if layer.intended is not None:
        check_intended(meant, output, leaves)

    def backward(inputs: Any, dys: Any) -> list[Any]:
        params, x, key = structure.unflatten(with_keys(inputs))
        y, residuals = judged.forward(params, x, key)
        dparams, dx = judged.backward(params, residuals, _like_floats(y, dys))
        want = jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, (trained(params), x))
        return _checked((untap(dparams)[0], dx), want, path or layer.name)

    def remade(specs: Any) -> list[Any]:
        _, x, _ = structure.unflatten(specs)
        params = layer.init(jax.random.key(0), x)
        return [*jax.tree.leaves((params, x)), *specs[n_data:]]

    return Subject(
        name=path or layer.name,
        paths=tuple(_layer_paths(layer, path, structure)),
        args=tuple(leaves),
        differentiable=differentiable,
        plain=output if layer.intended is None else meant,
        backward=backward,
        remade=remade if n_params else None,
        data=tuple(range(n_params, n_data)),
    )


def _alone(layer: Layer) -> Layer:
    if not layer.children:
        return layer

    def by_autodiff(child: Layer) -> Layer:
        # A leaf: its residuals are no longer those of its children.
        forward, backward = by_vjp(child.forward)
        return leaf_of(child, forward=forward, backward=backward)

    return layer.rebuild(*map(by_autodiff, layer.children))


def _layer_paths(layer: Layer, path: str, structure: Any) -> list[str]:
    filled = structure.unflatten(range(structure.num_leaves))
    found = []
    for (which, *rest), _ in jax.tree_util.tree_flatten_with_path(filled)[0]:
        if which.idx == 0:
            leaf = trees.path_string(tuple(rest)) or "params"
        elif which.idx == 2:
            leaf = "key"
        else:
            leaf = "/".join(["dx", *([trees.path_string(tuple(rest))] if rest else [])])
        if layer.children:
            found.append(f"{title(path, layer)}: {leaf}")
        else:
            found.append(f"{path}/{leaf}" if path else leaf)
    return found


def _like_floats(y: Any, dys: Any) -> Any:
    """The cotangents in the structure of `y`, `None` for integers."""
    rest = iter(dys)
    return jax.tree.map(lambda leaf: next(rest) if is_floating(leaf) else None, y)


def _checked(got: Any, want: Any, where: str) -> list[Any]:
    if jax.tree.structure(got) != jax.tree.structure(want):
        got, want = (jax.tree.map(trees.spec_string, tree) for tree in (got, want))
        raise MismatchError(where, f"backward must give (dparams, dx) like {want}, got {got}")
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if (g.shape, g.dtype) != (w.shape, w.dtype):
            want, got = trees.spec_string(w), trees.spec_string(g)
            raise MismatchError(where, f"backward must give {want}, got {got}")
    return jax.tree.leaves(got)
