"""Normalisations: the same as Flax's, forward and every gradient; and statistics that are exact."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.cases import Case, build, normal, quickly

KEY = jax.random.key(0)
X = jnp.ones((8, 4))


def gradient(layer, params, x, key, dy):
    def run(params, x, key, dy):
        y, residuals = layer.forward(params, x, key)
        return y, layer.backward(params, residuals, dy)

    return quickly(run)(params, x, key, dy)


def flax_gradient(module, variables, x, dy):
    """`y`, the cotangents of `variables` and that of `x`."""
    with jax.numpy_dtype_promotion("standard"):
        return quickly(functools.partial(_pulled, module.apply))(variables, x, dy)


def _pulled(function, variables, x, dy):
    y, pullback = jax.vjp(function, variables, x)
    return y, pullback(dy)


@pytest.mark.parametrize(
    ("layer", "module", "shape"),
    [
        (fp.layer_norm(1e-3), nn.LayerNorm(1e-3, use_fast_variance=False), (3, 4, 6)),
        (fp.rms_norm(1e-3), nn.RMSNorm(1e-3), (3, 4, 6)),
        (fp.group_norm(3, 1e-3), nn.GroupNorm(3, epsilon=1e-3), (2, 4, 5, 6)),
    ],
    ids=["layer_norm", "rms_norm", "group_norm"],
)
def test_the_same_as_flax(layer, module, shape, x64):
    params, x, _ = build(Case("", layer, normal(*shape)), jnp.float64)
    dy = jax.random.normal(KEY, shape, jnp.float64)
    leaves = {k: v for k, v in params._asdict().items() if v is not None}
    y, (dparams, dx) = gradient(layer, params, x, None, dy)
    want, (dvariables, want_dx) = flax_gradient(module, {"params": leaves}, x, dy)
    chex.assert_trees_all_close((y, dx), (want, want_dx), rtol=1e-9, atol=1e-12)
    got = {k: v for k, v in dparams._asdict().items() if v is not None}
    chex.assert_trees_all_close(got, dvariables["params"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("key", [KEY, None], ids=["training", "inference"])
def test_batch_norm_is_the_same_as_flax(key, x64):
    layer = fp.batch_norm(1e-3)
    params, x, _ = build(Case("", layer, normal(2, 4, 5, 3)), jnp.float64)
    dy = jax.random.normal(KEY, x.shape, jnp.float64)
    module = nn.BatchNorm(key is None, epsilon=1e-3, use_fast_variance=False)
    scale, bias, mean, variance, _ = params
    if key is None:
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": mean, "var": variance},
        }
        want, (d, want_dx) = flax_gradient(module, variables, x, dy)
    else:

        def apply(trained, x):
            variables = {"params": trained, "batch_stats": {"mean": mean, "var": variance}}
            return module.apply(variables, x, mutable="batch_stats")[0]

        with jax.numpy_dtype_promotion("standard"):
            want, pullback = jax.vjp(apply, {"scale": scale, "bias": bias}, x)
            trained, want_dx = pullback(dy)
        d = {"params": trained}
    y, (dparams, dx) = gradient(layer, params, x, key, dy)
    chex.assert_trees_all_close((y, dx), (want, want_dx), rtol=1e-9, atol=1e-12)
    wanted = fp.BatchNormParams(d["params"]["scale"], d["params"]["bias"], None, None, None)
    chex.assert_trees_all_close(dparams, wanted, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------- calibrate


def cut(x, *places):
    return jnp.split(x, list(places))


def test_calibrate_is_exact_for_batches_of_any_size_and_a_mean_far_from_zero():
    x = 300 + jax.random.normal(KEY, (50, 3)) * jnp.array([[1.0, 0.1, 3.0]])
    norm = fp.batch_norm()
    params = fp.calibrate(norm, norm.init(KEY, x), (part for part in cut(x, 1, 30, 41)))
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(params.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(params.variance, exact.var(0), rtol=1e-4)
    # Trained on all data at once and calibrated on it, training and inference agree.
    norms = [norm.forward(params, x, key)[0] for key in (KEY, None)]
    np.testing.assert_allclose(*norms, atol=1e-3)


def test_sums_of_parts_are_the_sums_of_the_whole(x64):
    """Rule 3: what is recorded adds up plainly, over microbatches and devices."""
    x = jax.random.normal(KEY, (12, 3), jnp.float64)
    norm = fp.batch_norm()
    params = norm.init(KEY, x)._replace(mean=jnp.array([0.1, -0.2, 0.3]))

    def sums(x):
        return norm.forward(params, x, KEY)[1][-1].value

    total = jax.tree.map(lambda *parts: sum(parts), *map(sums, cut(x, 2, 7)))
    chex.assert_trees_all_close(total, sums(x), rtol=1e-12)
    chex.assert_trees_all_close(total.moments(), (x.mean(0), x.var(0)), rtol=1e-12)


def block():
    return fp.serial(fp.dense(4), fp.batch_norm(), fp.relu(), fp.dropout(0.1))


@pytest.mark.parametrize(
    "model",
    [
        fp.serial(block(), fp.residual(block()), fp.dense(2)),
        fp.serial(fp.remat(fp.serial(block(), fp.remat(fp.batch_norm()))), fp.dense(2)),
        fp.repeat(fp.remat(block()), 3),
        fp.repeat(fp.repeat(fp.residual(block()), 2), 2),
        fp.serial(fp.parallel(block(), fp.autodiff(fp.batch_norm())), fp.add()),
        fp.map_layers(fp.autodiff, fp.repeat(block(), 3)),
    ],
    ids=["serial", "remat", "repeat", "nested", "parallel", "autodiff"],
)
def test_calibrate_finds_every_batch_norm(model):
    """Of one batch, each gets the statistics that training normalised that batch with: so with
    nothing random inference gives what training gave."""
    model = fp.map_layers(lambda node: fp.serial() if node.name == "dropout" else node, model)
    x = 5 + 3 * jax.random.normal(KEY, (20, 4))
    params = model.init(jax.random.key(1), x)
    new = fp.calibrate(model, params, [x])
    chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
    np.testing.assert_allclose(
        model.forward(new, x)[0], model.forward(params, x, KEY)[0], rtol=1e-3, atol=1e-4
    )
    trained = [
        jax.tree.map(
            lambda node: node[:2] if isinstance(node, fp.BatchNormParams) else node,
            tree,
            is_leaf=lambda node: isinstance(node, fp.BatchNormParams),
        )
        for tree in (params, new)
    ]
    chex.assert_trees_all_equal(*trained)


def test_calibrate_takes_a_model_that_draws_noise_and_repeats_itself():
    x = jax.random.normal(KEY, (20, 4))
    model = fp.repeat(block(), 2)
    params = model.init(KEY, x)
    first, second = (fp.calibrate(model, params, cut(x, 5)) for _ in range(2))
    chex.assert_trees_all_equal(first, second)


def test_what_training_records_surfaces_beside_the_gradient():
    objective = fp.objective(fp.repeat(block(), 3), fp.mean_squared())
    batch = X, X
    gradient = fp.backprop(objective)(objective.init(KEY, batch), batch, KEY)
    is_sums = lambda node: isinstance(node, fp.BatchSums)
    found = [s for s in jax.tree.leaves(gradient.recorded, is_leaf=is_sums) if is_sums(s)]
    assert [s.total.shape for s in found] == [(3, 4)]
    assert found[0].count.tolist() == [8, 8, 8]
    norm = gradient.grads.batch_norm
    assert norm.scale.shape == norm.bias.shape == (3, 4)
    assert norm[2:] == (None, None, None)  # no gradient trains statistics


def test_statistics_of_bfloat16_are_float32():
    norm, x = fp.batch_norm(), X.astype(jnp.bfloat16)
    params = norm.init(KEY, x)
    assert (params.scale.dtype, params.mean.dtype) == (jnp.bfloat16, jnp.float32)
    assert norm.forward(params, x, KEY)[1][-1].value.squares.dtype == jnp.float32
    x = jnp.asarray(300 + np.arange(64).reshape(1, 64) % 2 * 2, jnp.bfloat16)
    y, _ = fp.layer_norm(scale=False, bias=False).forward(fp.NormParams(None, None), x)
    assert set(y[0].tolist()) == {-1.0, 1.0}


# ------------------------------------------------------------------------------------ any shape

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@settings(max_examples=8, deadline=None)
@given(leading=shapes, groups=st.integers(1, 3), size=st.integers(1, 3))
def test_normalised_rows_have_mean_zero_and_size_one(leading, groups, size):
    x = 2 + jax.random.normal(KEY, (*leading, groups * size))
    layer = fp.group_norm(groups, 1e-12)
    params = layer.init(KEY, x)
    y, kept = quickly(layer.forward)(params, x)
    parts = np.asarray(y).reshape(leading[0], -1, groups, size)
    np.testing.assert_allclose(parts.mean((1, 3)), 0, atol=1e-4)
    assert jax.eval_shape(layer.backward, params, kept, y)[1].shape == x.shape
    rows = np.asarray(quickly(fp.rms_norm(1e-12).forward)(fp.NormParams(None, None), x)[0])
    np.testing.assert_allclose((rows**2).mean(-1), 1, rtol=1e-4)


@settings(max_examples=8, deadline=None)
@given(leading=shapes, scale=st.booleans(), bias=st.booleans())
def test_one_group_of_rows_is_layer_norm(leading, scale, bias):
    rows = int(np.prod(leading))
    x = jax.random.normal(KEY, (rows, 5))
    one, other = fp.layer_norm(scale=scale, bias=bias), fp.group_norm(1, scale=scale, bias=bias)
    params = one.init(KEY, x)
    got, want = (gradient(layer, params, x, None, x) for layer in (one, other))
    chex.assert_trees_all_close(got, want, atol=1e-4)


# ------------------------------------------------------------------------------------ bad input


def tied_norms():
    pair = fp.serial(fp.batch_norm(), fp.batch_norm())
    return fp.reparam(pair, expand=lambda p: (p, p), initial=lambda params: params.batch_norm_0)


@pytest.mark.parametrize(
    ("kind", "sentence", "call"),
    [
        (ValueError, "eps must be positive, got 0", lambda: fp.layer_norm(0)),
        (ValueError, "groups must be at least 1, got 0", lambda: fp.group_norm(0)),
        (
            ValueError,
            "channels must divide into 3 groups, got 4 channels",
            lambda: fp.group_norm(3).init(KEY, X),
        ),
        (
            ValueError,
            "x must be [batch, *space, channels], got shape (4,)",
            lambda: fp.group_norm(2).init(KEY, X[0]),
        ),
        (
            ValueError,
            "x must have a last axis of channels, got a scalar",
            lambda: fp.rms_norm().init(KEY, X[0, 0]),
        ),
        (
            ValueError,
            "x must have a last axis to go with scale of shape (4,), got x of shape (8, 3)",
            lambda: fp.layer_norm().forward(fp.layer_norm().init(KEY, X), X[:, :3]),
        ),
        (
            TypeError,
            "params must be NormParams(scale, bias), got tuple",
            lambda: fp.rms_norm().forward((), X),
        ),
        (
            TypeError,
            "params must be BatchNormParams(scale, bias, mean, variance, updates), got NormParams",
            lambda: fp.batch_norm().forward(fp.layer_norm().init(KEY, X), X),
        ),
        (
            TypeError,
            "x must be of floating dtype, got int32[2]",
            lambda: fp.layer_norm().init(KEY, jnp.zeros(2, jnp.int32)),
        ),
        (
            ValueError,
            "x must have rows in training, got shape (0, 4)",
            lambda: fp.batch_norm().forward(fp.batch_norm().init(KEY, X), X[:0], KEY),
        ),
        (
            ValueError,
            "batches must have at least one batch, got none",
            lambda: fp.calibrate(fp.batch_norm(), fp.batch_norm().init(KEY, X), []),
        ),
        (
            ValueError,
            "model must have a batch_norm to calibrate, got none",
            lambda: fp.calibrate(fp.relu(), (), [X]),
        ),
        (
            ValueError,
            "params must have one BatchNormParams for each batch_norm, got 1 for 2",
            lambda: fp.calibrate(tied_norms(), tied_norms().init(KEY, X), [X]),
        ),
    ],
)
def test_refused_in_one_sentence(kind, sentence, call):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == sentence
