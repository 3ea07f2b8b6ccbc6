"""Blocks whose inputs are found again from their outputs: as exact as those that kept them, in
memory that depth does not add to, in every way in which a model is run."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.nonfinite.watch import watched_run
from tests.cases import OPTIMISED, quickly

KEY = jax.random.key(0)
X = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


def f():
    return fp.serial(fp.layer_norm(), fp.dense(3), fp.gelu())


def g():
    return fp.serial(fp.dense(3), fp.dropout(0.3))


def together(n):
    return fp.reversible(f(), g(), copies=n)


def one_by_one(n):
    """The same function, every block of which keeps its own output."""
    return fp.repeat(fp.reversible(f(), g()), n)


def gradient(model, params, x, key=None):
    y, residuals = model.forward(params, x, key)
    return y, model.backward(params, residuals, jnp.cos(y))


def in_halves(model, params, x, key=None):
    y, residuals = model.forward(params, x, key)
    dx, kept = fp.backward_inputs(model)(params, residuals, jnp.cos(y))
    return y, (fp.backward_params(model)(params, residuals, kept), dx)


def test_copies_are_as_blocks_in_a_row(x64):
    models, x = (together(3), one_by_one(3)), X.astype(float)
    params = models[0].init(KEY, x)
    chex.assert_trees_all_equal(params, models[1].init(KEY, x))
    key = jax.random.key(2)
    want = quickly(functools.partial(gradient, models[1]))(params, x, key)
    for model, run in (
        (models[0], gradient),
        (models[0], in_halves),
        (fp.remat(models[0]), gradient),
    ):
        got = quickly(functools.partial(run, model))(params, x, key)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-11)


def test_memory_does_not_grow_with_depth():
    def block():
        return fp.serial(fp.dense(32), fp.gelu(), fp.dense(8))

    def temporary(model):
        objective = fp.objective(model, fp.mean_squared())
        batch = jax.ShapeDtypeStruct((64, 16), jnp.float32)
        params = jax.eval_shape(objective.init, KEY, (batch, batch))
        lowered = jax.jit(fp.backprop(objective)).lower(params, (batch, batch))
        return lowered.compile(OPTIMISED).memory_analysis().temp_size_in_bytes

    few, many = (temporary(fp.reversible(block(), block(), copies=n)) for n in (8, 64))
    assert many < 1.1 * few
    kept = temporary(fp.repeat(fp.reversible(block(), block()), 64))
    assert kept > many + 56 * 64 * 16 * 4  # what the other blocks would keep


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_after_many_blocks_the_gradient_is_as_near_to_the_truth_as_if_all_was_kept(dtype, x64):
    model = fp.reversible(fp.serial(fp.dense(8), fp.tanh()), fp.dense(8), copies=40)
    x = np.random.default_rng(1).standard_normal((7, 16))
    params = jax.tree.map(lambda leaf: 0.2 * leaf, model.init(KEY, x))  # or it grows without end
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, x))
    run = quickly(functools.partial(gradient, model))
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), narrow)
    truth = jax.tree.leaves(run(*wide))
    kept = quickly(functools.partial(gradient, fp.autodiff(model)))

    def away(got):
        each = zip(jax.tree.leaves(got), truth, strict=True)
        return max(float(abs(a.astype(float) - b).max() / abs(b).max()) for a, b in each)

    assert away(run(*narrow)) < 4 * away(kept(*narrow))


def test_updates_in_place_statistics_and_metrics():
    batch = X, jnp.ones((5, 6))
    model = together(3)
    objective = fp.objective(model, fp.mean_squared())
    steps = [
        fp.fused_step(objective, optax.sgd(0.1, momentum=0.9)),
        fp.step(fp.backprop(objective), optax.sgd(0.1, momentum=0.9)),
    ]
    after = []
    for step in steps:
        state = step.init(objective.init(KEY, batch), jax.random.key(1))
        after.append(step.update(state, batch)[0].params)
    chex.assert_trees_all_close(*after, rtol=1e-5, atol=1e-6)
    # What f records comes through: batch_norm moves its running mean.
    objective = fp.objective(fp.reversible(fp.batch_norm(), fp.dense(3), 2), fp.mean_squared())
    step = fp.step(fp.backprop(objective), optax.sgd(0.0))
    state = step.init(objective.init(KEY, batch), jax.random.key(1))
    before = np.array(state.params.batch_norm.mean)
    moved = step.update(state, batch)[0].params.batch_norm.mean
    assert moved.shape == (2, 3) and (np.asarray(moved) != before).all()
    np.testing.assert_allclose(moved[0] / moved[0][0], X[:, 3:].mean(0) / X[:, 3].mean(), 1e-4)


@pytest.mark.slow
def test_copies_are_frozen_one_by_one_and_named_rightly_going_back():
    model = fp.serial(fp.named("blocks", together(3)), fp.dense(2))
    frozen = fp.freeze(model, "blocks[:-1]")
    params = jax.eval_shape(frozen.init, KEY, X)
    assert params.blocks.copies_0_to_1.frozen.serial_0.dense.w.shape == (2, 3, 3)
    assert params.blocks.copy_2.serial_0.dense.w.shape == (1, 3, 3)
    batch = X, jnp.ones((5, 6))
    objective = fp.objective(together(2), fp.mean_squared())
    own = objective.init(KEY, batch)
    _, seen = watched_run(fp.backprop(objective), objective, own, batch, None, None)
    back = [call.path for call in seen if call.during == "backward" and "dense" in call.path]
    assert back == [f"reversible[{i}]/serial_{j}/dense" for i in (1, 0) for j in (1, 0)]


def test_its_derivation_tells_of_both_layers_and_of_what_joins_them():
    model = fp.named("deep", fp.reversible(fp.dense(3), fp.tanh(), copies=2))
    told = fp.derive(model, jax.eval_shape(model.init, KEY, X), X).text
    forward = ["for each copy 1", "x2 = x1 w2 + b2", "x4 = tanh(x3)", "(u, v) = x0", "q = v + G(p)"]
    places = [told.index(line) for line in forward]
    assert places == sorted(places)


@pytest.mark.slow
def test_it_runs_token_by_token():
    inside = fp.serial(fp.layer_norm(), fp.dense(24), fp.attention(2))
    model = fp.reversible(inside, fp.dense(8), copies=2)
    x = jax.random.normal(KEY, (2, 5, 16))
    params = model.init(KEY, x)
    whole, _ = model.forward(params, x)
    first, cache = model.decoding.prefill(params, x[:, :3], 5)
    for place in (3, 4):
        y, cache = model.decoding.advance(params, cache, x[:, place : place + 1])
        np.testing.assert_allclose(y, whole[:, place : place + 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first, whole[:, :3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("use", "error", "sentence"),
    [
        (lambda: fp.reversible(f(), g(), 0), ValueError, "copies must be at least 1, got 0"),
        (lambda: fp.reversible(f(), 3), TypeError, "layer must be a layer, as dense"),
        (
            lambda: together(2).init(KEY, X[:, :5]),
            ValueError,
            "x must have an even number of features, got shape \\(5, 5\\)",
        ),
        (
            lambda: fp.reversible(fp.dense(2), g()).init(KEY, X),
            ValueError,
            "dense must give the shape and dtype it takes",
        ),
        (
            lambda: together(2).forward(together(3).init(KEY, X), X),
            ValueError,
            "params must have a leading axis of 2, got \\(3, 3\\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(use, error, sentence):
    with pytest.raises(error, match=sentence):
        use()
