"""What joins the branches of `parallel` again: layers from a tuple of arrays to one array."""

from __future__ import annotations

import functools
import operator
from itertools import accumulate
from typing import TYPE_CHECKING

import jax.numpy as jnp

from funprop.layer import Layer, layer
from funprop.trees import Static

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def add() -> Layer:
    """`y = x_1 + x_2 + ...` of arrays of one shape.

    Raises:
      ValueError: at forward, the arrays differ in shape, or there are none.

    Example:
      >>> y, n = add().forward((), (jnp.ones(2), jnp.ones(2)))
      >>> y.tolist(), [dx.tolist() for dx in add().backward((), n, y)[1]]
      ([2.0, 2.0], [[2.0, 2.0], [2.0, 2.0]])
    """

    def forward(
        params: tuple[()], xs: tuple[Float[Array, "*shape"], ...]
    ) -> tuple[Float[Array, "*shape"], Static]:
        if len({x.shape for x in xs}) != 1:
            raise ValueError(f"branches must have one shape, got {[x.shape for x in xs]}")
        return functools.reduce(operator.add, xs), Static(len(xs))

    def backward(
        params: tuple[()], n: Static, dy: Float[Array, "*shape"]
    ) -> tuple[tuple[()], tuple[Float[Array, "*shape"], ...]]:
        return (), (dy,) * n.value

    return layer(forward=forward, backward=backward, name="add", pointwise=True)


def concatenate(axis: int = -1) -> Layer:
    """The arrays one after the other along `axis`; backward cuts the cotangent again.

    Raises:
      ValueError: at forward, the arrays differ in another axis, or there are none.

    Example:
      >>> y, cuts = concatenate().forward((), (jnp.ones((2, 1)), jnp.ones((2, 3))))
      >>> y.shape, [dx.shape for dx in concatenate().backward((), cuts, y)[1]]
      ((2, 4), [(2, 1), (2, 3)])
    """

    def forward(
        params: tuple[()], xs: tuple[Float[Array, "..."], ...]
    ) -> tuple[Float[Array, "..."], Static]:
        if len({x.shape[:axis] + x.shape[axis:][1:] for x in xs}) != 1:
            raise ValueError(
                f"branches must have one shape but for axis {axis}, got {[x.shape for x in xs]}"
            )
        return jnp.concatenate(xs, axis), Static(tuple(accumulate(x.shape[axis] for x in xs)))

    def backward(
        params: tuple[()], cuts: Static, dy: Float[Array, "..."]
    ) -> tuple[tuple[()], tuple[Float[Array, "..."], ...]]:
        return (), tuple(jnp.split(dy, cuts.value[:-1], axis))

    return layer(forward=forward, backward=backward, name="concatenate", pointwise=axis == -1)
