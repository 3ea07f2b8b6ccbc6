"""Embeddings: rows of a table, looked up by number or by place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn import initializers

from funprop.layer import Layer, layer
from funprop.per_example import closed, sum_squares
from funprop.trees import Static, lifted, require_float, spec_string, widen

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float, Int, Key

SMALL = initializers.normal(0.02)  # as GPT-2's; a pure function


def embedding(
    rows: int,
    features: int,
    *,
    init: Callable[..., Array] = SMALL,
    dtype: Any = jnp.float32,
) -> Layer:
    """`y = table[x]`: the row of each integer in `x`.

    Backward: `dtable[r] = sum over all places with x = r of dy`; an integer that occurs often gets
    the sum of its cotangents, in float32 at least.

    A number out of range raises where its value is known. Inside `jit`, where it is not, its row is
    NaN, so that it cannot pass unseen; to have it raise there too, check `(x >= 0) & (x < rows)` by
    `jax.experimental.checkify`.

    Args:
      rows: how many; the size of the vocabulary.
      features: how long each is.
      init: initialiser of the table.
      dtype: of the table, as integers have none to give.

    Shapes: `x [*shape]` integers, `y [*shape, features]`; params are the table,
    `[rows, features]`.

    Raises:
      ValueError: `rows` or `features` is not positive; or, at forward, a number is out of range.
      TypeError: at init or forward, `x` is not of integer dtype.

    Example:
      >>> words = embedding(3, 2)
      >>> y, kept = words.forward(jnp.arange(6.0).reshape(3, 2), jnp.array([2, 0, 2]))
      >>> y.tolist()
      [[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]
      >>> words.backward(jnp.zeros((3, 2)), kept, jnp.ones((3, 2)))[0].tolist()
      [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]
    """
    if rows < 1 or features < 1:
        raise ValueError(f"rows and features must be at least 1, got {rows} and {features}")

    def make(key: Key[Array, ""], x: Any) -> Float[Array, "r f"]:
        _check_integers(x)
        return init(key, (rows, features), dtype)

    def forward(
        table: Float[Array, "r f"], x: Int[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape f"], Int[Array, "*shape"]]:
        _check_integers(x)
        _check_range(x, rows)
        return table.at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False), x

    def backward(
        table: Float[Array, "r f"], x: Int[Array, "*shape"], dy: Float[Array, "*shape f"]
    ) -> tuple[Float[Array, "r f"], None]:
        summed = jnp.zeros(table.shape, widen(table).dtype)
        summed = summed.at[x].add(dy.astype(summed.dtype), mode="drop", wrap_negative_indices=False)
        return summed.astype(table.dtype), None

    def squares(
        table: Float[Array, "r f"], x: Int[Array, "b *t"], dy: Float[Array, "b *t f"]
    ) -> tuple[Float[Array, " b"], None]:
        ids, dy = looked_up(table, x, dy)
        # Equal numbers stand together once sorted: each run is one row of an example's gradient.
        order = jnp.argsort(ids, axis=-1)
        ids, dy = (jnp.take_along_axis(a, i, 1) for a, i in ((ids, order), (dy, order[..., None])))
        run = jnp.cumsum(jnp.diff(ids, axis=-1, prepend=ids[:, :1]) != 0, axis=-1)
        return sum_squares(jnp.zeros_like(dy).at[jnp.arange(len(x))[:, None], run].add(dy)), None

    def looked_up(
        table: Float[Array, "r f"], x: Int[Array, "b *t"], dy: Float[Array, "b *t f"]
    ) -> tuple[Int[Array, "b t"], Float[Array, "b t f"]]:
        ids, dy = x.reshape(len(x), -1), widen(dy).reshape(len(x), -1, features)
        return ids, jnp.where(((ids >= 0) & (ids < rows))[..., None], dy, 0)

    marked = closed(backward, squares, looked_up=looked_up)
    return layer(init=make, forward=forward, backward=marked, name="embedding")


def learned_positions(longest: int, *, init: Callable[..., Array] = SMALL) -> Layer:
    """`y = x + table[:time]`: a row of its own for every place in a sequence.

    Backward: the rows' cotangents are those of `y`, summed over the batch.

    Shapes: `x`, `y` `[*batch, time, features]`; params are the table, `[longest, features]`.

    Source: the positions of GPT-2 (Radford et al. 2019).

    Raises:
      ValueError: `longest` is not positive; or, at init or forward, `x` has no time axis or a
        longer one.

    Example:
      >>> places = learned_positions(8)
      >>> y, kept = places.forward(jnp.ones((8, 3)), jnp.zeros((2, 5, 3)))
      >>> y.shape, places.backward(jnp.ones((8, 3)), kept, y)[0].sum(-1).tolist()
      ((2, 5, 3), [6.0, 6.0, 6.0, 6.0, 6.0, 0.0, 0.0, 0.0])
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest}")

    def check(x: Any) -> None:
        require_float(x)
        if x.ndim < 2:
            raise ValueError(f"x must have axes of time and features, got shape {x.shape}")
        if x.shape[-2] > longest:
            raise ValueError(f"x must be at most {longest} long, got a time axis of {x.shape[-2]}")

    def make(key: Key[Array, ""], x: Any) -> Float[Array, "l f"]:
        check(x)
        return init(key, (longest, x.shape[-1]), x.dtype)

    def forward(
        table: Float[Array, "l f"], x: Float[Array, "*batch t f"]
    ) -> tuple[Float[Array, "*batch t f"], Static]:
        check(x)
        if table.shape[1:] != x.shape[-1:]:
            raise ValueError(
                f"x must have a last axis of {table.shape[-1]} to go with a table of shape "
                f"{tuple(table.shape)}, got x of shape {tuple(x.shape)}"
            )
        return x + lifted(table[: x.shape[-2]], x), Static(x.dtype)

    def backward(
        table: Float[Array, "l f"], dtype: Static, dy: Float[Array, "*batch t f"]
    ) -> tuple[Float[Array, "l f"], Float[Array, "*batch t f"]]:
        rows = widen(dy).sum(tuple(range(dy.ndim - 2)))
        dtable = jnp.zeros_like(table).at[: dy.shape[-2]].set(rows.astype(table.dtype))
        return dtable, dy.astype(dtype.value)

    def squares(
        table: Float[Array, "l f"], dtype: Static, dy: Float[Array, "b *s t f"]
    ) -> tuple[Float[Array, " b"], Float[Array, "b *s t f"]]:
        return sum_squares(widen(dy).sum(tuple(range(1, dy.ndim - 2)))), dy.astype(dtype.value)

    marked = closed(backward, squares)
    return layer(init=make, forward=forward, backward=marked, name="learned_positions")


def _check_integers(x: Any) -> None:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"x must be of integer dtype, got {spec_string(x)}")


def _check_range(x: Any, rows: int) -> None:
    if isinstance(x, Tracer):
        return
    known = np.asarray(x)
    wrong = known[(known < 0) | (known >= rows)]
    if wrong.size:
        raise ValueError(f"x must be from 0 to {rows - 1}, got {wrong[0]}")
