"""Compute in one dtype, params in another."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.cases import tied
from tests.test_bad_input import raises

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 5))


def model():
    block = fp.residual(fp.serial(fp.dense(5), fp.gelu(), fp.dense(5)))
    return fp.serial(fp.repeat(block, 2), tied(), fp.dense(3))


def gradient(layer, params, x):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, jnp.ones_like(y)), residuals


def test_is_the_layer_in_that_dtype():
    """Same bits as params and input cast by hand, with the whole in bfloat16."""
    whole = model()
    mixed = fp.cast(whole, jnp.bfloat16)
    params = mixed.init(KEY, X)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, whole.init(KEY, X))
    y, dparams, dx, residuals = gradient(mixed, params, X)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, X))
    want_y, want_dparams, want_dx, want_residuals = gradient(whole, *low)
    chex.assert_trees_all_equal(y, want_y)
    chex.assert_trees_all_equal_shapes_and_dtypes(dparams, params)
    assert dx.dtype == jnp.float32
    chex.assert_trees_all_close(
        (dparams, dx),
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (want_dparams, want_dx)),
        rtol=0.02,  # the sum over uses is in float32 here
    )
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(r)) for r in (residuals, want_residuals)]
    assert sizes[0] == sizes[1]  # no copy of params, and all in bfloat16


@pytest.mark.slow
def test_is_flax_in_mixed_precision():
    layer = fp.cast(fp.dense(4), jnp.bfloat16)
    params = layer.init(KEY, X)
    reference = nn.Dense(4, dtype=jnp.bfloat16, param_dtype=jnp.float32)

    def theirs(params: Any, x: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return reference.apply({"params": {"kernel": params.w, "bias": params.b}}, x)

    y: Any
    y, pullback = jax.vjp(theirs, params, X)
    got_y, dparams, dx, _ = gradient(layer, params, X)
    chex.assert_trees_all_equal(got_y, y)
    chex.assert_trees_all_close((dparams, dx), pullback(jnp.ones_like(y)), rtol=0.01, atol=0.01)


def test_verified_in_bfloat16():
    """Of a layer with no constants: rounded to bfloat16, gelu's are no derivative to float32."""
    layer = fp.cast(fp.residual(fp.serial(fp.dense(5), fp.tanh())), jnp.bfloat16)
    fp.verify(layer, layer.init(KEY, X), X).raise_if_wrong()


def test_integers_pass_untouched_and_have_no_cotangent():
    table = fp.layer(
        init=lambda key, ids: jax.random.normal(key, (9, 4)),
        forward=lambda table, ids: (table[ids], ids),
        backward=lambda table, ids, dy: (jnp.zeros_like(table).at[ids].add(dy), None),
        name="table",
    )
    mixed = fp.cast(fp.serial(table, fp.dense(2)), jnp.bfloat16)
    ids = jnp.array([1, 3, 8])
    params = mixed.init(KEY, ids)
    y, dparams, dx, _ = gradient(mixed, params, ids)
    assert (y.dtype, dx) == (jnp.bfloat16, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(dparams, params)


def test_params_are_updated_in_their_own_dtype():
    """An update that bfloat16 would round away."""
    objective = fp.objective(fp.cast(fp.dense(1), jnp.bfloat16), fp.mean_squared())
    batch = X, jnp.ones((6, 1))
    params = objective.init(KEY, batch)
    for train in (
        fp.fused_step(objective, optax.sgd(1e-5)),
        fp.step(fp.backprop(objective), optax.sgd(1e-5)),
    ):
        state, _ = train.update(train.init(params, None), batch)
        moved = jnp.abs(state.params.w - params.w).max()
        assert 0 < moved < 1e-3


@settings(max_examples=5, deadline=None)
@given(
    rows=st.integers(1, 4),
    width=st.integers(1, 4),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
def test_dtypes_for_any_shape(rows, width, dtype):
    layer = fp.cast(fp.serial(fp.dense(width), fp.tanh()), dtype)
    x = jnp.ones((rows, width))
    params = layer.init(KEY, x)
    y, dparams, dx, residuals = gradient(layer, params, x)
    assert y.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(residuals)} == {jnp.dtype(dtype)}
    chex.assert_trees_all_equal_shapes_and_dtypes((dparams, dx), (params, x))


@pytest.mark.parametrize("argument", ["compute_dtype", "param_dtype"])
def test_a_dtype_that_is_not_floating_is_refused(argument):
    dtypes = {"compute_dtype": jnp.bfloat16, argument: jnp.int8}
    raises(
        TypeError,
        f"{argument} must be a floating dtype, got int8",
        lambda: fp.cast(fp.dense(2), **dtypes),
    )
