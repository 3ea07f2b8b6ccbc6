"""Batch statistics of all the data, exactly, in the place of running ones."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax

from funprop import trees
from funprop.checks import check_numbers, described
from funprop.layer import Layer, Recorded, check_layer, recorded
from funprop.layers.batch_norm import BatchNormParams, BatchSums
from funprop.params.statistics import holders, replaced

if TYPE_CHECKING:
    from funprop.typing import PyTree


def calibrate(model: Layer, params: PyTree, batches: Iterable[PyTree]) -> PyTree:
    """New params, in which each `batch_norm` has the mean and variance of all the data it sees.

    Runs the model in training mode, so each `batch_norm` is fed what the batches' own statistics
    normalise; sums are added up over the batches and divided once. So one whose input depends on no
    other batch statistics gets the exact mean and variance of its data, batches of any size. Call
    it after training, and before each evaluation.

    Args:
      model: a layer with `batch_norm` in it, under any combinators and rewrites.
      params: the model's.
      batches: inputs of the model, in any number of batches; read once, one at a time in memory.

    Returns:
      Params of the model: `mean` and `variance` (the mean square deviation) are new, all else is
      what was given.

    Source: Wu and Johnson, arXiv:2105.07576, section 3 (precise statistics instead of moving
    averages).

    Raises:
      ValueError: there are no batches; or the model has no `batch_norm`, or one whose params are
        made from others by `reparam`, so that there is nothing to set.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.batch_norm(), fp.dense(2))
      >>> params = model.init(jax.random.key(0), jnp.zeros((4, 1)))
      >>> params = fp.calibrate(model, params, [jnp.ones((1, 1)), jnp.array([[3.0], [5.0], [7.0]])])
      >>> params[0].mean.tolist(), params[0].variance.tolist()
      ([4.0], [5.0])
    """
    check_layer("model", model)
    if not isinstance(batches, Iterable) or hasattr(batches, "dtype"):
        raise TypeError(
            f"batches must be a list of inputs, or yield them, got {described(batches)}"
        )
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("batches must have at least one batch, got none")
    check_numbers("params", params)
    check_numbers("batch 0", first)
    # The first batch's mean is the point for all squares; in training it has no other effect.
    params = _with_moments(params, _sums(model, params, first, 0))
    total: Any = None
    for i, x in enumerate(itertools.chain([first], batches)):
        check_numbers(f"batch {i}", x)
        sums = _sums(model, params, x, i)
        total = sums if total is None else trees.add(total, sums)
    return _with_moments(params, total)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model: Layer, params: PyTree, x: PyTree, i: Any) -> list[BatchSums]:
    """The sums of each `batch_norm`, in the order of the model; compiled, all else is dead code."""
    key = jax.random.fold_in(jax.random.key(0), i)  # for a dropout, batch i's own noise
    records = recorded(model.forward(params, x, key)[1])
    found = jax.tree.leaves(records, is_leaf=lambda node: isinstance(node, BatchSums))
    return [node for node in found if isinstance(node, BatchSums)]


def _with_moments(params: PyTree, sums: list[BatchSums]) -> PyTree:
    """`params` with the moments of `sums` in the `batch_norm` that each belongs to.

    What is frozen is not calibrated.
    """
    if not sums:
        raise ValueError("model must have a batch_norm to calibrate, got none")
    if len(list(holders(params))) != len(sums):
        raise ValueError(
            f"params must have one BatchNormParams for each batch_norm, got "
            f"{len(list(holders(params)))} for {len(sums)}"
        )

    def new(node: BatchNormParams, record: BatchSums) -> BatchNormParams:
        mean, variance = record.moments()
        return node._replace(
            mean=mean.astype(node.mean.dtype), variance=variance.astype(node.variance.dtype)
        )

    return replaced(params, [Recorded(s) for s in sums], new)
