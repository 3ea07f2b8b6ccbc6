"""Clipping the gradient of every example: the bounded influence that privacy is made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.arguments import check_trainable, objective_meant, run
from funprop.gradients import Gradient, backprop, metrics_of
from funprop.layer import Layer, recorded
from funprop.located import check_params
from funprop.properties import mixing, refuse_mixing
from funprop.quantities.book import squares_of, sum_of, without_marks
from funprop.quantities.booked import booking
from funprop.quantities.closed_form import sum_squares
from funprop.quantities.squared_norms import squared_norms, total
from funprop.quantities.weighted import weighted, weighted_sum_of
from funprop.transforms.microbatch import batch_size
from funprop.transforms.transformed import Transformed, call, made_of, refuse, what_mixes
from funprop.trees import Sum, wide_dtype
from funprop.values import number_within, real_number, whole_number

if TYPE_CHECKING:
    from funprop.gradients import GradFn
    from funprop.typing import Array, Float, PyTree

OUTSIDE: dict[str, str] = dict.fromkeys(
    (
        "microbatch",
        "gradient_statistics",
        "data_parallel",
        "ordered",
        "noise",
    ),
    "it must be clipped example by example, before they are summed",
)


def clip_per_example(
    objective: Layer | GradFn, norm: float, *, noise: float = 0.0, budget: int | None = None
) -> Transformed:
    """The sum of every example's gradient, each scaled to an L2 norm of at most `norm`.

    With `g_i` the gradient of example `i`,

        sum_i min(1, norm / |g_i|) g_i + noise norm e,    e normal, drawn from the key.

    `|g_i|` is taken over all trained params together. No example then moves the sum by more than
    `norm`, which is what differential privacy needs; without noise it is a robust gradient.

    Of an objective, a backward pass finds the norms, layer by layer. The sum is made in one of two
    ways. **Book-keeping**, the fast one: that pass keeps what each layer's part of the sum is made
    of, the cotangent of its output or, where that is smaller, each example's gradient; so it takes
    one backward pass and a little more, and up to two and a half times its memory. **Two passes**,
    the lean way: another backward pass, with the losses weighted by the factors, in the memory of
    one. It is book-keeping if what is kept is within `budget`, and no `tap` watches the cotangents,
    which are those of the sum. A batch is clipped as it is split:
    `microbatch(clip_per_example(...), n)` is the same. Dropout draws the same noise for norms and
    sum.

    Of any other grad_fn, every example's gradient is made by `vmap`, each with a key of its own.

    Loss, weight and the other metrics are those of the loss itself; "clipped" counts the examples
    that were. An example's weight in the batch scales its loss, and so its gradient before it is
    clipped. An example whose norm is infinite (in float32, from 1.8e19 on) has no direction to be
    clipped to, and adds nothing; a NaN is a mistake, and stays.

    Args:
      objective: a layer from a batch to a `Sum`, as `objective(model, loss)` makes it, or any
        grad_fn. The examples are along the first axis of every leaf of a batch, and of what layers
        give to each other; none may mix them.
      norm: the largest norm of an example's gradient.
      noise: the deviation of the noise in every element of the sum, in units of `norm`; what the
        privacy is computed from, with the sizes of batch and data, by an accountant.
      budget: bytes that may be kept for the sum; half as many again as params and residuals take,
        if not given (so `remat` takes two passes), and none with 0.

    Source: Abadi et al., arXiv:1607.00133 (DP-SGD); Goodfellow, arXiv:1510.01799, Li et al.,
    arXiv:2110.05679, and Bu et al., arXiv:2210.00038 (norms without gradients).

    Raises:
      ValueError: `norm` is not positive and finite, or `noise` or `budget` negative; the grad_fn is
        one that must be outside; or, when called, the batch has leaves of unequal length, there is
        noise and no key, or there is a key and a layer mixes examples (`batch_norm`).
      TypeError: `objective` is neither a layer nor a grad_fn.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> fp.backprop(line)(params, batch).grads.w.tolist()  # -2 and -8
      [[-10.0]]
      >>> gradient = clip_per_example(line, 3.0)(params, batch)
      >>> gradient.grads.w.tolist(), float(gradient.metrics["clipped"].mean)
      ([[-5.0]], 0.5)
    """
    budget = None if budget is None else whole_number(budget, "budget", 0)
    norm = number_within(norm, "norm", lambda x: 0 < x < math.inf, "positive and finite")
    noise = real_number(noise, "noise")
    if not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"noise must be at least 0 and finite, got {noise}")
    if isinstance(objective, Layer):
        grad_fn = backprop(objective)
    elif callable(objective):
        grad_fn = objective
    else:
        got = type(objective).__name__
        raise TypeError(f"objective must be a layer or a grad_fn, got {got}")
    refuse("clip_per_example", made_of(grad_fn), OUTSIDE)
    if isinstance(objective, Layer) and objective.children:
        function = functools.partial(by_norms, objective, norm, budget=budget)
    else:
        function = functools.partial(_by_rows, grad_fn, norm)
    # In turn, the gradient alone: to clip is to run it example by example, all mapped.
    clipped = Transformed("clip_per_example", grad_fn, function, lambda inner: inner)
    if not noise:
        return clipped
    noisy = functools.partial(_noisy, deviation=noise * norm)
    return Transformed(
        *("noise", clipped, functools.partial(noisy, clipped)),
        in_turn=lambda inner: Transformed("noise", inner, functools.partial(noisy, inner)),
    )


def by_norms(
    objective: Layer,
    norm: Any,
    params: PyTree,
    batch: PyTree,
    key: Any,
    dloss: Any,
    *,
    budget: int | None = None,
) -> Gradient:
    """By a backward pass for the norms; and, for the sum, what it kept or another one."""
    n = batch_size(batch)
    refuse_mixing("clip_per_example", mixing(objective, key), sharded=False)
    with objective_meant(objective, params, batch):
        check_params(objective, params, batch)
        check_trainable(params)
        once = booking(objective, budget, params, batch, key) if n else None
        watched = once or squared_norms(objective)
        (loss, weight), residuals = run(watched, params, batch, key)
    records = recorded(without_marks(residuals))
    dtotal = jnp.ones_like(loss) if dloss is None else jnp.asarray(dloss, loss.dtype)
    dy = Sum(dtotal, jnp.zeros_like(weight))
    found, _ = watched.backward(params, residuals, dy)
    squares = squares_of(found) if once else total(found)
    factors, clipped = _factors(squares, norm, dtotal, n, dloss)
    clipped = clipped._replace(weight=_with_weight(batch, clipped.weight))
    if once:
        grads = sum_of(objective, params, residuals, found, factors)
    else:
        grads, _ = weighted(objective, factors).backward(params, residuals, dy)
    return Gradient(grads, loss, weight, {**metrics_of(records), "clipped": clipped}, records)


def _with_weight(batch: PyTree, n: Any) -> Any:
    """How many of a batch's `n` examples have weight: padding has none."""
    if not isinstance(batch, tuple) or len(batch) != 3:
        return n
    weights = jnp.asarray(batch[2]).astype(bool)
    return weights.any(tuple(range(1, weights.ndim))).sum(dtype=n.dtype)


def _by_rows(
    grad_fn: GradFn, norm: float, params: PyTree, batch: PyTree, key: Any, dloss: Any
) -> Gradient:
    """From every example's gradient."""
    n = batch_size(batch)
    refuse_mixing("clip_per_example", what_mixes(grad_fn, key), sharded=False)
    rows = jax.tree.map(lambda leaf: leaf[:, None], batch)
    keys = None if key is None else jax.random.split(key, n)
    each = jax.vmap(lambda row, key: call(grad_fn, params, row, key, dloss))(rows, keys)
    dtotal = jnp.ones((), each.loss.dtype) if dloss is None else jnp.asarray(dloss)
    factors, clipped = _factors(sum_squares(each.grads), norm, dtotal, n, dloss)
    rest = jax.tree.map(lambda leaf: leaf.sum(0), each._replace(grads=None))
    counted = (each.weight != 0).sum(dtype=clipped.weight.dtype)
    metrics = {**rest.metrics, "clipped": clipped._replace(weight=counted)}
    return rest._replace(grads=weighted_sum_of(each.grads, factors), metrics=metrics)


def _factors(
    squares: Float[Array, " b"], norm: float, dtotal: Any, n: int, dloss: Any
) -> tuple[Float[Array, " b"], Sum]:
    """`min(1, norm / |g|)` of each example, and how many were clipped.

    The gradients are those for `dtotal` (in 16 bits they may need it), the norm is meant for one.
    With a `dloss`, infinity means that it was too large: then it must be seen, and stays.
    """
    squares = jnp.broadcast_to(jnp.asarray(squares), n)
    found = jnp.sqrt(jnp.maximum(squares, 0)) / jnp.abs(dtotal).astype(squares.dtype)
    above = found > norm
    factors = jnp.where(above, norm / jnp.where(above, found, 1), 1)
    if dloss is not None:
        factors = jnp.where(found == jnp.inf, jnp.nan, factors)
    return factors, Sum(above.sum(dtype=found.dtype), jnp.asarray(n, found.dtype))


def _noisy(
    clipped: Callable[..., Gradient],
    params: PyTree,
    batch: PyTree,
    key: Any,
    dloss: Any,
    *,
    deviation: float,
) -> Gradient:
    """The clipped sum with noise added, once."""
    if key is None:
        raise ValueError("key must be given to draw the noise from, got none")
    key, own = jax.random.split(key)
    gradient = clipped(params, batch, key, dloss)
    leaves, tree = jax.tree.flatten(gradient.grads)

    def add(key: Any, leaf: Array) -> Array:
        wide = wide_dtype(leaf.dtype)
        scale = deviation if dloss is None else deviation * jnp.asarray(dloss, wide)
        return (leaf.astype(wide) + scale * jax.random.normal(key, leaf.shape, wide)).astype(
            leaf.dtype
        )

    keys = jax.random.split(own, max(len(leaves), 1))
    noisy = [add(k, leaf) for k, leaf in zip(keys, leaves, strict=False)]
    return gradient._replace(grads=tree.unflatten(noisy))
