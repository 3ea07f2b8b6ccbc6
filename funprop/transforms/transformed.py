"""A grad_fn that knows what it is made of, so that an order that is wrong can be refused."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax

from funprop.arguments import check_given, check_grad_fn
from funprop.checks import described
from funprop.gradients import Gradient
from funprop.metrics import metric_sum
from funprop.properties import first_that, mixing
from funprop.trees import sum_of

if TYPE_CHECKING:
    from funprop.gradients import GradFn
    from funprop.layer import Layer


@dataclasses.dataclass(frozen=True, eq=False)
class Transformed:
    """A grad_fn made of another.

    Attributes:
      name: of the transform.
      inner: what it was made of.
      function: `(params, batch, key, dloss) -> Gradient`.
      in_turn: `grad_fn -> grad_fn`: what this transform does around another, in a form that calls
        it with values where it is run without `jit`: part after part, neither mapped nor on other
        devices. For those that look into a run; `None` where there is no such form.

    Example:
      >>> import funprop as fp
      >>> fp.microbatch(fp.from_loss(lambda params, batch: (params, 1)), 4)
      microbatch(grad_fn)
    """

    name: str
    inner: Any
    function: Callable[..., Gradient]
    in_turn: Callable[[GradFn], GradFn] | None = None

    @property
    def plain(self) -> GradFn:
        """The grad_fn within all transforms: the one whose loss it is."""
        return getattr(self.inner, "plain", self.inner)

    def __call__(self, params: Any, batch: Any, key: Any = None, dloss: Any = None) -> Gradient:
        check_given(batch, key, dloss)
        return self.function(params, batch, key, dloss)

    def __repr__(self) -> str:
        inner = self.inner
        if not isinstance(inner, Transformed):
            inner = getattr(inner, "__name__", type(inner).__name__)
        return f"{self.name}({inner})"


def made_of(grad_fn: GradFn) -> list[str]:
    """The names of the transforms that a grad_fn is made of, from the outermost in.

    Raises:
      TypeError: what was given is no grad_fn.
    """
    check_grad_fn(grad_fn)
    names = []
    while isinstance(grad_fn, Transformed):
        names.append(grad_fn.name)
        grad_fn = grad_fn.inner
    return names


def _innermost(grad_fn: Any) -> Any:
    while isinstance(grad_fn, Transformed):
        grad_fn = grad_fn.inner
    return grad_fn


def objective_of(grad_fn: GradFn) -> Layer | None:
    """The objective whose gradient it is, whatever transforms are around; `None` where it has none:
    of a loss function, nobody can tell what it does with the examples of a batch."""
    return getattr(_innermost(grad_fn), "objective", None)


def what_draws(grad_fn: GradFn) -> str | None:
    """What in a grad_fn draws from its key, if anything does."""
    if "noise" in made_of(grad_fn):
        return "the noise of clip_per_example"
    objective = objective_of(grad_fn)
    if objective is not None:
        return first_that("draws", objective) if objective.draws else None
    return "loss_fn" if getattr(_innermost(grad_fn), "draws", False) else None


def what_mixes(grad_fn: GradFn, key: Any) -> str | None:
    """What in a grad_fn mixes the examples of a batch when it is run with that key, if it says so.
    A loss function that takes no key trains without one."""
    objective, inner = objective_of(grad_fn), _innermost(grad_fn)
    if objective is not None:
        return mixing(objective, key)
    in_training = key is not None or not getattr(inner, "draws", False)
    return "loss_fn" if getattr(inner, "mixes", False) and in_training else None


def refuse(outer: str, parts: Iterable[str], wrong: dict[str, str]) -> None:
    """Raise where something may not be within `outer`: a transform, or a wrapper of steps.

    Args:
      outer: what is about to be applied.
      parts: of what it would be applied to: `made_of(grad_fn)`, `step.parts`.
      wrong: why not, by the name of what may not be within.
    """
    for name in parts:
        if name in wrong:
            raise ValueError(f"{name} must be outside {outer}, {name}({outer}(...)): {wrong[name]}")


def refuse_population(outer: str, parts: Iterable[str]) -> None:
    """Raise where a wrapper would treat the members of a population as one."""
    refuse(outer, parts, {"population": "each member is wrapped by itself"})


def call(grad_fn: GradFn, params: Any, batch: Any, key: Any, dloss: Any) -> Gradient:
    """`grad_fn` called with `dloss` only where there is one: a user's own need not take it.

    Raises:
      TypeError: what it gives is no `Gradient`; or there is a `dloss`, which it does not take.
    """
    if dloss is not None and not _takes_dloss(grad_fn):
        raise TypeError(
            "grad_fn must take a fourth argument, dloss, the cotangent of the loss, under "
            f"loss_scale, got {described(grad_fn)}"
        )
    found = grad_fn(params, batch, key, *(() if dloss is None else (dloss,)))
    if not isinstance(found, Gradient):
        raise TypeError(
            "grad_fn must give a Gradient, as that of from_loss(loss_fn) does, got "
            f"{described(found)}"
        )
    numbers = jax.tree.leaves((found.loss, found.weight, found.metrics))
    if any(isinstance(leaf, int | float) for leaf in numbers):  # as `len(batch)` is
        metrics = {name: metric_sum(name, value) for name, value in found.metrics.items()}
        loss, weight = sum_of(found.loss, found.weight)
        found = found._replace(loss=loss, weight=weight, metrics=metrics)
    return found


def _takes_dloss(grad_fn: GradFn) -> bool:
    try:
        signature = inspect.signature(grad_fn)
    except (TypeError, ValueError):  # it cannot be told
        return True
    try:
        signature.bind(None, None, None, None)
    except TypeError:
        return False
    return True
