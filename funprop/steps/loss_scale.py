"""Losses scaled so that gradients in float16 neither vanish nor overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from funprop.steps.skip_nonfinite import only_if, with_skipped
from funprop.steps.step import Step, proposed, wrapper
from funprop.transforms.transformed import refuse
from funprop.trees import Sum

if TYPE_CHECKING:
    from jaxtyping import PyTree


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

    @property
    def params(self) -> Any:
        """As the step within has them."""
        return self.inner.params


def loss_scale(step: Step, initial: float = 2.0**15, every: int = 2000) -> Step:
    """The same step, its backward pass run at a multiple of the loss, for float16.

    Small cotangents would be zero in float16. The loss's own is `scale` instead of one, and the
    gradient is divided by it in float32. An update that would not be finite is left out, and the
    scale halved; after `every` good ones it is doubled. Metrics tell `loss_scale` and the share
    that was `skipped`.
    Source: Micikevicius et al., arXiv:1710.03740, section 3.2; dynamic as in NVIDIA's Apex.

    Args:
      step: any step whose grad_fn takes a cotangent of the loss (`backprop`, `from_loss` and their
        transforms do); but for `scan` and `skip_nonfinite`, which go around.
      initial: the first scale, a power of two.
      every: how many good updates double it.

    Raises:
      ValueError: `initial` is no power of two, `every` is not positive, or the step is one that
        goes around, or a `fused_step`, whose gradient nobody could divide.

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
    if not initial > 0 or jnp.frexp(initial)[0] != 0.5:
        raise ValueError(f"initial must be a power of two, got {initial}")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    why = {
        "scan": "the scale may change with every update",
        "skip_nonfinite": "it would hide from loss_scale what overflows",
    }
    refuse("loss_scale", step.parts, why)
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
        count = jnp.where(good, state.good + 1, 0)
        grown = jnp.where(count == every, 2 * state.scale, state.scale)
        scale = jnp.where(good, grown, state.scale / 2)
        told = {"loss_scale": Sum(state.scale, jnp.ones((), jnp.float32))}
        scaled = Scaled(only_if(good, new, state.inner), scale, count % every)
        # What is left out here is no reason for a wrapper outside to leave it out again.
        return scaled, with_skipped(metrics, good) | told, jnp.ones_like(finite)

    return wrapper("loss_scale", step, init, propose)
