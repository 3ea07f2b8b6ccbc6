"""What can be judged, each made into a `Subject`: a layer, a function, a gradient, a rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.checks import check_function
from funprop.functions import by_vjp
from funprop.layer import Layer, leaf_of
from funprop.names import title
from funprop.params import is_trained, trained
from funprop.verify.subject import (
    MismatchError,
    Subject,
    arrays,
    by_jax,
    is_floating,
    suffix,
    without_keys,
)
from funprop.verify.truth import internals
from funprop.verify.truth.evaluate import Evaluate

# ------------------------------------------------------------------------------------ of a layer


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

    def plain(*inputs: Any) -> list[Any]:
        params, x, key = structure.unflatten(with_keys(inputs))
        return jax.tree.leaves(layer.forward(params, x, key)[0])

    def backward(inputs: Any, dys: Any) -> list[Any]:
        params, x, key = structure.unflatten(with_keys(inputs))
        y, residuals = judged.forward(params, x, key)
        got = judged.backward(params, residuals, _like_floats(y, dys))
        want = jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, (trained(params), x))
        return _checked(got, want, path or layer.name)

    def remade(specs: Any) -> list[Any]:
        _, x, _ = structure.unflatten(specs)
        params = layer.init(jax.random.key(0), x)
        return [*jax.tree.leaves((params, x)), *specs[n_data:]]

    return Subject(
        name=path or layer.name,
        paths=tuple(_layer_paths(layer, path, structure)),
        args=tuple(leaves),
        differentiable=differentiable,
        plain=plain,
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


# --------------------------------------------------------------------------------- of a function


def of_function(function: Callable[..., Any], args: Any, reference: Any = None) -> Subject:
    """A differentiable function, `jax.vjp` of it the backward pass to be judged."""
    leaves, structure, paths = _named_leaves(function, args)
    leaves, with_keys = without_keys(leaves)
    differentiable = tuple(i for i, leaf in enumerate(leaves) if is_floating(leaf))

    def flat(function: Any) -> Callable[..., list[Any]]:
        return lambda *inputs: jax.tree.leaves(function(*structure.unflatten(with_keys(inputs))))

    forward = flat(function)

    return Subject(
        name=getattr(function, "__name__", type(function).__name__),
        paths=paths,
        args=tuple(leaves),
        differentiable=differentiable,
        plain=flat(reference) if reference else forward,
        forward=forward,
        backward=by_jax(forward, differentiable),
        data=tuple(range(len(leaves))),
    )


def _named_leaves(function: Any, args: Any) -> tuple[list[Any], Any, tuple[str, ...]]:
    """The leaves of all arguments, and `params/w` for each."""
    check_function("what is verified", function, "or a layer")
    try:
        bound = inspect.signature(function).bind(*args)
        names = []
        for name, value in bound.arguments.items():
            variable = inspect.signature(function).parameters[name].kind.name == "VAR_POSITIONAL"
            names += [f"{name}[{i}]" for i in range(len(value))] if variable else [name]
    except TypeError as error:
        raise TypeError(f"args do not fit {_name(function)}: {error}") from None
    except ValueError:
        names = [f"args[{i}]" for i in range(len(args))]
    leaves, paths = [], []
    for name, arg in zip(names, args, strict=True):
        leaves += arrays(arg, name)[0]
        paths += [
            f"{name}{suffix(path)}" for path, _ in jax.tree_util.tree_flatten_with_path(arg)[0]
        ]
    return leaves, jax.tree.structure(tuple(args)), tuple(paths)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


# -------------------------------------------------------------------------- of a gradient of a loss


def of_gradient(grad_fn: Any, loss_fn: Any, args: Any) -> Subject:
    """A hand-written gradient `(params, batch) -> grads` against autodiff of `loss_fn`."""
    leaves, structure, names = _named_leaves(grad_fn, args)
    leaves, with_keys = without_keys(leaves)
    paths = [trees.path_string(p) for p, _ in jax.tree_util.tree_flatten_with_path(args[0])[0]]
    n_params = len(paths)
    differentiable = tuple(i for i in range(n_params) if is_floating(leaves[i]))

    def total(*inputs: Any) -> list[Any]:
        return jax.tree.leaves(loss_fn(*structure.unflatten(with_keys(inputs))))[:1]

    def backward(inputs: Any, dys: Any) -> list[Any]:
        args = structure.unflatten(with_keys(inputs))
        got = grad_fn(*args)
        got = getattr(got, "grads", got)
        want = jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, args[0])
        return [leaf * dys[0].astype(leaf.dtype) for leaf in _checked_grads(got, want)]

    return Subject(
        name=_name(grad_fn),
        paths=(*(path or "params" for path in paths), *names[n_params:]),
        args=tuple(leaves),
        differentiable=differentiable,
        plain=total,
        backward=backward,
        data=tuple(range(n_params, len(leaves))),
        free_cotangent=False,
    )


def _checked_grads(got: Any, want: Any) -> list[Any]:
    if jax.tree.structure(got) != jax.tree.structure(want):
        got, want = (jax.tree.map(trees.spec_string, tree) for tree in (got, want))
        raise MismatchError("params", f"grads must look like params, {want}, got {got}")
    pairs = zip(jax.tree_util.tree_flatten_with_path(want)[0], jax.tree.leaves(got), strict=True)
    for (path, w), g in pairs:
        if (g.shape, g.dtype) != (w.shape, w.dtype):
            want, got = trees.spec_string(w), trees.spec_string(g)
            raise MismatchError(
                trees.path_string(path) or "params", f"grads must be {want}, got {got}"
            )
    return jax.tree.leaves(got)


# -------------------------------------------------------------------------- of a rule in a jaxpr


def of_rule(eqn: Any, inputs: Any) -> Subject:
    """A custom rule that was found in a jaxpr, at the inputs that it gets there."""
    names = internals.input_names(eqn)
    differentiable = tuple(
        i
        for i, (name, leaf) in enumerate(zip(names, inputs, strict=True))
        if name and is_floating(leaf)
    )
    inputs, with_keys = without_keys(inputs)
    call, jaxpr = internals.call_function(eqn), internals.plain_jaxpr(eqn)

    def forward(*inputs: Any) -> list[Any]:
        return call(*with_keys(inputs))

    return Subject(
        name=internals.rule_name(eqn),
        paths=tuple(f"{internals.rule_name(eqn)}/{name}" for name in names),
        args=tuple(inputs),
        differentiable=differentiable,
        plain=lambda *inputs: Evaluate()(jaxpr, *with_keys(inputs)),
        forward=forward,
        backward=by_jax(forward, differentiable),
        source=internals.rule_source(eqn),
    )
