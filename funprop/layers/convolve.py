"""The convolution and its two transposes: bilinear in `x` and `w`, so each pullback is a
convolution again.

With one space axis and one group, written with zeros for whatever lies outside,

    y[n,t,o] = sum_{k,i} x~[n, t s + k d - p, i] w[k,i,o]

where `s` is the stride, `d` the dilation of the window, `p` the padding before, and `x~` is `x`
with `e - 1` zeros between its elements (`e`, the spread, is one but in a transposed convolution).
Source: Dumoulin and Visin, arXiv:1603.07285.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jax import lax

from funprop.layers.windows import Numbers, Pairs, extent

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    X = Float[Array, "n *space i"]
    W = Float[Array, "*kernel i o"]
    Y = Float[Array, "n *out o"]


class Slide(NamedTuple):
    """How the window slides, one entry a space axis.

    Attributes:
      stride: from one window to the next.
      padding: zeros before and after.
      spread: of the input: `spread - 1` zeros stand between its elements.
      dilation: of the window, likewise.
      groups: into which the channels of input and output are divided.
    """

    stride: Numbers
    padding: Pairs
    spread: Numbers
    dilation: Numbers
    groups: int


def convolve(x: X, w: W, slide: Slide) -> Y:
    """`y`, with `w` of shape `[*kernel, inputs / groups, outputs]`."""
    last = x.ndim - 1
    space = tuple(range(1, last))
    kernel = tuple(range(last - 1))
    numbers = lax.ConvDimensionNumbers(
        (0, last, *space), (last, last - 1, *kernel), (0, last, *space)
    )
    dtype = jnp.result_type(x, w)
    return lax.conv_general_dilated(
        x.astype(dtype),
        w.astype(dtype),
        window_strides=slide.stride,
        padding=slide.padding,
        lhs_dilation=slide.spread,
        rhs_dilation=slide.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(like_x, (last, last - 1, *kernel), like_x),
        feature_group_count=slide.groups,
    )


def pull_x(w: W, dy: Y, slide: Slide, sizes: Numbers) -> X:
    """`dx`: the convolution of `dy`, spread out by the stride, with the flipped and turned kernel.

    `x` at place `u` meets `dy` at place `t` under the weight `k` where `u e = t s + k d - p`: the
    kernel runs backwards. It reaches `K - 1` before `dy`, of which the padding cuts `p`; what it
    must reach after it is what makes the result as long as `x`.
    """
    groups, o = slide.groups, w.shape[-1]
    split = w.reshape(*w.shape[:-1], groups, o // groups)  # [*kernel, i, g, o]
    turned = jnp.moveaxis(split, -1, -3).reshape(*w.shape[:-2], o // groups, -1)  # [*, o, (g i)]
    kernel = extent(w.shape[:-2], slide.dilation)
    given = extent(dy.shape[1:-1], slide.stride)
    wanted = extent(sizes, slide.spread)
    padding = tuple(
        (k - 1 - before, n + before - t)
        for k, n, t, (before, _) in zip(kernel, wanted, given, slide.padding, strict=True)
    )
    back = Slide(slide.spread, padding, slide.stride, slide.dilation, groups)
    return convolve(dy, jnp.flip(turned, tuple(range(w.ndim - 2))).astype(dy.dtype), back)


def pull_w(x: X, dy: Y, slide: Slide, kernel: Numbers) -> W:
    """`dw`: the convolution of `x` with `dy` for a kernel; examples take the place of inputs.

    `dw[k,i,o] = sum_{n,t} x~[n, t s + k d - p, i] dy[n,t,o]`: stride and dilation change roles.
    """
    groups, i, o = slide.groups, x.shape[-1] // slide.groups, dy.shape[-1] // slide.groups
    padding = tuple(
        (before, t + k - 1 - n - before)
        for k, n, t, (before, _) in zip(
            extent(kernel, slide.dilation),
            extent(x.shape[1:-1], slide.spread),
            extent(dy.shape[1:-1], slide.stride),
            slide.padding,
            strict=True,
        )
    )
    last = x.ndim - 1
    space = tuple(range(1, last))

    def correlate(x: X, dy: Y, **counts: int) -> W:
        return lax.conv_general_dilated(
            x.astype(dy.dtype),
            dy,
            window_strides=slide.dilation,
            padding=padding,
            lhs_dilation=slide.spread,
            rhs_dilation=slide.stride,
            dimension_numbers=lax.ConvDimensionNumbers(
                (last, 0, *space), (last, 0, *space), (last - 1, last, *range(last - 1))
            ),
            **counts,
        )

    def groups_beside_inputs(x: X, dy: Y) -> W:
        return correlate(x, dy, batch_group_count=groups)

    def groups_beside_examples(x: X, dy: Y) -> W:
        split = jnp.moveaxis(x.reshape(*x.shape[:-1], groups, i), -2, 0)  # [g, n, *space, i]
        return correlate(split.reshape(-1, *split.shape[2:]), dy, feature_group_count=groups)

    if math.prod(dy.shape) == 0:  # XLA knows no window of nothing
        return jnp.zeros((*kernel, i, groups * o), dy.dtype)
    if groups == 1 or i == o == 1:
        return groups_beside_inputs(x, dy)
    # The same sums: XLA's code for the first form is up to 300 times slower on a CPU, but for a
    # depthwise convolution; for a GPU that form is the one that it recognises.
    return lax.platform_dependent(x, dy, cpu=groups_beside_examples, default=groups_beside_inputs)
