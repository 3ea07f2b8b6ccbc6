"""Averages of params over the updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.checks import described
from funprop.params.frozen import trained, with_trained
from funprop.reprs import of_fields
from funprop.steps.skip_nonfinite import was_skipped
from funprop.steps.step import Step, parts_of, proposed, wrapper
from funprop.transforms.transformed import refuse, refuse_population
from funprop.trees import Sum, is_float, widen
from funprop.values import number_within

if TYPE_CHECKING:
    from funprop.typing import PyTree

UNKNOWN = (  # what JAX raises where the value of a traced number is asked for
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Averaged(NamedTuple):
    """The state of `ema`.

    Attributes:
      inner: the state of the step within.
      sums: the average of the params that are trained, in float32 at least.
      count: how many updates were averaged, `int32`.
    """

    inner: Any
    sums: Any
    count: Any

    def __repr__(self) -> str:
        return of_fields(self)

    @property
    def params(self) -> Any:
        """Those that are trained on, not averaged."""
        return self.inner.params

    @property
    def average(self) -> Any:
        """The averaged params, in the dtypes of `params`: those to predict with."""
        found = jax.tree.map(lambda a, p: a.astype(p.dtype), self.sums, trained(self.params))
        return with_trained(self.params, found)


def ema(step: Step, decay: float | Callable[[Any], Any]) -> Step:
    """The same step, keeping an exponential moving average of its params in `state.average`.

    Wrappers around it hand it on: `skip_nonfinite(ema(...))` has it in `state.average` too.

    After each update `average = decay average + (1 - decay) params`, from the first params on;
    summed in float32 at least, or an average of bfloat16 would stand still.

    Args:
      step: any step, but for `scan`, which goes around.
      decay: from 0 to 1; or a function of the number of updates so far, which is traced, for
        `jnp.minimum` rather than `min`. The plain average of all that were (Polyak and Juditsky
        1992) is `lambda n: n / (n + 1)`.

    Raises:
      TypeError: `step` is none, `decay` no number; or, at an update's trace, its function gives
        none, or asks for the value of the number that it is given.
      ValueError: `decay` is out of its range; or the step is a `scan`.

    Example:
      >>> import optax, funprop as fp
      >>> grow = fp.from_loss(lambda w, batch: (-w * batch.sum(), batch.size))
      >>> train = ema(fp.step(grow, optax.sgd(1.0)), 0.5)
      >>> state = train.init(jnp.array(0.0), None)
      >>> state, _ = train.update(state, jnp.ones(4))
      >>> float(state.params), float(state.average)
      (1.0, 0.5)
    """
    if not callable(decay):
        decay = number_within(decay, "decay", lambda d: 0 <= d <= 1, "from 0 to 1")
    refuse("ema", parts_of(step), {"scan": "an average is taken of every update"})
    refuse_population("ema", step.parts)

    def init(params: PyTree, key: Any) -> Averaged:
        inner = step.init(params, key)
        sums = jax.tree.map(lambda p: jnp.copy(_wide(p)), trained(inner.params))
        return Averaged(inner, sums, jnp.zeros((), jnp.int32))

    def propose(
        state: Averaged, batch: PyTree, dloss: Any = None
    ) -> tuple[Averaged, dict[str, Sum], Any]:
        inner, metrics, finite = proposed(step, state.inner, batch, dloss)
        share = _at(decay, state.count) if callable(decay) else decay

        def averaged(a: Any, p: Any) -> Any:
            return a + jnp.asarray(1 - share, a.dtype) * (_wide(p) - a) if is_float(p) else p

        sums = jax.tree.map(averaged, state.sums, trained(inner.params))
        new, old = (sums, state.count + 1), (state.sums, state.count)
        if (skipped := was_skipped(metrics)) is not None:  # no update, and so none to average
            new = jax.tree.map(lambda n, o: jnp.where(skipped, o, n), new, old)
        return Averaged(inner, *new), metrics, finite

    return wrapper("ema", Averaged, step, init, propose)


def _at(decay: Callable[[Any], Any], count: Any) -> Any:
    """The decay after `count` updates, which are traced."""
    try:
        share = decay(count)
    except UNKNOWN:  # which have a page to say, not about decay
        raise TypeError(
            "decay must be a function of a traced number: use jnp.minimum and jnp.where in it, not "
            "min, if or float"
        ) from None
    if not hasattr(share, "__float__") or jnp.shape(share) != ():
        raise TypeError(f"decay must give one number, got {described(share)}")
    return share


def _wide(p: Any) -> Any:
    return widen(p) if is_float(p) else p
