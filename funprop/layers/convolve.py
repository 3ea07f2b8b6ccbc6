"""The convolution and its two pullbacks. It is linear in `x` and in `w`, so each of them is a
convolution again.

With one space axis and one group, and zeros for whatever lies outside of `x`,

    y[n,t,o] = sum_{k,i} x[n, t s + k d - p, i] w[k,i,o]

where `s` is the stride, `d` the dilation of the window and `p` the padding before. Index legend:
`n` examples, `t` and `u` places in space, `k` places in the window, `i` inputs, `o` outputs, `g`
groups. Source: Dumoulin and Visin, arXiv:1603.07285.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from funprop.layers import depthwise
from funprop.layers.chunks import sum_of_chunks
from funprop.layers.windows import Numbers, Slide, extent, views
from funprop.looping import looping
from funprop.trees import wide_dtype, widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float

    X = Float[Array, "n *space i"]
    W = Float[Array, "*kernel i o"]
    Y = Float[Array, "n *out o"]


def convolve(x: X, w: W, slide: Slide) -> Y:
    """`y`, with `w` of shape `[*kernel, inputs / groups, outputs]`."""

    def by_xla(x: X, w: W) -> Y:
        return _convolve(x, w, slide, spread=(1,) * len(slide.stride))

    if not depthwise.takes(w.shape, slide):
        return by_xla(x, w)
    by_views = functools.partial(depthwise.convolve, slide=slide)
    return lax.platform_dependent(x, w, cpu=by_views, default=by_xla)


def pull_x(w: W, dy: Y, slide: Slide, sizes: Numbers) -> X:
    """`dx`, its space axes of the given sizes: `dy` with `s - 1` zeros between its elements,
    convolved with the flipped kernel.

    `dx[n,u,i] = sum_{k,o} dy[n,t,o] w[k,i,o]` over all `t s + k d - p = u`: read backwards, the
    window of extent `K` starts `K - 1 - p` places before `dy`; what it reaches beyond the end is
    what makes the result as long as `x`.
    """

    def by_xla(w: W, dy: Y) -> X:
        groups, o = slide.groups, w.shape[-1] // slide.groups
        split = jnp.swapaxes(w.reshape(*w.shape[:-1], groups, o), -1, -3)  # [*kernel, o, g, i]
        flipped = jnp.flip(split.reshape(*w.shape[:-2], o, -1), tuple(range(w.ndim - 2)))
        padding = _around(dy, slide, sizes, w.shape[:-2])
        back = slide._replace(stride=(1,) * len(sizes), padding=padding)
        return _convolve(dy, flipped, back, spread=slide.stride)

    if not depthwise.takes(w.shape, slide):
        return by_xla(w, dy)
    by_views = functools.partial(depthwise.pull_x, slide=slide, sizes=sizes)
    return lax.platform_dependent(w, dy, cpu=by_views, default=by_xla)


@looping("slide", "kernel")
def pull_w(x: X, dy: Y, slide: Slide, kernel: Numbers) -> W:
    """`dw`, its space axes of the size of the kernel: `x` convolved with `dy`.

    `dw[k,i,o] = sum_{n,t} x[n, t s + k d - p, i] dy[n,t,o]`: `dy` is the window, examples take the
    place of inputs, stride and dilation that of each other.
    """
    groups, i = slide.groups, x.shape[-1] // slide.groups
    padding = tuple(
        (before, t + k - 1 - u - before)
        for k, u, t, (before, _) in zip(
            extent(kernel, slide.dilation),
            x.shape[1:-1],
            extent(dy.shape[1:-1], slide.stride),
            slide.padding,
            strict=True,
        )
    )
    last = x.ndim - 1
    space = range(1, last)
    how = {"window_strides": slide.dilation, "padding": padding, "rhs_dilation": slide.stride}

    # All are the same sums. On a CPU, XLA turns the operands of a convolution for its fast kernel
    # only outside of loops, and takes 10 to 100 times as long within one; and groups are faster
    # beside examples than beside inputs. A few examples at a time are turned within its caches,
    # and no copies of all `x` and `dy` exist (docs/benchmarks/convolution.md), but groups are not
    # the faster for it; a window of one place is a product. Elsewhere the last is the form that XLA
    # knows.
    def turned_by_hand(x: X, dy: Y) -> W:
        split = x.reshape(*x.shape[:-1], groups, i).transpose(last + 1, *space, last, 0)
        inputs = split.reshape(i, *x.shape[1:-1], groups * len(x))  # [i, *space, g n]
        by_inputs = lax.conv_general_dilated(
            inputs,
            dy.transpose(*space, 0, last),
            **how,
            dimension_numbers=_channels_last(x.ndim),
            feature_group_count=groups,
            preferred_element_type=wide_dtype(dy.dtype),
        )  # [i, *kernel, o]
        return jnp.moveaxis(by_inputs, 0, -2)

    def by_product(x: X, dy: Y) -> W:
        (seen,) = views(x, kernel, slide.stride, slide.padding, 0.0)
        dw = lax.dot_general(
            seen.reshape(-1, seen.shape[-1]),
            dy.reshape(-1, dy.shape[-1]),
            (((0,), (0,)), ((), ())),
            preferred_element_type=wide_dtype(dy.dtype),
        )
        return dw.reshape(*kernel, *dw.shape)

    def turned_by_numbers(x: X, dy: Y) -> W:
        turned = (last, 0, *space)
        return lax.conv_general_dilated(
            x,
            dy,
            **how,
            dimension_numbers=lax.ConvDimensionNumbers(
                turned, turned, (last - 1, last, *range(last - 1))
            ),
            batch_group_count=groups,
        )

    x = x.astype(dy.dtype)
    if depthwise.takes((*kernel, i, dy.shape[-1]), slide):
        on_cpu = functools.partial(depthwise.pull_w, slide=slide, kernel=kernel)
    elif groups == 1:
        one_place = math.prod(kernel) == 1
        on_cpu = functools.partial(sum_of_chunks, by_product if one_place else turned_by_hand)
    else:
        on_cpu = turned_by_hand
    return lax.platform_dependent(
        x, dy, cpu=lambda x, dy: on_cpu(x, dy).astype(dy.dtype), default=turned_by_numbers
    )


def patches(x: X, kernel: Numbers, slide: Slide) -> Float[Array, "n t ki"]:
    """What is under the window at every place, in the order of `w`: with it, the convolution is a
    product. Of one group."""
    seen = views(x, kernel, slide.stride, slide.padding, 0.0, slide.dilation)
    whole = jnp.concatenate(seen, -1)
    return whole.reshape(len(x), math.prod(whole.shape[1:-1]), whole.shape[-1])


def pull_w_each(x: X, dy: Y, slide: Slide, kernel: Numbers) -> Float[Array, "n *kernel i o"]:
    """`dw` of every example, in float32 at least: for each place of the window the sum over space
    of what it saw times `dy`, group by group."""
    groups, o = slide.groups, dy.shape[-1] // slide.groups
    i, t = x.shape[-1] // groups, math.prod(dy.shape[1:-1])
    d = widen(dy).reshape(len(dy), t, groups, o)
    each = []
    for seen in views(x, kernel, slide.stride, slide.padding, 0.0, slide.dilation):
        s = seen.astype(d.dtype).reshape(len(x), t, groups, i)
        if i == 1:  # no product of matrices
            each.append((s * d).sum(1)[:, None])
        else:
            each.append(jnp.einsum("ntgi,ntgo->nigo", s, d, precision=lax.Precision.HIGHEST))
    return jnp.stack(each, 1).reshape(len(x), *kernel, i, groups * o)


def spread_out(dy: Y, slide: Slide, sizes: Numbers, kernel: Numbers) -> X:
    """`dy` with `s - 1` zeros between its elements and zeros around, for the window of `pull_x`."""
    around = _around(dy, slide, sizes, kernel)
    gaps = [(*pair, s - 1) for pair, s in zip(around, slide.stride, strict=True)]
    return lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])


def _around(dy: Y, slide: Slide, sizes: Numbers, kernel: Numbers) -> tuple[tuple[int, int], ...]:
    return tuple(
        (k - 1 - before, u + before - t)
        for k, u, t, (before, _) in zip(
            extent(kernel, slide.dilation),
            sizes,
            extent(dy.shape[1:-1], slide.stride),
            slide.padding,
            strict=True,
        )
    )


def _convolve(x: X, w: W, slide: Slide, spread: Numbers) -> Y:
    """The convolution of `x` with `spread - 1` zeros between its elements."""
    dtype = jnp.result_type(x, w)
    return lax.conv_general_dilated(
        x.astype(dtype),
        w.astype(dtype),
        window_strides=slide.stride,
        padding=slide.padding,
        lhs_dilation=spread,
        rhs_dilation=slide.dilation,
        dimension_numbers=_channels_last(x.ndim),
        feature_group_count=slide.groups,
    )


def _channels_last(axes: int) -> lax.ConvDimensionNumbers:
    """`[n, *space, i]`, `[*kernel, i, o]` and `[n, *out, o]`."""
    last = axes - 1
    like_x = (0, last, *range(1, last))
    return lax.ConvDimensionNumbers(like_x, (last, last - 1, *range(last - 1)), like_x)
