"""Updates that would not be finite, left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.params.frozen import trained
from funprop.reprs import of_fields
from funprop.steps.step import Step, parts_of, proposed, wrapper
from funprop.transforms.transformed import refuse, refuse_population
from funprop.trees import Sum, is_float, path_string
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, PyTree


class Guarded(NamedTuple):
    """The state of `skip_nonfinite`.

    Attributes:
      inner: the state of the step within.
      skipped: how many updates in a row were left out, `int32`.
      leaf: the first leaf of params whose gradient in the last of them was infinite or NaN; their
        number where it was the loss alone, and more where it was the state of a step that has no
        gradient to look at (`fused_step`).
      count: how many updates there were, `int32`.
    """

    inner: Any
    skipped: Any
    leaf: Any
    count: Any

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


def skip_nonfinite(step: Step, n: int = 10) -> Step:
    """The same step, an update left out whole where it would bring infinity or NaN.

    Where the loss or the gradient is not finite, params, optimizer state and whatever else the
    state holds stay as they are, bit by bit. Metrics tell the share that was `skipped`, and leave
    out the losses of what was. After `n` in a row nothing
    is applied any more, and `check` raises, which `fit` asks. Where a finite
    gradient makes an update that is not (a square that overflows, say), those numbers alone stay as
    they are: to look at the whole update first would hold the state twice.

    Args:
      step: any step, but for `scan`, which goes around.
      n: how many updates in a row may be left out.

    Raises:
      TypeError: `step` is none.
      ValueError: `n` is not positive, or the step is a `scan`.
      FloatingPointError: from `check`.

    Example:
      >>> import optax, funprop as fp
      >>> line = fp.from_loss(lambda w, batch: ((w * batch).sum(), batch.size))
      >>> train = skip_nonfinite(fp.step(line, optax.sgd(1.0)), n=1)
      >>> state, metrics = train.update(train.init(jnp.array(2.0), None), jnp.array([jnp.inf]))
      >>> float(state.params), float(metrics["skipped"].mean)
      (2.0, 1.0)
      >>> train.check(state)
      Traceback (most recent call last):
      FloatingPointError: update 1: the gradient of params is infinite or NaN, 1 in a row
    """
    n = whole_number(n, "n", 1)
    refuse("skip_nonfinite", parts_of(step), {"scan": "an update is left out by itself"})
    refuse_population("skip_nonfinite", step.parts)

    def init(params: PyTree, key: Any) -> Guarded:
        return Guarded(step.init(params, key), *(jnp.zeros((), jnp.int32) for _ in range(3)))

    def propose(
        state: Guarded, batch: PyTree, dloss: Any = None
    ) -> tuple[Guarded, dict[str, Sum], Any]:
        new, metrics, finite = proposed(step, state.inner, batch, dloss)
        ended = state.skipped >= n
        one = (~ended).astype(jnp.int32)
        good = jnp.all(finite) & ~ended
        skipped = jnp.where(good, 0, state.skipped + one)
        leaf = jnp.where(good | ended, state.leaf, jnp.argmin(finite).astype(jnp.int32))
        guarded = Guarded(only_if(good, new, state.inner), skipped, leaf, state.count + one)
        return guarded, with_skipped(metrics, good), jnp.ones_like(finite)

    def check(state: Guarded) -> None:
        times = int(state.skipped)
        if times >= n:
            what = _named(int(state.leaf), trained(state.params))
            raise FloatingPointError(
                f"update {int(state.count)}: {what} is infinite or NaN, {times} in a row"
            )

    return wrapper("skip_nonfinite", Guarded, step, init, propose, check)


def _named(number: int, params: PyTree) -> str:
    """What a number among those of `finite` stands for."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    if number < len(paths):
        return f"the gradient of {path_string(paths[number][0]) or 'params'}"
    return "the loss" if number == len(paths) else "what the optimizer keeps"


def only_if(good: Any, new: PyTree, old: PyTree) -> PyTree:
    """`new` if `good`, else `old`; but nothing that was finite ceases to be."""

    def chosen(n: Any, o: Any) -> Any:
        return jnp.where(good & jnp.isfinite(n) if is_float(n) else good, n, o)

    return jax.tree.map(chosen, new, old)


def was_skipped(metrics: dict[str, Sum]) -> Bool[Array, ""] | None:
    """Whether an update was left out; `None` where nothing leaves any out."""
    return metrics["skipped"].total > 0 if "skipped" in metrics else None


def with_skipped(metrics: dict[str, Sum], good: Any) -> dict[str, Sum]:
    """The metrics of an update that may have been left out, and whether it was."""
    kept = jax.tree.map(lambda part: jnp.where(good, part, jnp.zeros_like(part)), metrics)
    before = metrics.get("skipped", Sum(jnp.zeros((), jnp.float32), None)).total
    total = jnp.maximum(before, 1 - good.astype(jnp.float32))
    return kept | {"skipped": Sum(total, jnp.ones((), jnp.float32))}
