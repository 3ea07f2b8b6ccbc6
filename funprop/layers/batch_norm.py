"""Batch normalisation: inference needs numbers that no gradient trains. They are params whose role
is statistic; training reports what they are made of as `Recorded` sums, which a step folds in, and
`calibrate` sets them exactly."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.formula import told
from funprop.layer import Layer, Recorded, layer
from funprop.layers.formulas import FORMULAS
from funprop.layers.moments import check_eps, inverse_root, moments
from funprop.layers.normalisation import (
    affine,
    check_channels,
    check_leaves,
    scale_of,
)
from funprop.trees import lifted, widen
from funprop.values import real_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Key

    X = Float[Array, "*rows c"]
    Channels = Float[Array, "c"]


class BatchNormParams(NamedTuple):
    """The params of `batch_norm`.

    Attributes:
      scale: `[c]`, starts at one.
      bias: `[c]`, starts at zero.
      mean: `[c]`, what is subtracted without a key; starts at zero. In float32 at least.
      variance: `[c]`, what is divided by the root of; starts at one. In float32 at least.
      updates: a scalar, how many batches are in the two; starts at zero. In float32 at least.
    """

    scale: Any
    bias: Any
    mean: Any
    variance: Any
    updates: Any

    roles = {
        **{"scale": "scale", "bias": "bias"},
        **{"mean": "statistic", "variance": "statistic", "updates": "statistic"},
    }


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["count", "point", "total", "squares"],
    meta_fields=["momentum"],
)
@dataclasses.dataclass(frozen=True)
class BatchSums:
    """What `batch_norm` records in training: sums over rows, which add up over parts of the data.

    They are about a point, the `mean` among the params: where that is near the true mean, the
    variance keeps its digits however large the mean is.

    Attributes:
      count: how many rows, a scalar.
      point: `[c]`, `count` times the point.
      total: `[c]`, the sum of `x - point`.
      squares: `[c]`, the sum of `(x - point)^2`.
      momentum: how much of the running statistics a batch leaves.

    Example:
      >>> one = BatchSums(*map(jnp.array, (2.0, [4.0], [0.0], [2.0])))  # of 1 and 3, about 2
      >>> other = BatchSums(*map(jnp.array, (2.0, [4.0], [8.0], [34.0])))  # of 5 and 7, about 2
      >>> [m.tolist() for m in jax.tree.map(jnp.add, one, other).moments()]
      [[4.0], [5.0]]
    """

    count: Any
    point: Any
    total: Any
    squares: Any
    momentum: float = 0.9

    of = BatchNormParams

    def moments(self) -> tuple[Any, Any]:
        """Mean and variance of all the rows; the variance is the mean square, not unbiased."""
        sums = self.point, self.total, self.squares
        point, total, square = (part / self.count[..., None] for part in sums)
        return point + total, jnp.maximum(square - total**2, 0)  # a constant channel, rounded

    def folded(self, params: BatchNormParams) -> BatchNormParams:
        """The params with running statistics: the plain mean over the first batches, then one in
        which a batch has the share `1 - momentum`. So they never lean on where they started."""
        share = jnp.maximum(1 - self.momentum, 1 / (params.updates + 1))
        mean, variance = self.moments()
        finite = jnp.isfinite(mean).all(-1) & jnp.isfinite(variance).all(-1)
        known = (self.count > 0) & finite  # else they stay, all of them

        def towards(old: Any, new: Any) -> Any:
            step = share[..., None].astype(old.dtype) * (new.astype(old.dtype) - old)
            return jnp.where(known[..., None], old + step, old)

        return params._replace(
            mean=towards(params.mean, mean),
            variance=towards(params.variance, variance),
            updates=params.updates + known.astype(params.updates.dtype),
        )


@told(FORMULAS["batch_norm"])
def batch_norm(eps: float = 1e-5, *, momentum: float = 0.9) -> Layer:
    """`y = (x - mean) / sqrt(variance + eps) * scale + bias`, one mean and variance a channel.

    With a key (training) they are the batch's own, over all axes but the last; the batch's
    `BatchSums` are `Recorded`. Without a key they are the params `mean` and `variance`: statistics,
    which no gradient trains. `step` folds the batch's in, a share of `1 - momentum` each;
    `calibrate` sets those of all the data. The variance is the mean square deviation, not the
    unbiased one. A row of padding counts like any other.
    Where the sum of squares overflows, from deviations of about 1e18 on, the output is NaN.

    Backward, with `w = x - mean`, `r = 1 / sqrt(variance + eps)` and sums over the `n` rows:
    `dscale = r sum(dy w)`, `dbias = sum(dy)`; with a key
    `dx = r scale (dy - sum(dy) / n - w r^2 sum(dy w) / n)`; without, `dx = r scale dy`. In the
    place of the statistics' cotangents is `None`. Keeps `x`, and in training `mean`,
    what rounding left of it, and `r` of the batch.

    Shapes: `x [*batch, c]`, at least one batch axis; `y` alike. `scale` and `bias` are made in the
    dtype of `x`, `mean` and `variance` in float32 at least.
    Source: Ioffe and Szegedy, arXiv:1502.03167.

    Raises:
      ValueError: `eps` is not positive, or above 1; or `momentum` not from 0 to 1; or, at init or
        forward, `x` has no batch axis, another last axis than the params want, or, with a key,
        no rows.
      TypeError: `x` is not of floating dtype, or the params are not `BatchNormParams`.

    Example:
      >>> norm, x = batch_norm(), jnp.array([[1.0], [5.0]])
      >>> params = norm.init(None, x)
      >>> y, (*_, record) = norm.forward(params, x, jax.random.key(0))
      >>> y.round(3).tolist(), [m.tolist() for m in record.value.moments()]
      ([[-1.0], [1.0]], [[3.0], [4.0]])
      >>> norm.forward(params, x)[0].round(3).tolist()
      [[1.0], [5.0]]
    """
    eps, momentum = check_eps(eps), real_number(momentum, "momentum")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be from 0 to 1, got {momentum}")

    def init(key: Key[Array, ""] | None, x: Any) -> BatchNormParams:
        _check_input(x)
        one = jnp.ones(x.shape[-1:], x.dtype)
        zero = jnp.zeros_like(one)
        return BatchNormParams(one, zero, widen(zero), widen(one), widen(jnp.zeros((), x.dtype)))

    def forward(
        params: BatchNormParams, x: X, key: Key[Array, ""] | None
    ) -> tuple[X, tuple[Any, ...]]:
        _check(params, x)
        wide = widen(x)
        if key is None:
            mean, r = _fixed(params, wide, eps)
            return affine(params, (wide - mean) * r, x), (x,)
        if not x.size:
            raise ValueError(f"x must have rows in training, got shape {tuple(x.shape)}")
        rows = tuple(range(x.ndim - 1))
        found = moments(x, lambda x: x.mean(rows, keepdims=True), eps)
        sums = _sums_about(params.mean.astype(wide.dtype), wide, momentum)
        y = affine(params, found.normalised(x), x)
        return y, (x, *(statistic.ravel() for statistic in found), Recorded(sums))

    def backward(
        params: BatchNormParams, residuals: tuple[Any, ...], dy: X
    ) -> tuple[BatchNormParams, X]:
        x, *batch = residuals
        wide = widen(x)
        dy, scale, rows = dy.astype(wide.dtype), scale_of(params, wide), tuple(range(x.ndim - 1))
        if batch:
            mean, rest, r = batch[:3]
        else:
            mean, r = (statistic.ravel() for statistic in _fixed(params, wide, eps))
            rest = jnp.zeros_like(mean)
        w, sum_dy = wide - lifted(mean, x), dy.sum(rows)
        sum_dyw = (dy * w).sum(rows) - rest * sum_dy  # `rest` a channel, not an element
        a = r * scale
        if batch:
            n = x.size // x.shape[-1]
            b = r * (r * sum_dyw / n)  # in an order in which nothing underflows
            dx = lifted(a, x) * (dy - lifted(b, x) * w + lifted(b * rest - sum_dy / n, x))
        else:
            dx = lifted(a, x) * dy
        dscale, dbias = (r * sum_dyw).astype(params.scale.dtype), sum_dy.astype(params.bias.dtype)
        return BatchNormParams(dscale, dbias, None, None, None), dx.astype(x.dtype)

    return layer(
        init=init,
        forward=forward,
        backward=backward,
        name="batch_norm",
        mixes=True,
        draws=False,
        pointwise=True,
    )


def _sums_about(point: Channels, x: X, momentum: float) -> BatchSums:
    """From `x` itself: the rounding of its mean would show in a small variance. One more pass over
    `x`, which is compiled only where it is used."""
    rows = tuple(range(x.ndim - 1))
    n = jnp.asarray(x.size // x.shape[-1], x.dtype)
    w = x - lifted(point, x)
    return BatchSums(n, n * point, w.sum(rows), (w * w).sum(rows), momentum)


def _fixed(params: BatchNormParams, wide: X, eps: float) -> tuple[Channels, Channels]:
    """`mean` and `1 / sqrt(variance + eps)` of the params, with axes of one in front."""
    return (
        lifted(params.mean.astype(wide.dtype), wide),
        lifted(inverse_root(params.variance.astype(wide.dtype), eps), wide),
    )


def _check_input(x: Any) -> None:
    check_channels(x)
    if x.ndim < 2:
        raise ValueError(f"x must be [*batch, channels], got shape {tuple(x.shape)}")


def _check(params: Any, x: Any) -> None:
    _check_input(x)
    if not isinstance(params, BatchNormParams):
        raise TypeError(
            "params must be BatchNormParams(scale, bias, mean, variance, updates), got "
            f"{type(params).__name__}"
        )
    check_leaves(params._replace(updates=None), x)
