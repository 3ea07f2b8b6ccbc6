"""The convolution with one input a group, and its two pullbacks, as sums over the window's places.

There is nothing to multiply matrices for: each place of the window is one product an output,

    y[n,t,o] = sum_k x[n, t s + k d - p, g(o)] w[k,o]

with `g(o)` the one input of the output `o`. A CPU, on which XLA's convolution takes 5 to 30 times
as long (docs/benchmarks/convolution.md), goes example by example. Index legend: as in `convolve`.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING

import jax.numpy as jnp

from funprop.layers.chunks import one_by_one, sum_of_chunks
from funprop.layers.windows import Numbers, Slide, add_views, views
from funprop.looping import looping
from funprop.trees import widen

if TYPE_CHECKING:
    from funprop.typing import Array, Float

    X = Float[Array, "n *space i"]
    W = Float[Array, "*kernel 1 o"]
    Y = Float[Array, "n *out o"]

PLACES = 128  # that a program writes one after the other


def takes(w_shape: Numbers, slide: Slide) -> bool:
    """Whether a convolution is one for which this is written."""
    return slide.groups > 1 and w_shape[-2] == 1 and math.prod(w_shape[:-2]) <= PLACES


@looping("slide")
def convolve(x: X, w: W, slide: Slide) -> Y:
    """`y`."""
    dtype = jnp.result_type(x, w)
    rows = _rows(w)

    def of_examples(x: X) -> Y:
        seen = _seen(x, slide, w.shape[:-2], w.shape[-1])
        return functools.reduce(operator.add, map(operator.mul, seen, rows)).astype(dtype)

    return one_by_one(of_examples, x)


@looping("slide", "sizes")
def pull_x(w: W, dy: Y, slide: Slide, sizes: Numbers) -> X:
    """`dx`, its space axes of the given sizes: `dy` times each place's `w`, added where it was
    read, and for each input the sum over its outputs."""
    dtype = jnp.result_type(dy, w)
    rows = _rows(w)

    def of_examples(dy: Y) -> X:
        wide = widen(dy)
        parts = [_by_input(wide * row, slide.groups) for row in rows]
        how = slide.stride, slide.padding, slide.dilation
        return add_views(parts, sizes, w.shape[:-2], *how).astype(dtype)

    return one_by_one(of_examples, dy)


def pull_w(x: X, dy: Y, slide: Slide, kernel: Numbers) -> W:
    """`dw`, its space axes of the size of the kernel, in float32 at least: for each place the sum
    of what it saw times `dy`."""

    def of_examples(x: X, dy: Y) -> W:
        wide, axes = widen(dy), tuple(range(dy.ndim - 1))
        sums = [(seen * wide).sum(axes) for seen in _seen(x, slide, kernel, dy.shape[-1])]
        return jnp.stack(sums).reshape(*kernel, 1, dy.shape[-1])

    return sum_of_chunks(of_examples, x, dy)


def _rows(w: W) -> list[Float[Array, "... o"]]:
    """What stands at each place, of the rank of `x`."""
    return list(widen(w).reshape(-1, *(1,) * (w.ndim - 1), w.shape[-1]))


def _seen(x: X, slide: Slide, kernel: Numbers, outputs: int) -> list[Y]:
    """For each place of the window what every output sees there."""
    x = jnp.repeat(widen(x), outputs // x.shape[-1], axis=-1)
    return views(x, kernel, slide.stride, slide.padding, 0.0, slide.dilation)


def _by_input(part: Y, inputs: int) -> Float[Array, "n *out i"]:
    each = part.shape[-1] // inputs
    return part if each == 1 else part.reshape(*part.shape[:-1], inputs, each).sum(-1)
