"""The second moment of a convolution's patches, without the patches.

With stride one, `A[k,l] = sum_t x[t + k d - p] x[t + l d - p]^T` depends on `l - k` alone, but for
which places `t + k d - p` there are: so it is the correlation of `x` with itself, at `2 K - 1`
distances an axis in the place of `K^2` pairs, less that of the strips at the border which the place
`k` of the window does not see. Index legend: as of `convolve`, `c` channels.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from funprop.layers.convolve import patches, pull_w
from funprop.layers.windows import Numbers, Slide

if TYPE_CHECKING:
    from funprop.typing import Array, Float

    X = Float[Array, "n *space c"]

Strip = tuple[tuple[int, int], ...]  # from where to where, for each axis
CHANNELS = 16  # with fewer, the patches are small


def moment_of_patches(
    x: X, weights: Float[Array, " n"] | None, kernel: Numbers, slide: Slide
) -> tuple[Float[Array, "kc kc"], Float[Array, " kc"]]:
    """The sums over all places of `r r^T` and of `r`, the patch there, each times the example's
    weight."""
    axes = len(kernel)

    def weighed(x: X) -> X:
        return x if weights is None else x * weights.reshape(-1, *(1,) * (axes + 1))

    def by_product(x: X) -> Float[Array, "kc kc"]:
        rows = patches(x, kernel, slide).reshape(-1, math.prod(kernel) * x.shape[-1])
        seen = rows if weights is None else jnp.repeat(weights, len(rows) // len(x))[:, None] * rows
        return jnp.matmul(seen.T, rows, precision=jax.lax.Precision.HIGHEST)

    def by_overlap(x: X) -> Float[Array, "kc kc"]:
        return _by_overlap(x, weighed(x), kernel, slide)

    if _pays(x.shape, kernel, slide):
        a = jax.lax.platform_dependent(x, cpu=by_overlap, default=by_product)
    else:
        a = by_product(x)
    return a, patches(weighed(x).sum(0, keepdims=True), kernel, slide).sum((0, 1))


def _pays(shape: Numbers, kernel: Numbers, slide: Slide) -> bool:
    """Whether there are fewer products so, and their channels enough."""
    if any(s != 1 for s in slide.stride) or shape[-1] < CHANNELS:
        return False
    terms = {strip for place in _places(kernel) for _, strip in _terms(place, shape, kernel, slide)}
    size = sum(math.prod(b - a for a, b in strip) for strip in terms)
    seen = math.prod(_seen(shape, kernel, slide))
    return math.prod(2 * k - 1 for k in kernel) * size < math.prod(kernel) ** 2 * seen


def _by_overlap(x: X, weighed: X, kernel: Numbers, slide: Slide) -> Float[Array, "kc kc"]:
    axes, c, found = len(kernel), x.shape[-1], {}

    def correlation(strip: Strip) -> Float[Array, "*distances c c"]:
        """`sum_q x[q + e d] weighed[q]^T` over the strip, for all distances `e`."""
        if strip not in found:
            of = weighed[(slice(None), *(slice(*pair) for pair in strip))]
            before = zip(kernel, slide.dilation, strip, strict=True)
            pairs = tuple(((k - 1) * d - start, 0) for k, d, (start, _) in before)
            how = Slide((1,) * axes, pairs, slide.dilation, 1)
            found[strip] = pull_w(x, of, how, tuple(2 * k - 1 for k in kernel))
        return found[strip]

    each = []
    for place in _places(kernel):
        at = tuple(slice(k - 1 - p, 2 * k - 1 - p) for k, p in zip(kernel, place, strict=True))
        terms = _terms(place, x.shape, kernel, slide)
        each.append(sum(sign * correlation(strip)[at] for sign, strip in terms))
    size = math.prod(kernel)
    a = jnp.stack(each).reshape(size, size, c, c)  # [k, l, c of l, c of k]
    return a.transpose(0, 3, 1, 2).reshape(size * c, size * c)


def _places(kernel: Numbers) -> itertools.product:
    return itertools.product(*map(range, kernel))


def _seen(shape: Numbers, kernel: Numbers, slide: Slide) -> Numbers:
    """How many windows there are on each axis."""
    each = zip(shape[1:-1], kernel, slide.dilation, slide.padding, strict=True)
    return tuple(s + sum(pair) - (k - 1) * d for s, k, d, pair in each)


def _terms(
    place: Numbers, shape: Numbers, kernel: Numbers, slide: Slide
) -> list[tuple[int, Strip]]:
    """The strips whose sum, with signs, is what a place of the window sees of `x`."""
    parts = []
    sizes = zip(place, shape[1:-1], _seen(shape, kernel, slide), strict=True)
    for (p, size, t), d, (before, _) in zip(sizes, slide.dilation, slide.padding, strict=True):
        start = min(max(0, p * d - before), size)
        end = max(min(size, p * d - before + t), start)
        strips = (1, (0, size)), (-1, (0, start)), (-1, (end, size))
        parts.append([(sign, pair) for sign, pair in strips if pair[0] < pair[1]])
    each = itertools.product(*parts)
    return [(math.prod(s for s, _ in term), tuple(pair for _, pair in term)) for term in each]
