"""What joins the branches of `parallel` again: layers from a tuple of arrays to one array."""

from __future__ import annotations

import functools
import operator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.trees import Static, spec_string
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float


@told(FORMULAS["add"])
def add() -> Layer:
    """`y = x_1 + x_2 + ...` of arrays of one shape; each gets `dy`, in its own dtype.

    Raises:
      ValueError: at forward, the arrays differ in shape, or there are none.
      TypeError: `x` is no tuple of arrays.

    Example:
      >>> y, dtypes = add().forward((), (jnp.ones(2), jnp.ones(2)))
      >>> y.tolist(), [dx.tolist() for dx in add().backward((), dtypes, y)[1]]
      ([2.0, 2.0], [[2.0, 2.0], [2.0, 2.0]])
    """

    def forward(
        params: tuple[()], xs: tuple[Float[Array, "*shape"], ...]
    ) -> tuple[Float[Array, "*shape"], Static]:
        _check_branches(xs)
        if len({x.shape for x in xs}) != 1:
            raise ValueError(f"branches must have one shape, got {[x.shape for x in xs]}")
        return functools.reduce(operator.add, xs), Static(tuple(x.dtype for x in xs))

    def backward(
        params: tuple[()], dtypes: Static, dy: Float[Array, "*shape"] | None
    ) -> tuple[tuple[()], tuple[Float[Array, "*shape"] | None, ...]]:
        return (), tuple(_cotangent(dy, dtype) for dtype in dtypes.value)

    return layer(forward=forward, backward=backward, name="add", pointwise=True)


@told(FORMULAS["concatenate"])
def concatenate(axis: int = -1) -> Layer:
    """The arrays one after the other along `axis`; backward cuts the cotangent again, each part in
    the dtype of its array.

    Raises:
      ValueError: at forward, the arrays differ in another axis, have no such axis, or there are
        none.
      TypeError: `x` is no tuple of arrays.

    Example:
      >>> y, cuts = concatenate().forward((), (jnp.ones((2, 1)), jnp.ones((2, 3))))
      >>> y.shape, [dx.shape for dx in concatenate().backward((), cuts, y)[1]]
      ((2, 4), [(2, 1), (2, 3)])
    """
    axis = whole_number(axis, "axis")

    def forward(
        params: tuple[()], xs: tuple[Float[Array, "..."], ...]
    ) -> tuple[Float[Array, "..."], Static]:
        _check_branches(xs)
        if any(not -x.ndim <= axis < x.ndim for x in xs):
            raise ValueError(f"branches must have an axis {axis}, got {[x.shape for x in xs]}")
        if len({x.shape[: axis % x.ndim] + x.shape[axis % x.ndim + 1 :] for x in xs}) != 1:
            raise ValueError(
                f"branches must have one shape but for axis {axis}, got {[x.shape for x in xs]}"
            )
        cuts = tuple(accumulate(x.shape[axis] for x in xs))
        return jnp.concatenate(xs, axis), Static((cuts[:-1], tuple(x.dtype for x in xs)))

    def backward(
        params: tuple[()], kept: Static, dy: Float[Array, "..."] | None
    ) -> tuple[tuple[()], tuple[Float[Array, "..."] | None, ...]]:
        cuts, dtypes = kept.value
        if dy is None:
            return (), (None,) * len(dtypes)
        parts = zip(jnp.split(dy, cuts, axis), dtypes, strict=True)
        return (), tuple(_cotangent(d, dtype) for d, dtype in parts)

    return layer(forward=forward, backward=backward, name="concatenate", pointwise=axis == -1)


def _check_branches(xs: Any) -> None:
    if not isinstance(xs, tuple):
        got = spec_string(xs) if hasattr(xs, "dtype") else type(xs).__name__
        raise TypeError(f"x must be a tuple of arrays, one a branch, got {got}")
    if not xs:
        raise ValueError("x must have at least one branch, got an empty tuple")
    for x in xs:
        if not hasattr(x, "dtype"):
            got = type(x).__name__
            raise TypeError(f"x must be a tuple of arrays, one a branch, got {got} among them")


def _cotangent(dy: Float[Array, "..."] | None, dtype: Any) -> Float[Array, "..."] | None:
    """`dy` in the dtype of what it belongs to; `None` for integers."""
    if dy is None or not jnp.issubdtype(dtype, jnp.inexact):
        return None
    return dy.astype(dtype)
