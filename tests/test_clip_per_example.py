"""Clipping by norms alone is the definition: each example's gradient, scaled, and summed."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.per_example import outer_squares, sum_squares
from funprop.rewrites.freeze import trained, with_trained
from funprop.rewrites.squared_norms import squared_norms, total
from funprop.transforms.clip_per_example import by_norms
from tests.cases import (
    ALL,
    COMBINATORS,
    CONVOLUTIONS,
    MODELS,
    NORMALISATIONS,
    RECURRENT,
    REWRITES,
    Case,
    both,
    build,
    labels,
    normal,
    positive,
    quickly,
    tied,
)


def each_gradient(objective: fp.Layer, params: Any, batch: Any, key: Any) -> Any:
    """By the definition: `jax.grad` of the loss with all weights zero but one, the same noise."""
    x, targets, *weights = batch
    n = len(jax.tree.leaves(x)[0])

    def loss(p: Any, one: Any) -> Any:
        w = one.reshape(n, *(1,) * (weights[0].ndim - 1)) * weights[0] if weights else one
        return objective.forward(with_trained(params, p), (x, targets, w), key)[0].total

    return jax.vmap(jax.grad(loss), (None, 0))(trained(params), jnp.eye(n))


def norms_of(grads: Any) -> Any:
    return jnp.sqrt(sum_squares(grads))


def clipped_sum(grads: Any, norm: Any) -> Any:
    norms = norms_of(grads)
    return jax.tree.map(
        lambda g: jnp.tensordot(jnp.minimum(1, norm / jnp.where(norms == 0, 1, norms)), g, 1), grads
    )


def check(objective: fp.Layer, params: Any, batch: Any, key: Any = None) -> None:
    """Some are clipped and some are not; both grads and count are those of the definition."""

    def all_of_it(params: Any, batch: Any, key: Any) -> Any:
        grads = each_gradient(objective, params, batch, key)
        norms = norms_of(grads)
        norm = jnp.sort(norms)[len(norms) // 2] * 0.999
        got = clip(norm)(params, batch, key)
        return got, fp.backprop(objective)(params, batch, key), grads, norms, norm

    def clip(norm: Any) -> Any:
        return functools.partial(by_norms, objective, norm, dloss=None)

    got, plain, grads, norms, norm = quickly(all_of_it)(params, batch, key)
    chex.assert_trees_all_close(got.grads, clipped_sum(grads, norm), rtol=1e-10, atol=1e-12)
    clipped = got.metrics.pop("clipped")
    assert clipped == (int((norms > norm).sum()), len(norms))
    assert 0 < clipped.total and (norms <= norm).any()
    chex.assert_trees_all_close(got[1:4], plain[1:4], rtol=1e-6)
    chex.assert_trees_all_close(*(jax.tree.leaves(g.recorded) for g in (got, plain)), rtol=1e-12)


# Layers that have params and treat each row of their first axis alone.
MIXING = {"dense-one-axis", "batch_norm"}
TRAINED = [
    case
    for case in ALL
    if case.id not in MIXING
    and jax.tree.leaves(
        jax.eval_shape(case.layer.init, jax.random.key(0), case.x(np.random.default_rng(0)))
    )
]
OBJECTIVES = {"objective", "gpt", "llama"}
EXTRA = [
    Case("dense-long", fp.dense(3), normal(3, 5, 2)),  # made
    Case("dense-gram", fp.dense(9), normal(3, 2, 8)),  # not made
    Case(
        "group_norm-frozen",
        fp.freeze(fp.serial(fp.dense(4), fp.layer_norm()), "dense"),
        normal(3, 4),
    ),
    Case(
        "dropout",
        fp.serial(fp.dense(5), fp.dropout(0.5), fp.rms_norm(), fp.dense(2)),
        normal(4, 3),
        True,
    ),
    Case(
        "reparam-random", fp.serial(tied(), fp.dropout(0.3), fp.remat(tied())), normal(4, 5), True
    ),
]
LARGE = CONVOLUTIONS + RECURRENT + MODELS + REWRITES


def as_objective(case: Case) -> Any:
    """`(objective, params, batch, key)`: with a loss after it where it is none yet."""
    params, x, key = build(case, jnp.float64)
    if case.id in OBJECTIVES:
        return case.layer, params, x, key
    y = jax.eval_shape(case.layer.forward, params, x, key)[0]
    if isinstance(y, fp.Sum):
        objective = fp.objective(fp.serial(), case.layer)
        return objective, ((), params), x, key
    if isinstance(y, tuple):  # a sequence and its lengths
        targets = jnp.ones(y[0].shape), y[1]
        own = fp.objective(fp.serial(case.layer, fp.last_step()), fp.mean_squared())
        return own, (((params, ())), ()), (x, jnp.ones((len(targets[0]), y[0].shape[-1]))), key
    targets = jax.random.normal(jax.random.key(5), y.shape, y.dtype)
    weights = jnp.linspace(0, 2, len(targets))  # of the first example zero, as padding has
    return fp.objective(case.layer, fp.mean_squared()), (params, ()), (x, targets, weights), key


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] if case in LARGE else [])
        for case in TRAINED + EXTRA
    ],
    ids=lambda case: case.id,
)
def test_equals_the_definition(case, x64):
    check(*as_objective(case))
