"""Losses scaled so that gradients in float16 neither vanish nor overflow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.checks import described
from funprop.params.frozen import trained
from funprop.reprs import of_fields
from funprop.steps.skip_nonfinite import only_if, with_skipped
from funprop.steps.step import Step, parts_of, proposed, wrapper
from funprop.transforms.transformed import refuse, refuse_population
from funprop.trees import Sum
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree

# A scale is itself a number in the dtype of the loss and of its first cotangents: never doubled
# beyond the largest power of two that float16 has, nor halved below the smallest that it has with
# all its digits.
MOST, LEAST = 2.0**15, 2.0**-14


class Scaled(NamedTuple):
    """The state of `loss_scale`.

    Attributes:
      inner: the state of the step within.
      scale: the cotangent of the loss, a power of two, `float32`.
      good: how many updates in a row were finite at this scale, `int32`.
    """

    inner: Any
    scale: Any
    good: Any

    def __repr__(self) -> str:
        return of_fields(self)

    @property
    def params(self) -> Any:
        """As the step within has them."""
        return self.inner.params

    @property
    def average(self) -> Any:
        """That of an `ema` within; an `AttributeError` where there is none."""
        return self.inner.average


def loss_scale(step: Step, initial: float = 2.0**15, every: int = 2000) -> Step:
    """The same step, its backward pass run at a multiple of the loss, for float16.

    Small cotangents would be zero in float16. The loss's own is `scale` instead of one, and the
    gradient is divided by it in float32. An update whose gradient is not finite is left out, and
    the scale halved (one whose loss alone is not is left out at the same scale); after `every` good
    ones it is doubled. It stays where float16 has its powers of two, from 2^-14 to 2^15: it is not
    halved below, nor doubled beyond, however long gradients are infinite, or zero. Below one, and
    below `initial`, a single good update doubles it: a run of bad batches must not leave a scale
    that makes small gradients zero. Metrics tell `loss_scale` and the share that was `skipped`.
    Source: Micikevicius et al., arXiv:1710.03740, section 3.2; dynamic as in NVIDIA's Apex.

    Args:
      step: any step whose grad_fn takes a cotangent of the loss (`backprop`, `from_loss` and their
        transforms do); but for `scan` and `skip_nonfinite`, which go around.
      initial: the first scale, a power of two that float32 has with all its digits; it may be
        above those bounds, and below them it is that of the first update alone.
      every: how many good updates double it.

    Raises:
      TypeError: `step` is none, `initial` no number, or `every` no integer.
      ValueError: `initial` is no such power of two, `every` is not positive, or the step is one
        that goes around, or a `fused_step`, whose gradient nobody could divide.

    Example:
      >>> import optax, funprop as fp
      >>> line = fp.from_loss(lambda w, batch: ((w * batch).sum(), batch.size))
      >>> train = loss_scale(fp.step(line, optax.sgd(1.0)), initial=2.0**10)
      >>> state = train.init(jnp.array(2.0), None)
      >>> state, metrics = train.update(state, jnp.array([jnp.inf]))
      >>> float(state.params), float(state.scale), float(metrics["skipped"].mean)
      (2.0, 512.0, 1.0)
      >>> state, metrics = train.update(state, jnp.array([1.0]))
      >>> float(state.params), float(metrics["loss_scale"].mean)
      (1.0, 512.0)
    """
    initial, every = _first(initial), _count(every)
    why = {
        "scan": "the scale may change with every update",
        "skip_nonfinite": "it would hide from loss_scale what overflows",
    }
    refuse("loss_scale", parts_of(step), why)
    refuse_population("loss_scale", step.parts)
    if "loss_scale" in step.parts:
        raise ValueError("step must have no loss_scale yet, got one that has")
    if "fused_step" in step.parts:
        raise ValueError("step must have a gradient that can be divided, got a fused_step")

    def init(params: PyTree, key: Any) -> Scaled:
        return Scaled(
            step.init(params, key), jnp.asarray(initial, jnp.float32), jnp.zeros((), jnp.int32)
        )

    def propose(
        state: Scaled, batch: PyTree, dloss: Any = None
    ) -> tuple[Scaled, dict[str, Sum], Any]:
        new, metrics, finite = proposed(step, state.inner, batch, state.scale)
        good = jnp.all(finite)
        # A loss alone that is infinite is so at any scale.
        fits = jnp.all(finite[: len(jax.tree.leaves(trained(state.params)))])
        count = jnp.where(fits, state.good + 1, 0)
        due = (count >= every) | (state.scale < min(1.0, initial))
        grown = jnp.where(due & (state.scale < MOST), 2 * state.scale, state.scale)
        scale = jnp.maximum(jnp.where(fits, grown, state.scale / 2), LEAST)
        told = {"loss_scale": Sum(state.scale, jnp.ones((), jnp.float32))}
        scaled = Scaled(only_if(good, new, state.inner), scale, jnp.where(due, 0, count))
        # What is left out here is no reason for a wrapper outside to leave it out again.
        return scaled, with_skipped(metrics, good) | told, jnp.ones_like(finite)

    return wrapper("loss_scale", Scaled, step, init, propose)


def _first(initial: Any) -> float:
    if isinstance(initial, bool) or not hasattr(initial, "__float__") or jnp.ndim(initial):
        raise TypeError(f"initial must be a power of two, got {described(initial)}")
    value = float(initial)
    if not (2.0**-126 <= value <= 2.0**127 and math.frexp(value)[0] == 0.5):
        raise ValueError(f"initial must be a power of two from 2^-126 to 2^127, got {initial}")
    return value


def _count(every: Any) -> int:
    return min(whole_number(every, "every", 1), 2**31 - 1)  # the count is an int32
