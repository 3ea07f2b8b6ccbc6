"""Attention: against JAX's own, with every choice, at any shape."""

import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 19),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.integers(1, 8),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 6)),
    st.booleans(),
)
def test_as_jax_computes_it(batch, time, heads, block, causal, window, masked):
    (n, groups), features = heads, 4
    rng = np.random.default_rng(time)
    x = jnp.asarray(rng.standard_normal((batch, time, (n + 2 * groups) * features)), jnp.float32)
    dy = jnp.asarray(rng.standard_normal((batch, time, n * features)), jnp.float32)
    # Whoever sees nothing gives zero here and NaN there: every query sees its own place.
    mask = jnp.asarray(rng.uniform(size=(batch, time)) < 0.7) if masked and not causal else None
    mask = None if mask is None or window is not None else mask.at[:, 0].set(True)

    def naive(x):
        q, k, v = jnp.split(x.reshape(batch, time, -1, features), (n, n + groups), 2)
        y = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=None if mask is None else mask[:, None, None, :],
            is_causal=causal,
            local_window_size=None if window is None else (window - 1, window - 1),
        )
        return y.reshape(dy.shape)

    layer = fp.attention(n, kv_heads=groups, causal=causal, window=window, block=block)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own mixes dtypes
        want, pullback = jax.vjp(naive, x)
        (dx,) = pullback(dy)
    y, kept = layer.forward((), x if mask is None else (x, mask))
    got = layer.backward((), kept, dy)[1]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got if mask is None else got[0], dx, rtol=1e-3, atol=2e-5)


def shapes(function, x):
    """Of all that it computes."""

    def within(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.shape for v in eqn.outvars)
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from within(inner)

    return list(within(jax.make_jaxpr(function)(x).jaxpr))


def test_the_matrix_of_all_scores_never_exists():
    layer = fp.attention(2, block=16)

    def run(x):
        y, kept = layer.forward((), x)
        return layer.backward((), kept, y)[1]

    assert max(map(math.prod, shapes(run, jnp.ones((1, 512, 24))))) < 512 * 512


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators take all heads at once")
def test_a_loop_over_heads_but_where_a_mesh_may_split_them():
    layer, x = fp.attention(8), jnp.ones((16, 256, 96))

    def scores(kind):
        mesh = jax.sharding.AbstractMesh((1,), ("model",), axis_types=(kind,))
        with jax.sharding.use_abstract_mesh(mesh):
            found = shapes(lambda x: layer.forward((), x)[0], x)
        return max(math.prod(shape) for shape in found if shape[-2:] == (64, 256))

    assert scores(jax.sharding.AxisType.Manual) == 16 * 64 * 256
    assert scores(jax.sharding.AxisType.Auto) == 8 * 16 * 64 * 256


def test_a_query_that_sees_nothing_gives_zero_and_no_gradient():
    layer = fp.attention(1, causal=False)
    x, mask = jnp.ones((2, 3, 6)), jnp.array([[True, True, False], [False, False, False]])
    y, kept = layer.forward((), (x, mask))
    dx, nothing = layer.backward((), kept, jnp.ones_like(y))[1]
    assert not y[1].any() and not dx[1].any() and nothing is None
    assert np.isfinite(dx).all() and dx[0].any()


def test_rotated_products_depend_on_the_distance_alone():
    from funprop.layers.rotary import rotate

    q, k = (jax.random.normal(jax.random.key(i), (1, 8)) for i in (0, 1))
    products = [
        float((rotate(q, jnp.array([i])) * rotate(k, jnp.array([i + 3]))).sum()) for i in (0, 5, 90)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
