"""What is to be judged, in one form: a forward pass, and a backward pass that claims to be its own.

A layer, a function with a custom rule, a hand-written gradient of a loss and a rule found in a
jaxpr all come to the same: flat lists of arrays in, flat lists of cotangents out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.verify.truth.errors import in_short


class MismatchError(Exception):
    """The cotangents are not of the structure, shape or dtype of what they belong to."""

    def __init__(self, path: str, sentence: str):
        super().__init__(sentence)
        self.path, self.sentence = path, sentence


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A backward pass and the forward pass that it should belong to.

    Attributes:
      name: which part; empty for a target that is one part.
      paths: what each input is called.
      args: the inputs, flat.
      differentiable: which inputs have a cotangent.
      plain: `inputs -> outputs`: the forward pass, whose derivative is the truth.
      forward: `inputs -> outputs` as the rule itself computes them, where that may differ.
      outputs: `inputs -> outputs` that the rule must give, where `plain` is another function whose
        derivative is meant.
      backward: `(inputs, cotangents of the float outputs) -> cotangents` of the differentiable
        inputs; `by_jax` of `forward`, where there is one. Raises `MismatchError`.
      remade: `(specs of args) -> args`, for what has an `init`: new inputs of other shapes; `None`
        where every input can be drawn freely.
      data: the inputs whose shapes may change; of a layer with params, those of `x`.
      free_cotangent: whether the backward pass takes any cotangent; a gradient of a loss does not.
    """

    name: str
    paths: tuple[str, ...]
    args: tuple[Any, ...]
    differentiable: tuple[int, ...]
    plain: Callable[..., Any]
    backward: Callable[..., Any]
    forward: Callable[..., Any] | None = None
    remade: Callable[..., Any] | None = None
    data: tuple[int, ...] = ()
    free_cotangent: bool = True
    source: str = ""
    outputs: Callable[..., Any] | None = None

    def leaf(self, i: int) -> str:
        """The path of the `i`-th differentiable input, with the part's."""
        return self.paths[self.differentiable[i]]

    def called(self, i: int) -> str:
        """What the `i`-th input is called in a sentence."""
        path = self.paths[i]
        return "an array that it closes over" if path.endswith("/") else path or "an input"

    def pulled(self, inputs: Any, dys: Any) -> tuple[list[Any], list[Any]]:
        """The cotangents, and the float outputs that the rule gives while it is differentiated:
        none where the forward pass is the plain one."""
        if self.forward is None:
            return self.backward(inputs, dys), []
        return _pulled(self.forward, self.differentiable, inputs, dys)


def is_floating(leaf: Any) -> bool:
    """Whether the leaf has a real floating dtype."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def floats(leaves: Any) -> list[Any]:
    """The leaves of floating dtype."""
    return [leaf for leaf in leaves if is_floating(leaf)]


def arrays(tree: Any, what: str) -> tuple[list[Any], Any]:
    """The leaves of `tree` as arrays, refusing what cannot be one."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = []
    for path, leaf in paths:
        try:
            leaf = (
                leaf if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) else jnp.asarray(leaf)
            )
        except TypeError:
            raise TypeError(
                f"{what}{suffix(path)} must be an array, got {type(leaf).__name__}"
            ) from None
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"{what}{suffix(path)} must be real, got {trees.spec_string(leaf)}")
        leaves.append(leaf)
    return leaves, structure


def without_keys(leaves: Any) -> tuple[list[Any], Callable[..., list[Any]]]:
    """The leaves with the bits of random keys in their place, and what makes keys of them again."""
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    impls = [jax.random.key_impl(v) if k else None for v, k in zip(leaves, is_key, strict=True)]
    raw = [jax.random.key_data(v) if k else v for v, k in zip(leaves, is_key, strict=True)]

    def with_keys(inputs: Any) -> list[Any]:
        return [
            jax.random.wrap_key_data(v, impl=impl) if impl is not None else v
            for v, impl in zip(inputs, impls, strict=True)
        ]

    return raw, with_keys


def suffix(path: tuple[Any, ...]) -> str:
    """A path below a name: empty, or with a slash in front."""
    return f"/{trees.path_string(path)}" if path else ""


def by_jax(forward: Callable[..., Any], differentiable: tuple[int, ...]) -> Callable[..., Any]:
    """The backward pass that JAX takes of `forward`, custom rules in force."""

    def backward(inputs: Any, dys: Any) -> list[Any]:
        return _pulled(forward, differentiable, inputs, dys)[0]

    return backward


def _pulled(
    forward: Callable[..., Any], differentiable: tuple[int, ...], inputs: Any, dys: Any
) -> tuple[list[Any], list[Any]]:
    function = of_floats(forward, inputs, differentiable)
    ys, pullback = jax.vjp(function, *(inputs[i] for i in differentiable))
    return list(pullback(list(dys))), ys


def of_floats(
    function: Callable[..., Any], inputs: Any, differentiable: tuple[int, ...]
) -> Callable[..., list[Any]]:
    """`function` of its differentiable inputs alone, the others given; its float outputs."""

    def restricted(*given: Any) -> list[Any]:
        filled = list(inputs)
        for i, value in zip(differentiable, given, strict=True):
            filled[i] = value
        return floats(function(*filled))

    return restricted


def first_line(error: Exception) -> str:
    """What an exception says, in one line; of Python code that XLA calls, what that code raised."""
    lines = in_short(str(error)).strip().splitlines() or [type(error).__name__]
    if "Traceback (most recent call last)" in lines[0]:
        lines = [line for line in lines if re.match(r"[\w.]+: ", line)][-1:] or lines
    return lines[0][:200]


def has_no_rule(error: AttributeError) -> bool:
    """Whether JAX says so of a function that was to have one."""
    return str(error) != in_short(str(error))


def refused(error: Exception, name: str) -> Exception:
    """The exception for arguments that a function does not take."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{name} does not take these arguments: {first_line(error)}")
