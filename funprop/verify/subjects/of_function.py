"""A function, `jax.vjp` of it the backward pass to be judged; and a hand-written gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import jax

from funprop import trees
from funprop.checks import check_function
from funprop.verify.subject import (
    MismatchError,
    Subject,
    arrays,
    by_jax,
    first_line,
    is_floating,
    suffix,
    without_keys,
)
from funprop.verify.truth.evaluate import Evaluate


def of_function(
    function: Callable[..., Any], args: Any, reference: Any = None, intended: Any = None
) -> Subject:
    """A differentiable function, `jax.vjp` of it the backward pass to be judged.

    Args:
      function: and `args`, its arguments.
      reference: another one that computes the same, whose derivative is the truth.
      intended: one that computes something else, and whose derivative is meant.
    """
    # What a rule's function says not to be differentiated may be a shape, or a word.
    given = {i: args[i] for i in getattr(function, "nondiff_argnums", ()) if i < len(args)}
    leaves, structure, paths = _named_leaves(function, args, given)
    leaves, with_keys = without_keys(leaves)
    differentiable = tuple(i for i, leaf in enumerate(leaves) if is_floating(leaf))

    def flat(function: Any) -> Callable[..., list[Any]]:
        def called(*inputs: Any) -> list[Any]:
            rest = iter(structure.unflatten(with_keys(inputs)))
            filled = [given[i] if i in given else next(rest) for i in range(len(args))]
            return jax.tree.leaves(function(*filled))

        return called

    forward = flat(function)
    truth = intended or reference
    if intended is not None:
        check_intended(flat(intended), forward, leaves)

    return Subject(
        name=getattr(function, "__name__", type(function).__name__),
        paths=paths,
        args=tuple(leaves),
        differentiable=differentiable,
        plain=flat(truth) if truth else forward,
        forward=forward,
        backward=by_jax(forward, differentiable),
        data=tuple(range(len(leaves))),
        outputs=plainly(forward, leaves) if intended is not None else None,
    )


def plainly(function: Callable[..., Any], leaves: Any) -> Callable[..., Any]:
    """What a function computes, custom rules taken away: traced once, at these inputs."""
    jaxpr = jax.make_jaxpr(function)(*leaves)
    return lambda *inputs: Evaluate()(jaxpr, *inputs)


def check_intended(intended: Any, forward: Any, leaves: Any) -> None:
    """Raise where the intended function does not take these inputs, or gives other shapes."""
    try:
        got, want = (jax.eval_shape(f, *leaves) for f in (intended, forward))
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"intended does not take the function's arguments: {reason}") from None
    got, want = (", ".join(map(trees.spec_string, ys)) for ys in (got, want))
    if got != want:
        raise ValueError(f"intended must give {want}, as the function does, got {got}")


def _named_leaves(
    function: Any, args: Any, but: Collection[int] = ()
) -> tuple[list[Any], Any, tuple[str, ...]]:
    """The leaves of all arguments `but` for some, and `params/w` for each."""
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
    moving = [
        (name, arg) for i, (name, arg) in enumerate(zip(names, args, strict=True)) if i not in but
    ]
    for name, arg in moving:
        leaves += arrays(arg, name)[0]
        paths += [
            f"{name}{suffix(path)}" for path, _ in jax.tree_util.tree_flatten_with_path(arg)[0]
        ]
    return leaves, jax.tree.structure(tuple(arg for _, arg in moving)), tuple(paths)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


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
