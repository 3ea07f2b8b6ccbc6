"""Blocks whose input is found again from their output, so that depth costs no memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.combinators import check_same
from funprop.decoding import Decoding, decoding_of, of_repeat
from funprop.drawing import copies as copies_of
from funprop.formula import Formula
from funprop.keys import split_key, stacked_keys
from funprop.layer import Layer, output_spec, recorded
from funprop.located import located
from funprop.looping import looping
from funprop.names import params_of
from funprop.params.updating import is_updating, scan_in_place
from funprop.trees import require_float, wide_dtype
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

    X = Float[Array, "*batch 2h"]
    Half = Float[Array, "*batch h"]
    Pair = tuple[Half, Half]

FORMULA = Formula(  # with u, v and p, q for the halves, F and G for the two layers
    "(u, v) = x; p = u + F(v); q = v + G(p); y = (p, q)",
    "v = q - G(p); u = p - F(v); du = dp + G'(p)^T dq; dv = dq + F'(v)^T du; dx = (du, dv)",
    r"(u, v) = x;\quad p = u + F(v);\quad q = v + G(p);\quad y = (p, q)",
    r"v = q - G(p);\quad u = p - F(v);\quad du = dp + G'(p)^\top dq;\quad "
    r"dv = dq + F'(v)^\top du;\quad dx = (du, dv)",
)


def reversible(f: Layer, g: Layer, copies: int | None = None) -> Layer:
    """`y1 = x1 + f(x2)` and `y2 = x2 + g(y1)`, of the two halves of the features of `x`.

    What went in is found from what came out, `x2 = y2 - g(y1)` and `x1 = y1 - f(x2)`. So backward
    needs the output alone, of the last copy: memory does not grow with `copies`. It runs `f` and
    `g` forward once more, as `remat` does. (Under `repeat` each copy keeps its own output.)

    The two sums, forward and backward, are in float32 at least, whatever the dtype of `x`: there
    `x` is found again up to rounding, which grows with depth as that of the forward pass does.

    Args:
      f, g: any layers that give the shape and dtype that they take; they may draw random numbers,
        which are drawn again, and mix the examples of a batch.
      copies: how many blocks, each with params of its own, one after the other under `lax.scan`;
        one, whose params are not stacked, if not given.

    Shapes: `x [*batch, 2 h]`, `y` the same; `f` and `g` see `[*batch, h]`.
    Params: by name, those of `f` and of `g`; of copies, each leaf with a leading axis.
    Residuals: what `f` and `g` recorded, the output, and the key.
    Source: Gomez et al., arXiv:1707.04585 (RevNet).

    Raises:
      ValueError: `copies` is not positive; or, at init or forward, `x` has an odd number of
        features, or `f` or `g` gives another shape or dtype than it takes.
      TypeError: `f` or `g` is no layer, or `x` not of floating dtype.

    Example:
      >>> import funprop as fp
      >>> deep = reversible(fp.serial(fp.dense(3), fp.tanh()), fp.dense(3), copies=12)
      >>> params = deep.init(jax.random.key(0), jnp.zeros((5, 6)))
      >>> y, residuals = deep.forward(params, jnp.ones((5, 6)))
      >>> [leaf.shape for leaf in jax.tree.leaves(residuals)]  # twelve blocks, one output
      [(5, 6)]
      >>> dparams, dx = deep.backward(params, residuals, y)
      >>> dparams.serial.dense.w.shape, dx.shape
      ((12, 3, 3), (5, 6))
    """
    n = None if copies is None else whole_number(copies, "copies", 1)
    f_part, g_part = parts = located((f, g))

    def init_one(key: Any, x: Any) -> PyTree:
        half = jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
        params = [p.init(k, half) for p, k in zip(parts, split_key(key, 2), strict=True)]
        for part, own in zip(parts, params, strict=True):
            check_same(part, half, output_spec(part, own, half))
        return params_of((f, g), params)

    def init(key: Any, x: Any) -> PyTree:
        _check(x)
        if n is None:
            return init_one(key, x)
        return copies_of(init_one, n)(key, x)

    def added(part: Layer, own: Any, to: Half, given: Half, key: Any, dtype: Any) -> Any:
        """What `part` makes of `given`, to be added to the other half; and its residuals."""
        y, kept = part.forward(own, given.astype(dtype), key)
        check_same(part, jax.ShapeDtypeStruct(to.shape, dtype), y)
        return y.astype(to.dtype), kept

    def couple(params: Any, x: Pair, key: Any, dtype: Any) -> tuple[Pair, Any]:
        (x1, x2), (own_f, own_g), (key_f, key_g) = x, node.split(params), split_key(key, 2)
        more, kept_f = added(f_part, own_f, x1, x2, key_f, dtype)
        y1 = x1 + more
        more, kept_g = added(g_part, own_g, x2, y1, key_g, dtype)
        return (y1, x2 + more), (recorded(kept_f), recorded(kept_g))

    def uncouple(params: Any, y: Pair, dy: Pair, key: Any, dtype: Any) -> tuple[Pair, Pair, Any]:
        """`(x, dx, dparams)`: each half again, and the pullback beside it."""
        (y1, y2), (own_f, own_g), (key_f, key_g) = y, node.split(params), split_key(key, 2)
        dy1, dy2 = dy
        more, kept = added(g_part, own_g, y2, y1, key_g, dtype)
        x2 = y2 - more
        dparams_g, back = g_part.backward(own_g, kept, dy2.astype(dtype))
        dx1 = dy1 + back.astype(dy1.dtype)
        more, kept = added(f_part, own_f, y1, x2, key_f, dtype)
        x1 = y1 - more
        dparams_f, back = f_part.backward(own_f, kept, dx1.astype(dtype))
        dx2 = dy2 + back.astype(dy2.dtype)
        return (x1, x2), (dx1, dx2), node.join(params, (dparams_f, dparams_g))

    def forward(params: Any, x: X, key: Any = None) -> tuple[X, tuple[Any, ...]]:
        _check(x)
        halves = _halves(x.astype(wide_dtype(x.dtype)))
        if n is None:
            y, records = couple(params, halves, key, x.dtype)
        else:
            for leaf in jax.tree.leaves(params):
                if leaf.shape[:1] != (n,):
                    raise ValueError(f"params must have a leading axis of {n}, got {leaf.shape}")
            keys = stacked_keys(key, n)

            def copy(halves: Pair, given: Any) -> tuple[Pair, Any]:
                return couple(given[0], halves, given[1], x.dtype)

            y, records = jax.lax.scan(copy, halves, (params, keys), length=n)
        wide = jnp.concatenate(y, -1)
        return wide.astype(x.dtype), (*records, wide, key)

    def backward(params: Any, residuals: Any, dy: X) -> tuple[Any, X]:
        *_, y, key = residuals
        dtype = dy.dtype
        # Without the barrier XLA merges a second pass with the first, and keeps everything.
        params, y, dy = jax.lax.optimization_barrier((params, y, dy))
        both = _halves(y), _halves(dy.astype(y.dtype))

        def one(both: tuple[Pair, Pair], copy: Any) -> tuple[tuple[Pair, Pair], Any]:
            x, dx, dparams = uncouple(copy[0], *both, copy[1], dtype)
            return (x, dx), dparams

        keys = None if n is None else stacked_keys(key, n)
        if n is None:
            (_, dx), dparams = one(both, (params, key))
        elif is_updating(params):
            (_, dx), dparams = scan_in_place(one, both, params, keys)
        else:
            (_, dx), dparams = jax.lax.scan(one, both, (params, keys), length=n, reverse=True)
        return dparams, jnp.concatenate(dx, -1).astype(dtype)

    def rebuild(f: Layer, g: Layer, copies: int | None = n) -> Layer:
        return reversible(f, g, copies)

    made = {"decoding": _decoding(f_part, g_part, lambda params: node.split(params))}
    if n is not None:
        forward, backward = looping()(forward), looping()(backward)
        made = {"copies": n, "decoding": of_repeat(reversible(f, g), n)}
    node = Layer(init, forward, backward, "reversible", (f, g), rebuild, formula=FORMULA, **made)
    return node


def _halves(x: X) -> Pair:
    first, second = jnp.split(x, 2, -1)
    return first, second


def _check(x: Any) -> None:
    require_float(x)
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(f"x must have an even number of features, got shape {tuple(x.shape)}")


def _decoding(f: Layer, g: Layer, split: Any) -> Decoding:
    """One place after the other: `f` and `g` each with a cache."""
    of_f, of_g = decoding_of(f), decoding_of(g)

    def prefill(params: Any, x: X, length: int) -> tuple[X, Any]:
        (x1, x2), (own_f, own_g) = _halves(x), split(params)
        more, cache_f = of_f.prefill(own_f, x2, length)
        y1 = x1 + more
        more, cache_g = of_g.prefill(own_g, y1, length)
        return jnp.concatenate([y1, x2 + more], -1), (cache_f, cache_g)

    def advance(params: Any, cache: Any, x: X) -> tuple[X, Any]:
        (x1, x2), (own_f, own_g) = _halves(x), split(params)
        more, cache_f = of_f.advance(own_f, cache[0], x2)
        y1 = x1 + more
        more, cache_g = of_g.advance(own_g, cache[1], y1)
        return jnp.concatenate([y1, x2 + more], -1), (cache_f, cache_g)

    return Decoding(prefill, advance)
