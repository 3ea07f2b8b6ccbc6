"""Training under quantisation: forward with few bits, backward straight through the rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.checks import described
from funprop.decoding import through
from funprop.formula import Formula, with_other
from funprop.layer import Layer, leaf_of
from funprop.params.frozen import trained
from funprop.params.selection import Pattern
from funprop.quantities.closed_form import by_each, closed, closed_of
from funprop.residuals import with_own, without_own
from funprop.rewrites.own_weights import map_own, weights, with_weights
from funprop.trees import is_float

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, PyTree

    X = Float[Array, "*shape"]
    Axes = tuple[int, ...]


class Format(NamedTuple):
    """A number format with a scale.

    Attributes:
      size: from the sizes `|x|` along some axes to the scale.
      nearest: from `x` divided by the scale to the nearest number that there is.
      clipped: whether the gradient passes where `|x| <= 1` alone.
    """

    size: Callable[[X, Axes], X]
    nearest: Callable[[X], X]
    clipped: bool


def _mean(size: X, axes: Axes) -> X:
    return size.mean(axes, keepdims=True)


def _most(size: X, axes: Axes) -> X:
    return size.max(axes, keepdims=True, initial=0)


def _to_fp8(u: X) -> X:
    """As `u.astype(float8_e4m3fn)`, of `|u|` up to 448; without a cast, which is none in the run in
    float64 by which `verify` judges."""
    few_digits = jax.lax.reduce_precision(u, exponent_bits=8, mantissa_bits=3)
    return jnp.where(jnp.abs(u) < 2**-6, jnp.round(u * 512) / 512, few_digits)


FORMATS = {
    "binary": Format(_mean, lambda u: jnp.where(u < 0, -1, 1).astype(u.dtype), True),
    "ternary": Format(_mean, lambda u: jnp.clip(jnp.round(u), -1, 1), True),
    "int8": Format(lambda size, axes: _most(size, axes) / 127, jnp.round, False),
    "fp8": Format(lambda size, axes: _most(size, axes) / 448, _to_fp8, False),  # e4m3
}


def quantised(
    model: Layer, to: str, where: Pattern | None = None, *, inputs: str | None = None
) -> Layer:
    """The same model, its weights rounded to few bits in every pass, for training under it.

    The params stay as they are, in full precision, and are what is trained. Forward uses
    `q(w) = s * nearest(w / s)`, with a scale `s` for each output, the last axis of `w`:

    - `"binary"`: `-s` and `s`, `s` the mean of `|w|` (Rastegari et al., arXiv:1603.05279);
    - `"ternary"`: `-s`, 0 and `s`, `s` the mean of `|w|` (Ma et al., arXiv:2402.17764);
    - `"int8"`: the multiples of `s` from `-127 s` to `127 s`, `s` the largest `|w| / 127`;
    - `"fp8"`: `s` times the numbers of float8_e4m3, `s` the largest `|w| / 448`.

    The derivative of rounding is zero almost everywhere. Backward takes one in its place, the
    straight-through estimator (Bengio et al., arXiv:1308.3432): `dw` is what it would be for
    `q(w)`, of binary and ternary ones zero where `|w| > 1` (clipped: Hubara et al.,
    arXiv:1602.02830).

    Args:
      model: any layer, a whole objective too. Layers with params of the role `weight` are
        quantised, recurrent ones too; tables, scales and biases stay, as do weights that are made
        of others (`reparam`).
      to: one of these formats.
      where: a pattern for parts (see `fp.where`); without one, every layer.
      inputs: a format for the inputs of these layers too, with a scale for each row of features.

    Returns:
      A model with the same params. It is *intended* to have another gradient: `verify` judges it
      by that of the layer where rounding has the slope that is said above.

    Raises:
      ValueError: there is no such format; no path matches, or one of shared params.
      TypeError: `model` is no layer, or a format no string.

    Example:
      >>> import funprop as fp
      >>> layer = quantised(fp.dense(2, bias=False), "ternary")
      >>> params = fp.DenseParams(jnp.array([[1.0, 0.1], [-0.5, -3.0], [0.0, 0.2]]), None)
      >>> y, kept = layer.forward(params, jnp.eye(3))
      >>> y.tolist()
      [[0.5, 0.0], [-0.5, -1.100000023841858], [0.0, 0.0]]
      >>> layer.backward(params, kept, jnp.ones((3, 2)))[0].w.tolist()
      [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    chosen = _format("to", to)
    of_inputs = None if inputs is None else _format("inputs", inputs)
    return map_own(lambda leaf: _one(leaf, chosen, of_inputs), model, where)


def _format(name: str, given: Any) -> Format:
    if not isinstance(given, str):
        raise TypeError(f"{name} must be one of {', '.join(FORMATS)}, got {described(given)}")
    if given not in FORMATS:
        raise ValueError(f"{name} must be one of {', '.join(FORMATS)}, got {described(given)}")
    return FORMATS[given]


def _one(leaf: Layer, to: Format, inputs: Format | None) -> Layer:
    def rounded(params: Any) -> Any:
        return with_weights(lambda w, _: _rounded(w, to, _but_last(w)), weights(params), params)

    def near(params: Any, x: PyTree, how: Callable[..., X] = _rounded) -> PyTree:
        if inputs is None or not asked(params):
            return x
        new = _of_inputs(lambda x: how(x, inputs, (-1,)), x)
        return jax.tree.map(lambda n, x: x if n is None else n, new, x, is_leaf=_is_none)

    def asked(params: Any) -> bool:
        return bool(jax.tree.leaves(weights(params)))

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        y, kept = leaf.forward(rounded(params), near(params, x), key)
        clipped = inputs is not None and inputs.clipped and asked(params)
        return y, with_own(leaf, kept, _of_inputs(_within, x) if clipped else None)

    def backward(params: Any, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return passed(leaf.backward, params, residuals, dy)

    def passed(back: Callable[..., Any], params: Any, residuals: PyTree, dy: PyTree) -> Any:
        """What `back` gives, for the gradient of the batch or for each example's."""
        residuals, masks = without_own(leaf, residuals)
        dparams, dx = back(rounded(params), residuals, dy)
        if to.clipped:
            own = weights(trained(params))
            dparams = with_weights(lambda w, d: jnp.where(_within(w), d, 0), own, dparams)
        if masks is not None:
            dx = with_weights(lambda mask, d: jnp.where(mask, d, 0), masks, dx)
        return dparams, dx

    if (known := closed_of(leaf)) is not None and known.each is not None:
        each, squares = (functools.partial(passed, of) for of in (known.each, known.squares))
        backward = by_each(backward, each) if to.clipped else closed(backward, squares, each=each)

    def intended(params: Any, x: PyTree, key: Any = None) -> PyTree:
        """The layer of what is rounded as forward does it, its slope as said."""
        own = weights(params)
        params = with_weights(lambda w, _: _sloped(w, to, _but_last(w)), own, params)
        return leaf.forward(params, near(params, x, _sloped), key)[0]

    return leaf_of(
        leaf,
        forward=forward,
        backward=backward,
        intended=intended,
        formula=_formula(leaf, inputs),
        decoding=_decoding(leaf, rounded, near),
    )


def _formula(leaf: Layer, inputs: Format | None) -> Formula | None:
    formula = with_other(leaf.formula, "w", "q(w)", "q(w)")
    return with_other(formula, "x", "q(x)", "q(x)") if inputs is not None else formula


def _decoding(leaf: Layer, rounded: Any, near: Any) -> Any:
    inner = through(leaf)

    def prefill(params: Any, x: PyTree, length: int) -> tuple[PyTree, PyTree]:
        return inner.prefill(rounded(params), near(params, x), length)

    def advance(params: Any, cache: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        return inner.advance(rounded(params), cache, near(params, x))

    return inner._replace(prefill=prefill, advance=advance)


def _but_last(w: X) -> Axes:
    return tuple(range(w.ndim - 1))


def _of_inputs(function: Callable[[X], Any], x: PyTree) -> PyTree:
    """`function` of what of `x` has features, and `None` in the place of the rest."""
    return jax.tree.map(lambda leaf: function(leaf) if is_float(leaf) and leaf.ndim else None, x)


def _is_none(node: Any) -> bool:
    return node is None


def _rounded(x: X, to: Format, axes: Axes) -> X:
    s = to.size(jnp.abs(x), axes)
    return s * to.nearest(x / jnp.where(s == 0, 1, s))  # where all are zero, they stay so


def _within(x: X) -> Bool[Array, "*shape"]:
    return jnp.abs(x) <= 1


def _sloped(x: X, to: Format, axes: Axes) -> X:
    """As `_rounded`, with the slope that is meant."""
    still = jax.lax.stop_gradient
    moves = jnp.where(_within(x), x - still(x), 0) if to.clipped else x - still(x)
    return still(_rounded(x, to, axes)) + moves
