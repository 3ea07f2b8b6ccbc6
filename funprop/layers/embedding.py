"""Embeddings: rows of a table, looked up by number or by place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.decoding import Decoding, place
from funprop.drawing import normal
from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.quantities.closed_form import closed, sum_squares
from funprop.trees import Static, lifted, require_array, require_float, spec_string, widen
from funprop.values import known, to_int32, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Float, Int, Key

SMALL = normal(0.02)  # as GPT-2's; a pure function


class EmbeddingParams(NamedTuple):
    """The params of `embedding` and `learned_positions`.

    Attributes:
      table: a row for each number, or for each place, `[rows, features]`.
    """

    table: Any

    roles = {"table": "table"}


@told(FORMULAS["embedding"])
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

    Shapes: `x [*shape]` integers, `y [*shape, features]`; the table `[rows, features]`.

    Raises:
      ValueError: `rows` or `features` is not positive; or, at forward, a number is out of range, or
        the table has another shape.
      TypeError: at init or forward, `x` is not of integer dtype.

    Example:
      >>> words = embedding(3, 2)
      >>> params = EmbeddingParams(jnp.arange(6.0).reshape(3, 2))
      >>> y, kept = words.forward(params, jnp.array([2, 0, 2]))
      >>> y.tolist()
      [[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]
      >>> words.backward(params, kept, jnp.ones((3, 2)))[0].table.tolist()
      [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]
    """
    rows, features = whole_number(rows, "rows"), whole_number(features, "features")
    if rows < 1 or features < 1:
        raise ValueError(f"rows and features must be at least 1, got {rows} and {features}")

    def make(key: Key[Array, ""], x: Any) -> EmbeddingParams:
        _check_integers(x)
        return EmbeddingParams(init(key, (rows, features), dtype))

    def forward(
        params: EmbeddingParams, x: Int[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape f"], Int[Array, "*shape"]]:
        _check_integers(x)
        _check_range(x, rows)
        x, table = to_int32(x), params.table
        if table.shape != (rows, features):
            raise ValueError(
                f"params.table must have shape {(rows, features)}, got {tuple(table.shape)}"
            )
        return table.at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False), x

    def backward(
        params: EmbeddingParams, x: Int[Array, "*shape"], dy: Float[Array, "*shape f"]
    ) -> tuple[EmbeddingParams, None]:
        table = params.table
        summed = jnp.zeros(table.shape, widen(table).dtype)
        summed = summed.at[x].add(dy.astype(summed.dtype), mode="drop", wrap_negative_indices=False)
        return EmbeddingParams(summed.astype(table.dtype)), None

    def squares(
        params: EmbeddingParams, x: Int[Array, "b *t"], dy: Float[Array, "b *t f"]
    ) -> tuple[Float[Array, " b"], None]:
        ids, dy = looked_up(params, x, dy)
        # Equal numbers stand together once sorted: each run is one row of an example's gradient.
        order = jnp.argsort(ids, axis=-1)
        ids, dy = (jnp.take_along_axis(a, i, 1) for a, i in ((ids, order), (dy, order[..., None])))
        run = jnp.cumsum(jnp.diff(ids, axis=-1, prepend=ids[:, :1]) != 0, axis=-1)
        return sum_squares(jnp.zeros_like(dy).at[jnp.arange(len(x))[:, None], run].add(dy)), None

    def looked_up(
        params: EmbeddingParams, x: Int[Array, "b *t"], dy: Float[Array, "b *t f"]
    ) -> tuple[Int[Array, "b t"], Float[Array, "b t f"]]:
        places = math.prod(x.shape[1:])
        ids, dy = x.reshape(len(x), places), widen(dy).reshape(len(x), places, features)
        return ids, jnp.where(((ids >= 0) & (ids < rows))[..., None], dy, 0)

    def each(
        params: EmbeddingParams, x: Int[Array, "b *t"], dy: Float[Array, "b *t f"]
    ) -> tuple[EmbeddingParams, None]:
        ids, dy = looked_up(params, x, dy)
        tables = jnp.zeros((len(x), rows, features), dy.dtype)
        at = tables.at[jnp.arange(len(x))[:, None], ids]
        return EmbeddingParams(at.add(dy, mode="drop", wrap_negative_indices=False)), None

    marked = closed(backward, squares, looked_up=looked_up, each=each)
    return layer(init=make, forward=forward, backward=marked, name="embedding", pointwise=True)


@told(FORMULAS["learned_positions"])
def learned_positions(longest: int, *, init: Callable[..., Array] = SMALL) -> Layer:
    """`y = x + table[:time]`: a row of its own for every place in a sequence.

    Backward: the rows' cotangents are those of `y`, summed over the batch.

    Shapes: `x`, `y` `[*batch, time, features]`; the table `[longest, features]`.

    Source: the positions of GPT-2 (Radford et al. 2019).

    Raises:
      ValueError: `longest` is not positive; or, at init or forward, `x` has no time axis or a
        longer one.

    Example:
      >>> places = learned_positions(8)
      >>> params = EmbeddingParams(jnp.ones((8, 3)))
      >>> y, kept = places.forward(params, jnp.zeros((2, 5, 3)))
      >>> y.shape, places.backward(params, kept, y)[0].table.sum(-1).tolist()
      ((2, 5, 3), [6.0, 6.0, 6.0, 6.0, 6.0, 0.0, 0.0, 0.0])
    """
    longest = whole_number(longest, "longest", 1)

    def check(x: Any) -> None:
        require_float(x)
        if x.ndim < 2:
            raise ValueError(f"x must have axes of time and features, got shape {x.shape}")
        if x.shape[-2] > longest:
            raise ValueError(f"x must be at most {longest} long, got a time axis of {x.shape[-2]}")

    def make(key: Key[Array, ""], x: Any) -> EmbeddingParams:
        check(x)
        return EmbeddingParams(init(key, (longest, x.shape[-1]), x.dtype))

    def forward(
        params: EmbeddingParams, x: Float[Array, "*batch t f"]
    ) -> tuple[Float[Array, "*batch t f"], Static]:
        check(x)
        table = params.table
        if table.shape[1:] != x.shape[-1:]:
            raise ValueError(
                f"x must have a last axis of {table.shape[-1]} to go with a table of shape "
                f"{tuple(table.shape)}, got x of shape {tuple(x.shape)}"
            )
        return x + lifted(table[: x.shape[-2]], x), Static(x.dtype)

    def backward(
        params: EmbeddingParams, dtype: Static, dy: Float[Array, "*batch t f"]
    ) -> tuple[EmbeddingParams, Float[Array, "*batch t f"]]:
        table = params.table
        rows = widen(dy).sum(tuple(range(dy.ndim - 2)))
        dtable = jnp.zeros_like(table).at[: dy.shape[-2]].set(rows.astype(table.dtype))
        return EmbeddingParams(dtable), dy.astype(dtype.value)

    def each(
        params: EmbeddingParams, dtype: Static, dy: Float[Array, "b *s t f"]
    ) -> tuple[EmbeddingParams, Float[Array, "b *s t f"]]:
        rows = widen(dy).sum(tuple(range(1, dy.ndim - 2)))
        more = params.table.shape[0] - rows.shape[1]
        return EmbeddingParams(jnp.pad(rows, ((0, 0), (0, more), (0, 0)))), dy.astype(dtype.value)

    def squares(
        params: EmbeddingParams, dtype: Static, dy: Float[Array, "b *s t f"]
    ) -> tuple[Float[Array, " b"], Float[Array, "b *s t f"]]:
        return sum_squares(widen(dy).sum(tuple(range(1, dy.ndim - 2)))), dy.astype(dtype.value)

    def prefill(
        params: EmbeddingParams, x: Float[Array, "b t f"], length: int
    ) -> tuple[Float[Array, "b t f"], Any]:
        if length > longest:
            raise ValueError(
                f"the model has {longest} positions, prompt and length together are {length}"
            )
        return forward(params, x)[0], place(x.shape[1])

    def advance(
        params: EmbeddingParams, now: Any, x: Float[Array, "b 1 f"]
    ) -> tuple[Float[Array, "b 1 f"], Any]:
        return x + lifted(jax.lax.dynamic_slice_in_dim(params.table, now, 1), x), now + 1

    return layer(
        init=make,
        forward=forward,
        backward=closed(backward, squares, each=each),
        name="learned_positions",
        decoding=Decoding(prefill, advance),
    )


def _check_integers(x: Any) -> None:
    require_array(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"x must be of integer dtype, got {spec_string(x)}")


def _check_range(x: Any, rows: int) -> None:
    values = known(x)
    if values is None:
        return
    wrong = values[(values < 0) | (values >= rows)]
    if wrong.size:
        raise ValueError(f"x must be from 0 to {rows - 1}, got {wrong[0]}")
