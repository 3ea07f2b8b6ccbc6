"""Errors that say where in a model they were met."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop import trees
from funprop.decoding import Decoding, decoding_of
from funprop.layer import Layer, check_layer
from funprop.names import distinct_names, label

if TYPE_CHECKING:
    from funprop.typing import PyTree


def located(children: tuple[Layer, ...], *, flat: bool = False) -> tuple[Layer, ...]:
    """The children with their place told: in error messages and in the compiled program's names.

    A `ValueError` or `TypeError` from inside a child comes out with the child's path in front, so
    that a shape that does not fit is found in a model of any depth, in anybody's own layer too. A
    child that has its parent's path (see `below`) stays as it is.
    """
    for child in children:
        check_layer("layer", child)
    flat = flat or len(children) == 1

    def with_names(child: Layer, name: str) -> Layer:
        return dataclasses.replace(
            child,
            init=_located(name, child.init),
            forward=_located(name, child.forward),
            backward=_located(name, child.backward),
            decoding=Decoding(*(_located(name, run) for run in decoding_of(child)[:2])),
        )

    return tuple(
        child if (flat and not i) or not label(child) else with_names(child, name)
        for i, (child, name) in enumerate(zip(children, distinct_names(children), strict=True))
    )


def _located(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def with_place(*args: Any) -> Any:
        try:
            with jax.named_scope(name):
                return function(*args)
        except (ValueError, TypeError) as error:
            if type(error) not in (ValueError, TypeError):  # JAX's own, with more to tell
                raise
            path, reason = getattr(error, "place", ("", str(error)))
            path = f"{name}/{path}" if path else name
            moved = type(error)(f"{path}: {reason}")
            setattr(moved, "place", (path, reason))  # noqa: B010  # exceptions declare no fields
            raise moved.with_traceback(error.__traceback__) from None

    return with_place


def check_params(layer: Layer, params: PyTree, x: PyTree) -> None:
    """Raise where `params` are not what `layer.init` gives for an input like `x`.

    Works on shapes alone, inside `jit` too.

    Raises:
      ValueError: names the first leaf of `params` that differs, and what was expected there.
    """
    expected = jax.eval_shape(layer.init, jax.random.key(0), x)
    wanted, given = (dict(jax.tree_util.tree_flatten_with_path(t)[0]) for t in (expected, params))
    for path in list(wanted) + [path for path in given if path not in wanted]:
        want, got = wanted.get(path), given.get(path)
        where = trees.path_string(path) or layer.name
        if want is None or got is None or want.shape != getattr(got, "shape", None):
            raise ValueError(
                f"params do not belong to this model: at {where} expected "
                f"{'nothing' if want is None else trees.spec_string(want)}, got "
                f"{'nothing' if got is None else trees.spec_string(got)}"
            )
