"""Convolution layers over any number of space axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.nn import initializers

from funprop.decoding import Decoding, refused
from funprop.drawing import he_normal
from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.conv_params import ConvParams, check_params, initial, places, pull_b
from funprop.layers.convolve import convolve, patches, pull_w, pull_w_each, pull_x, spread_out
from funprop.layers.formulas import FORMULAS
from funprop.layers.overlaps import moment_of_patches
from funprop.layers.windows import (
    Numbers,
    Pairs,
    Slide,
    check_input,
    extent,
    kernel_numbers,
    pad_pairs,
)
from funprop.quantities.closed_form import by_each
from funprop.quantities.outer import by_outer
from funprop.trees import lifted, widen
from funprop.values import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from funprop.typing import Array, Float, Key

    X = Float[Array, "batch *space i"]
    Y = Float[Array, "batch *out o"]


@told(FORMULAS["conv"])
def conv(
    features: int,
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[tuple[int, int]] = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    w_init: Callable[..., Array] = he_normal,
    b_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """`y = x * w + b`: at every place of the window, the dense layer of what is under it.

    Keeps `x`. `dx` is the convolution of `dy`, spread out by the stride, with the flipped kernel;
    `dw` that of `x` with `dy`. (A kernel of ones at stride one is `dense`, which is faster.)

    It runs token by token where it is causal: over one space axis, time, at stride 1, with all of
    its padding before, as in `conv(8, (3,), padding=[(2, 0)])`. The cache is what the window saw.

    Index legend: `i` inputs and `o` outputs (`features`) of all groups together.

    Args:
      features: how many outputs.
      kernel: the window; one number for every space axis of `x`, however many it has, or one a
        space axis: `(3,)` for sequences, `(3, 3)` for images.
      stride: from one window to the next; one number, or one a space axis.
      padding: "same" for `ceil(size / stride)` windows, "valid" for none, one number for every
        side, or a pair (before, after) for each space axis.
      dilation: from one place of the window to the next.
      groups: into which inputs and outputs are divided, each convolved alone; as many as there are
        channels make a depthwise convolution.
      bias: whether `b` is added.
      w_init: initialiser of `w`, as those of `jax.nn.initializers`.
      b_init: initialiser of `b`.

    Shapes: `x [batch, *space, i]`, `y [batch, *out, o]`, `w [*kernel, i / groups, o]`; params are
    made in the dtype of `x`.
    Source: LeCun et al., Proceedings of the IEEE 86 (1998).

    Raises:
      ValueError: a number is not positive or there is not one a space axis; padding is none of
        those; `groups` does not divide the channels; or, at init or forward, `x` has another rank,
        other channels than `w` wants, or less space than the window with its padding.
      TypeError: a number is no integer; `x` is not of floating dtype; params are not `ConvParams`.

    Example:
      >>> import jax
      >>> layer = conv(4, (3, 3), stride=2)
      >>> params = layer.init(jax.random.key(0), jnp.zeros((5, 8, 8, 1)))
      >>> y, x = layer.forward(params, jnp.ones((5, 8, 8, 1)))
      >>> dparams, dx = layer.backward(params, x, y)
      >>> y.shape, dparams.w.shape, dx.shape
      ((5, 4, 4, 4), (3, 3, 1, 4), (5, 8, 8, 1))
    """
    axes, numbers = kernel_numbers(kernel, stride, padding, dilation)
    groups, features = whole_number(groups, "groups"), whole_number(features, "features")
    if groups < 1 or features < 1 or features % groups:
        raise ValueError(f"features must be a positive multiple of groups {groups}, got {features}")

    def slide(sizes: Numbers) -> tuple[Slide, Numbers]:
        """How the window slides over space of these sizes, and how large it is."""
        window, strides, pad, dilations = numbers(len(sizes))
        pairs = pad_pairs(pad, sizes, extent(window, dilations), strides)
        return Slide(strides, pairs, dilations, groups), window

    def init(key: Key[Array, ""], x: Any) -> ConvParams:
        _, window = slide(check_input(x, axes))
        if x.shape[-1] < 1 or x.shape[-1] % groups:
            raise ValueError(
                f"x must have a positive multiple of groups {groups} for channels, "
                f"got {x.shape[-1]}"
            )
        w_shape = (*window, x.shape[-1] // groups, features)
        return initial(key, w_shape, x.dtype, bias, w_init, b_init)

    def forward(params: ConvParams, x: X) -> tuple[Y, X]:
        how, window = slide(check_input(x, axes))
        check_params(params, window, x.shape[-1], groups)
        y = convolve(x, params.w, how)
        return (y if params.b is None else y + lifted(params.b, y)), x

    def backward(params: ConvParams, x: X, dy: Y) -> tuple[ConvParams, X]:
        sizes = x.shape[1:-1]
        how, window = slide(sizes)
        dw = pull_w(x, dy, how, window).astype(params.w.dtype)
        dx = pull_x(params.w, dy, how, sizes).astype(x.dtype)
        return ConvParams(dw, pull_b(params.b, dy)), dx

    def taken(x: X, dy: Y) -> tuple[Float[Array, "b t i"], Float[Array, "b t o"]]:
        how, window = slide(x.shape[1:-1])
        return patches(x.astype(dy.dtype), window, how), places(dy)

    def each(params: ConvParams, x: X, dy: Y) -> tuple[ConvParams, X]:
        how, window = slide(x.shape[1:-1])
        dw = pull_w_each(x, dy, how, window)
        db = None if params.b is None else widen(places(dy)).sum(1)
        return ConvParams(dw, db), backward(params, x, dy)[1]

    def moment(x: X, weights: Float[Array, " b"] | None) -> tuple[Array, Array]:
        how, window = slide(x.shape[1:-1])
        return moment_of_patches(widen(x), weights, window, how)

    marked = by_outer(backward, taken, moment) if groups == 1 else by_each(backward, each)
    window, strides, pad, dilations = numbers(1 if axes is None else axes)
    reach = extent(window, dilations)  # token by token, over one axis

    def prefill(params: ConvParams, x: X, length: int) -> tuple[Y, X]:
        y = forward(params, x)[0]
        past = reach[0] - 1
        padded = jnp.pad(x, ((0, 0), (past, 0), (0, 0)))
        return y, padded[:, padded.shape[1] - past :]

    def advance(params: ConvParams, cache: X, x: X) -> tuple[Y, X]:
        seen = jnp.concatenate([cache, x], 1)
        y = convolve(seen, params.w, Slide((1,), ((0, 0),), dilations, groups))
        return (y if params.b is None else y + lifted(params.b, y)), seen[:, 1:]

    return layer(
        init=init,
        forward=forward,
        backward=marked,
        name="conv",
        decoding=Decoding(prefill, advance)
        if _is_causal(reach, strides, pad)
        else refused(
            "a convolution must be causal to run token by token: one space axis, stride 1 and "
            f"padding=[({reach[0] - 1}, 0)], got padding={padding!r}"
        ),
    )


@told(FORMULAS["conv_transpose"])
def conv_transpose(
    features: int,
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[tuple[int, int]] = "same",
    dilation: int | Sequence[int] = 1,
    bias: bool = True,
    w_init: Callable[..., Array] = he_normal,
    b_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """A convolution of `x` with `stride - 1` zeros between its elements: space grows by `stride`.

    It is the pullback of a convolution, from the cotangent of that one's output to that of its
    input; so its own pullbacks are that convolution and the same sum over places for `dw`. Keeps
    `x`. The kernel stands as in Flax's `ConvTranspose`: against the convolution it is flipped.

    Args:
      features: how many outputs.
      kernel: the window; one number for every space axis of `x`, or one a space axis.
      stride: how many times larger space becomes; one number, or one a space axis.
      padding: "same" for `size * stride` outputs, "valid" for all that the window reaches, or one
        number for every side or a pair (before, after) for each space axis, of zeros around the
        spread input.
      dilation: from one place of the window to the next.
      bias: whether `b` is added.
      w_init: initialiser of `w`, as those of `jax.nn.initializers`.
      b_init: initialiser of `b`.

    Shapes: `x [batch, *space, i]`, `y [batch, *out, o]`, `w [*kernel, i, o]`; params are made in
    the dtype of `x`.
    Source: Dumoulin and Visin, arXiv:1603.07285, chapter 4.

    Raises:
      ValueError, TypeError: as `conv`.

    Example:
      >>> import jax
      >>> layer = conv_transpose(4, (3, 3), stride=2)
      >>> params = layer.init(jax.random.key(0), jnp.zeros((5, 8, 8, 1)))
      >>> layer.forward(params, jnp.ones((5, 8, 8, 1)))[0].shape
      (5, 16, 16, 4)
    """
    axes, numbers = kernel_numbers(kernel, stride, padding, dilation)
    features = whole_number(features, "features", 1)

    def slide(sizes: Numbers) -> tuple[Slide, Numbers, Numbers]:
        """How the convolution slides whose pullback this is, the size of its input, and how large
        the window is."""
        window, strides, pad, dilations = numbers(len(sizes))
        reach, spread = extent(window, dilations), extent(sizes, strides)
        pairs = _transposed_pairs(pad, reach, strides) if isinstance(pad, str) else pad
        pad_pairs(pairs, spread, reach, (1,) * len(sizes))  # for its check
        out = tuple(n + sum(p) - k + 1 for n, p, k in zip(spread, pairs, reach, strict=True))
        around = tuple((k - 1 - p[0], k - 1 - p[1]) for p, k in zip(pairs, reach, strict=True))
        return Slide(strides, around, dilations, 1), out, window

    def turned(w: Float[Array, "*kernel i o"]) -> Float[Array, "*kernel o i"]:
        return jnp.swapaxes(jnp.flip(w, tuple(range(w.ndim - 2))), -1, -2)

    def init(key: Key[Array, ""], x: Any) -> ConvParams:
        *_, window = slide(check_input(x, axes))
        if x.shape[-1] < 1:
            raise ValueError("x must have at least one channel, got none")
        return initial(key, (*window, x.shape[-1], features), x.dtype, bias, w_init, b_init)

    def forward(params: ConvParams, x: X) -> tuple[Y, X]:
        how, out, window = slide(check_input(x, axes))
        check_params(params, window, x.shape[-1], 1)
        y = pull_x(turned(params.w), x, how, out)
        return (y if params.b is None else y + lifted(params.b, y)), x

    def backward(params: ConvParams, x: X, dy: Y) -> tuple[ConvParams, X]:
        how, _, window = slide(x.shape[1:-1])
        dw = turned(pull_w(dy, x.astype(dy.dtype), how, window)).astype(params.w.dtype)
        dx = convolve(dy, turned(params.w), how).astype(x.dtype)
        return ConvParams(dw, pull_b(params.b, dy)), dx

    def taken(x: X, dy: Y) -> tuple[Float[Array, "b t i"], Float[Array, "b t o"]]:
        how, out, window = slide(x.shape[1:-1])
        apart = spread_out(x.astype(dy.dtype), how, out, window)
        still = Slide((1,) * len(out), ((0, 0),) * len(out), how.dilation, 1)
        return patches(apart, window, still), places(dy)

    marked = by_outer(backward, taken)
    return layer(init=init, forward=forward, backward=marked, name="conv_transpose")


def _transposed_pairs(padding: str, window: Numbers, stride: Numbers) -> Pairs:
    """The padding of the spread input under which `size` becomes `size * stride` ("same"), or
    every window that touches an element counts ("valid"), as `jax.lax.conv_transpose` has it."""
    pairs = []
    for k, s in zip(window, stride, strict=True):
        if padding == "valid":
            pairs.append((k - 1, max(k, s) - 1))
        else:
            before = k - 1 if s > k - 1 else -(-(k + s - 2) // 2)
            pairs.append((before, k + s - 2 - before))
    return tuple(pairs)


def _is_causal(window: Numbers, strides: Numbers, pad: str | Pairs) -> bool:
    """Whether each place of the output sees its own place of the input and none behind."""
    pairs = ((0, 0),) if pad == "valid" else pad
    if pairs == "same":
        pairs = tuple((0, k - 1) for k in window)  # if only one, it stands behind
    return len(window) == 1 and strides == (1,) and pairs == ((window[0] - 1, 0),)
