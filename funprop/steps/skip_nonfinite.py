"""Updates that would not be finite, left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.steps.step import Step, refuse_outside, run
from funprop.trees import Sum, is_float

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Guarded(NamedTuple):
    """The state of `skip_nonfinite`.

    Attributes:
      inner: the state of the step within.
      skipped: how many updates in a row were left out, `int32`.
      leaf: the first leaf of `inner` that the last of them would have made infinite or NaN.
      count: how many updates there were, `int32`.
    """

    inner: Any
    skipped: Any
    leaf: Any
    count: Any

    @property
    def params(self) -> Any:
        """As the step within has them."""
        return self.inner.params


def skip_nonfinite(step: Step, n: int = 10) -> Step:
    """The same step, an update left out whole where it would bring infinity or NaN.

    Params, optimizer state and whatever else the state holds stay as they are, bit by bit. Metrics
    tell the share that was `skipped`, and leave out the losses of what was. After `n` in a row
    `check` raises, which `fit` asks.

    Args:
      step: any step, but for `scan`, which goes around.
      n: how many updates in a row may be left out.

    Raises:
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
      FloatingPointError: update 1: params would become infinite or NaN, 1 in a row
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    refuse_outside("skip_nonfinite", step, {"scan": "an update is left out by itself"})

    def init(params: PyTree, key: Any) -> Guarded:
        zero = np.zeros((), np.int32)
        return Guarded(step.init(params, key), *(jnp.asarray(zero) for _ in range(3)))

    def update(state: Guarded, batch: PyTree, dloss: Any = None) -> tuple[Guarded, dict[str, Sum]]:
        new, metrics = run(step, state.inner, batch, dloss)
        inner, spoilt = unless_spoilt(state.inner, new)
        bad = jnp.any(spoilt)
        skipped = jnp.where(bad, state.skipped + 1, 0)
        leaf = jnp.where(bad, jnp.argmax(spoilt).astype(jnp.int32), state.leaf)
        return Guarded(inner, skipped, leaf, state.count + 1), with_skipped(metrics, bad)

    def check(state: Guarded) -> None:
        step.check(state.inner)
        times = int(state.skipped)
        if times >= n:
            paths = jax.tree_util.tree_flatten_with_path(state.inner)[0]
            leaf = trees.path_string(paths[int(state.leaf)][0])
            raise FloatingPointError(
                f"update {int(state.count)}: {leaf} would become infinite or NaN, {times} in a row"
            )

    return Step(init, jax.jit(update, donate_argnums=0), check, ("skip_nonfinite", *step.parts))


def unless_spoilt(old: PyTree, new: PyTree) -> tuple[PyTree, Any]:
    """`new`, or `old` where something finite would cease to be; and at which of the leaves."""
    spoilt = [
        jnp.any(jnp.isfinite(a) & ~jnp.isfinite(b)) if is_float(a) else jnp.zeros((), bool)
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    ]
    bad = jnp.any(jnp.stack(spoilt))
    return jax.tree.map(lambda a, b: jnp.where(bad, a, b), old, new), jnp.stack(spoilt)


def with_skipped(metrics: dict[str, Sum], bad: Any) -> dict[str, Sum]:
    """The metrics of an update that may have been left out, and whether it was."""
    kept = jax.tree.map(lambda part: jnp.where(bad, jnp.zeros_like(part), part), metrics)
    before = metrics.get("skipped", Sum(jnp.zeros((), jnp.float32), None)).total
    total = jnp.maximum(before, bad.astype(jnp.float32))
    return kept | {"skipped": Sum(total, jnp.ones((), jnp.float32))}
