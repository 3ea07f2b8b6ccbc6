"""grad_fn: `(params, batch, key=None) -> Gradient`. By hand from an objective, or by JAX from a
loss function; whatever takes one takes the other. A last argument, `dloss`, is the cotangent of the
loss, one if not given; `grads` come multiplied by it, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.arguments import (
    check_given,
    check_grad_fn,
    check_trainable,
    objective_meant,
    run,
)
from funprop.checks import check_function, described, is_number
from funprop.jitted import Jitted
from funprop.keys import takes_key, with_key
from funprop.layer import Layer, Recorded, check_layer, recorded
from funprop.located import check_params
from funprop.metrics import COLUMNS, check_names, metric_sum
from funprop.params.frozen import trained, with_trained
from funprop.params.statistics import new_statistics
from funprop.reprs import of_fields
from funprop.trees import Sum

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

GradFn = Callable[..., "Gradient"]


class Gradient(NamedTuple):
    """What a grad_fn gives: sums over the batch's examples, and the weight of that sum.

    Sums add up exactly over microbatches, devices and masks; `step` divides by `weight`, once.

    Attributes:
      grads: the gradient of `loss` with respect to params, in their structure.
      loss: the sum of the loss's terms, a scalar.
      weight: the sum of the terms' weights, a scalar.
      metrics: a `Sum` by name.
      recorded: what layers recorded (see `Recorded`), each in its place.
    """

    grads: Any
    loss: Any
    weight: Any
    metrics: dict[str, Sum]
    recorded: Any = ()

    def __repr__(self) -> str:
        return of_fields(self)


def backprop(objective: Layer) -> GradFn:
    """The grad_fn of an objective by its own backward pass; JAX differentiates nothing.

    It has the objective as its attribute `objective`, for transforms and steps to ask what it is.

    Args:
      objective: any layer from a batch to a `Sum`, as `objective(model, loss)` makes it.

    Raises:
      TypeError: `objective` is no layer; or, when called, at trace time: it gives no `Sum` (it may
        be a model without a loss), or the key is no random key.
      ValueError: when called, at trace time: params that are not this objective's.

    Example:
      >>> import funprop as fp
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> gradient = backprop(line)(params, batch)
      >>> float(gradient.loss), float(gradient.weight), gradient.grads.w.tolist()
      (5.0, 2.0, [[-10.0]])
    """
    check_layer("objective", objective, "objective(model, loss)")

    def grad_fn(params: PyTree, batch: PyTree, key: Any = None, dloss: Any = None) -> Gradient:
        check_given(batch, key, dloss)
        with objective_meant(objective, params, batch):
            check_params(objective, params, batch)
            check_trainable(params)
            (loss, weight), residuals = run(objective, params, batch, key)
        dtotal = jnp.ones_like(loss) if dloss is None else jnp.asarray(dloss, loss.dtype)
        grads, _ = objective.backward(params, residuals, Sum(dtotal, jnp.zeros_like(weight)))
        records = recorded(residuals)
        return Gradient(grads, loss, weight, metrics_of(records), records)

    setattr(grad_fn, "objective", objective)  # noqa: B010  # functions declare no fields
    grad_fn.__qualname__ = f"backprop({objective})"
    return grad_fn


def metrics_of(records: PyTree) -> dict[str, Sum]:
    """The records that have a name, by that name.

    Raises:
      ValueError: two have the same.
    """
    found: dict[str, Sum] = {}
    for record in jax.tree.leaves(records, is_leaf=lambda node: isinstance(node, Recorded)):
        if record.metric in found:
            raise ValueError(f"metric {record.metric!r} is recorded twice: each needs its own name")
        if record.metric:
            found[record.metric] = record.value
    return found


def from_loss(loss_fn: Callable[..., Any], *, mixes: bool = False) -> GradFn:
    """The grad_fn of anybody's JAX loss, by `jax.value_and_grad`.

    Args:
      loss_fn: `(params, batch)` or `(params, batch, key)` to `(total, weight)`, `(total, weight,
        metrics)` or `(total, weight, metrics, statistics)`: sums over the batch's examples, a `Sum`
        by name, and the next of what a `Statistic` among the params holds (batch statistics of a
        Flax, Equinox or Haiku model), which a step carries. For a mean over `n` examples return
        `(mean * n, n)`: `step` divides by the weight, so that of `(mean, n)` the gradient is `n`
        times too small. No number tells a sum from a mean; `verify(from_loss(loss_fn), params,
        batch, reference=loss_fn)` looks whether the total grows with the batch as the weight does.
      mixes: whether an example's terms in training depend on the other examples of the batch, as
        with BatchNorm of Flax. Nobody can tell it of a function; where it is said, `microbatch`,
        `clip_per_example`, `data_parallel` and whatever else takes a batch apart refuse it: run
        with a key, or with none too where `loss_fn` takes none.

    Raises:
      TypeError: `loss_fn` is no such function; or, when called, at trace time: it gives something
        else, a leaf of params is not floating, or the key is no random key.

    Example:
      >>> def squares(w, batch):
      ...     x, y = batch
      ...     return ((x * w - y) ** 2).sum(), x.size
      >>> batch = jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0])
      >>> gradient = from_loss(squares)(jnp.array(1.0), batch)
      >>> float(gradient.loss), float(gradient.weight), float(gradient.grads)
      (5.0, 2.0, -10.0)
    """
    check_function("loss_fn", loss_fn, "(params, batch) or (params, batch, key)")
    draws = takes_key(loss_fn, "loss_fn")
    loss_fn = with_key(loss_fn, "loss_fn")

    def scaled(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> tuple[Any, Any]:
        loss, aux = total(params, batch, key)
        scaled = loss if dloss is None else loss * jnp.asarray(dloss, loss.dtype)
        # Widened, as what is told is summed on, over parts and devices.
        return scaled, (trees.widen(loss), *aux)

    def total(params: PyTree, batch: PyTree, key: Any) -> tuple[Float[Array, ""], Any]:
        loss = loss_fn(params, batch, key)
        if not isinstance(loss, tuple) or len(loss) not in (2, 3, 4):
            got = trees.spec_string(loss) if hasattr(loss, "dtype") else type(loss).__name__
            raise TypeError(
                "loss_fn must return (total, weight), then metrics and statistics if there are "
                f"any, sums over the batch, got {got}"
            )
        total, weight, *rest = loss
        metrics, new = (*rest, *({}, None)[len(rest) :])
        if not (is_number(total) and is_number(weight)):
            raise TypeError(
                "loss_fn must return a scalar total and weight, got "
                f"{described(total)} and {described(weight)}"
            )
        if jnp.shape(total) or jnp.shape(weight):
            raise TypeError(
                "loss_fn must return a scalar total and weight, got shapes "
                f"{jnp.shape(total)} and {jnp.shape(weight)}"
            )
        check_names(metrics or {})
        total = jnp.asarray(total)
        if not jnp.issubdtype(total.dtype, jnp.floating):
            raise TypeError(f"loss_fn must return a real, floating total, got {total.dtype}")
        # A count: of 70,000 terms it is infinite in float16, and 257 are 256 in bfloat16.
        weight = jnp.asarray(weight, trees.wide_dtype(total.dtype))
        metrics = {name: metric_sum(name, found) for name, found in dict(metrics or {}).items()}
        return total, (weight, metrics, new_statistics(params, new, weight))

    def grad_fn(params: PyTree, batch: PyTree, key: Any = None, dloss: Any = None) -> Gradient:
        check_given(batch, key, dloss)
        check_trainable(params)

        def of_trained(part: PyTree) -> Any:
            return scaled(with_trained(params, part), batch, key, dloss)

        differentiate = jax.value_and_grad(of_trained, has_aux=True)
        (_, (loss, weight, metrics, records)), grads = differentiate(trained(params))
        return Gradient(grads, loss, weight, metrics, records)

    setattr(grad_fn, "draws", draws)  # noqa: B010  # functions declare no fields
    setattr(grad_fn, "mixes", mixes)  # noqa: B010
    grad_fn.__qualname__ = f"from_loss({getattr(loss_fn, '__name__', type(loss_fn).__name__)})"
    return grad_fn


def measure(grad_fn: GradFn) -> Callable[[PyTree, PyTree], dict[str, Sum]]:
    """The loss and metrics of a grad_fn for params as they are: no key, and no gradient.

    Compiled, the backward pass is dead code and is not run. Of a transformed grad_fn it is the one
    within all transforms that is measured: they change how a gradient is made, not what the loss
    is, and may want a key, or a batch that divides.

    Returns:
      `(params, batch) -> {"loss": Sum, name: Sum, ...}`, jitted.

    Raises:
      TypeError: `grad_fn` is none.
      ValueError: when called, an integer of the batch does not fit in the 32 bits that JAX has.

    Example:
      >>> import funprop as fp
      >>> line = backprop(fp.objective(fp.dense(1, bias=False), fp.mean_squared()))
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> float(measure(line)(params, (jnp.ones((1, 1)), jnp.zeros((1, 1))))["loss"].mean)
      1.0
    """
    check_grad_fn(grad_fn)
    plain: GradFn = getattr(grad_fn, "plain", grad_fn)

    def measured(params: PyTree, batch: PyTree) -> dict[str, Sum]:
        return losses(plain(params, batch))

    return Jitted(measured)


def losses(gradient: Gradient) -> dict[str, Sum]:
    """The loss and the metrics of a `Gradient`, by name.

    Raises:
      ValueError: a metric has the name of something else that `fit` tells.
    """
    check_names((n for n in gradient.metrics if not n.startswith("gradient_norm/")), COLUMNS)
    return {"loss": Sum(gradient.loss, gradient.weight), **gradient.metrics}
