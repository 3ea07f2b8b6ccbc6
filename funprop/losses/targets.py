"""What losses and metrics take: outputs, targets and weights that go together.

Shapes and dtypes are refused at once. Values are refused where they are known; inside `jit`, where
they are not, a target that makes no sense makes its term NaN, and its gradient too, so that the
update is left out by `skip_nonfinite` and the loss is not believed by anyone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float, wide_dtype
from funprop.values import known, to_int32

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float, Int, Num

    Valid = Bool[Array, "*terms"]

# How far the sum of a distribution may be from one: shares are rounded, to 16 bits perhaps, or to
# two digits by hand. And how far any share may be from between 0 and 1, by rounding alone.
OF_SUM, OF_SHARE = 1e-2, 1e-6


def given(x: Any, targets: str = "targets") -> tuple[Any, ...]:
    """`(outputs, targets)` or `(outputs, targets, weights)` as arrays of real numbers. Integers
    stay of the width that they have, until it is known what they count.

    Raises:
      ValueError: it is no such tuple.
      TypeError: one is not of real numbers.
    """
    if not isinstance(x, tuple) or len(x) not in (2, 3):
        raise ValueError(f"x must be (outputs, {targets}) or (outputs, {targets}, weights)")
    names = ("outputs", targets, "weights")
    return tuple(_real(part, name) for part, name in zip(x, names, strict=False))


def _real(x: Any, name: str) -> Any:
    if not isinstance(x, jax.Array):
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError(f"{name} must be an array, got rows of unequal length") from None
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{name} must be real numbers, got {x.dtype}")
    return jnp.asarray(x) if is_float(x) else x


def check_outputs(outputs: Num[Array, "..."]) -> None:
    """Raise a `TypeError` where they are not of floating dtype."""
    if not is_float(outputs):
        raise TypeError(f"outputs must be of floating dtype, got {outputs.dtype}")


# ----------------------------------------------------------------------------- numbers and shares


def numbers(
    outputs: Float[Array, "*n"], targets: Num[Array, "*n"], *weights: Num[Array, "..."]
) -> tuple[Float[Array, "*n"], None]:
    """Targets that may be any numbers, in float32 at least.

    Raises:
      ValueError: they are not of the outputs' shape.
    """
    if outputs.shape != targets.shape:
        raise ValueError(f"targets must have the shape {outputs.shape}, got {targets.shape}")
    return jnp.asarray(targets.astype(wide_dtype(outputs.dtype))), None


def shares(
    outputs: Float[Array, "*n"], targets: Num[Array, "*n"], *weights: Num[Array, "..."]
) -> tuple[Float[Array, "*n"], Valid]:
    """Targets that are 0 or 1 or between, in float32 at least; and which of them are.

    Raises:
      ValueError: they are not of the outputs' shape, or one is not from 0 to 1.
    """
    slack = _slack(targets.dtype, OF_SHARE)

    def are_shares(t: Any) -> Any:
        return (t >= -slack) & (t <= 1 + slack)

    converted, _ = numbers(outputs, targets)
    _refuse(targets, are_shares, weights, "targets must be from 0 to 1, got {}")
    return converted, are_shares(converted)


# --------------------------------------------------------------------------------------- classes


def classes(
    logits: Float[Array, "*n c"], targets: Num[Array, "..."], *weights: Num[Array, "..."]
) -> tuple[Num[Array, "..."], Valid]:
    """Targets that are labels or distributions: labels in int32, distributions in float32 at least;
    and which of them make sense.

    Raises:
      ValueError: the shapes do not go together; a label is out of range, or what should be a
        distribution is none.
      TypeError: the labels are not integers.
    """
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"outputs must have a last axis of classes, got shape {logits.shape}")
    if not is_float(targets):
        return labels(targets, logits.shape[:-1], logits.shape[-1], *weights)
    if targets.shape == logits.shape[:-1]:
        raise TypeError(f"labels must be integers, got {targets.dtype}")
    if targets.shape != logits.shape:
        raise ValueError(f"targets must have the shape {logits.shape}, got {targets.shape}")
    slack, of_share = (_slack(targets.dtype, slack) for slack in (OF_SUM, OF_SHARE))

    def sum_to_one(total: Any) -> Any:
        return abs(total - 1) <= slack

    q = targets.astype(wide_dtype(logits.dtype))
    values = known(targets)
    if values is not None:
        values = values.astype(np.float64)
        sentence = "targets must be labels, or shares of at least 0, got {}"
        _refuse(values.min(-1), lambda least: least >= -of_share, weights, sentence)
        sentence = "targets must be labels, or shares that sum to 1, got a sum of {}"
        _refuse(values.sum(-1), sum_to_one, weights, sentence)
    return q, (q.min(-1) >= -of_share) & sum_to_one(q.sum(-1))


def labels(
    targets: Num[Array, "*n"], shape: tuple[int, ...], classes: int, *weights: Num[Array, "..."]
) -> tuple[Int[Array, "*n"], Valid]:
    """Labels in int32, and which of them are in `[0, classes)`.

    Raises:
      ValueError: they are not of this shape, or one is out of range.
      TypeError: they are not integers (booleans count as 0 and 1).
    """
    if is_float(targets):
        raise TypeError(f"labels must be integers, got {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"labels must have the shape {shape}, got {targets.shape}")

    def in_range(labels: Any) -> Any:
        return (labels >= 0) & (labels < classes)

    sentence = f"labels must be from 0 to {classes - 1}, got {{}}"
    _refuse(targets, in_range, weights, sentence)
    numbers = to_int32(targets)
    return numbers, in_range(numbers)


# ---------------------------------------------------------------------------------------- values


def _slack(dtype: Any, least: float) -> float:
    """As far as rounding to this dtype goes."""
    return max(least, float(jnp.finfo(dtype).eps)) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _refuse(targets: Any, valid: Any, weights: tuple[Any, ...], sentence: str) -> None:
    """Raise for the first value that is known and not valid; one of weight zero may be anything
    (often -1 or -100)."""
    values = known(targets)
    weighed = [w for w in map(known, weights) if w is not None]
    if values is None or len(weighed) < len(weights):
        return
    wrong = ~valid(values)
    for w in weighed:
        if w.shape == wrong.shape[: w.ndim]:  # else `weighted_sum` refuses it
            wrong = wrong & (w != 0).reshape(w.shape + (1,) * (wrong.ndim - w.ndim))
    if wrong.any():
        raise ValueError(sentence.format(values[wrong].flat[0]))
