"""Attention: against JAX's own, with every choice, at any shape."""

import functools
import math
import re

import chex
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.layers import blockwise

SLOW = pytest.mark.slow


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


def lowered(function, *args, platform):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def test_a_loop_over_heads_on_a_cpu_but_where_a_mesh_may_split_them():
    """On the platform that it is lowered for, whatever this machine is."""
    layer, x = fp.attention(8), jnp.ones((16, 256, 96))

    def at_once(kind, platform):
        mesh = jax.sharding.AbstractMesh((1,), ("model",), axis_types=(kind,))
        with jax.sharding.use_abstract_mesh(mesh):
            text = lowered(lambda x: layer.forward((), x)[0], x, platform=platform)
        whole = re.search(r"tensor<(8x16|16x8)x1x64x256xf32>|tensor<8x16x64x256xf32>", text)
        return 8 if whole else 1

    kinds = jax.sharding.AxisType
    assert at_once(kinds.Manual, "cpu") == 1
    assert at_once(kinds.Manual, "cuda") == at_once(kinds.Auto, "cpu") == 8


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "at_once"), [(4, 4, 1), (8, 4, 2), pytest.param(6, 3, 1, marks=SLOW)]
)
def test_a_few_heads_at_a_time_are_all_of_them(heads, kv_heads, at_once, masked, monkeypatch, x64):
    """Both passes, the derivative of both, and a batch of them."""
    layer = fp.attention(heads, kv_heads=kv_heads, rotary=1e4, block=3)
    x = random(2, 7, (heads + 2 * kv_heads) * 4, dtype=jnp.float64)
    t, dy = jnp.flip(x), jnp.flip(random(2, 7, heads * 4, dtype=jnp.float64))
    mask = jnp.arange(7)[None] < jnp.array([[7], [4]])

    def both(x):
        y, kept = layer.forward((), (x, mask) if masked else x)
        dx = layer.backward((), kept, dy)[1]
        return y, dx[0] if masked else dx

    def everything(x):
        return jax.jvp(both, (x,), (t,)), jax.vmap(both)(jnp.stack([x, t]))

    whole = jax.jit(everything)(x)
    scores = 2 * heads // kv_heads * 3 * 7  # of a group: batch, heads, queries of a block, keys
    monkeypatch.setattr(blockwise, "CACHED", at_once * scores)
    few = jax.jit(lambda x: everything(x))  # another function: it is traced anew
    assert str(jax.make_jaxpr(both)(x)).count("platform_index") == 2
    chex.assert_trees_all_close(few(x), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__
)
def test_verify_of_a_few_heads_at_a_time(dtype, monkeypatch):
    monkeypatch.setattr(blockwise, "CACHED", 1)
    with jax.enable_x64(dtype == jnp.float64):
        report = fp.verify(fp.attention(4, kv_heads=2), (), random(2, 5, 8 * 3, dtype=dtype))
    assert report.ok, report


def gradient_of(layer):
    def gradient(x):
        y, kept = layer.forward((), x)
        return y, layer.backward((), kept, y)[1]

    return gradient


def random(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


@pytest.mark.parametrize(
    ("how", "x", "kernel"),
    [
        ({}, random(2, 8, 48, dtype=jnp.bfloat16), True),
        ({"kv_heads": 1}, random(2, 8, 32, dtype=jnp.float16), True),
        ({}, random(2, 7, 48, dtype=jnp.bfloat16), False),  # an odd length
        ({"window": 3}, random(2, 8, 48, dtype=jnp.bfloat16), True),
        ({}, random(2, 8, 48), False),
        ({}, random(2, 8, 120, dtype=jnp.bfloat16), False),  # heads of 20
        ({"causal": False, "window": 3}, random(2, 8, 48, dtype=jnp.bfloat16), False),
        ({"method": "blocks"}, random(2, 8, 48, dtype=jnp.bfloat16), False),
        (
            {"causal": False},
            (random(2, 7, 48, dtype=jnp.bfloat16), jnp.ones((2, 7), bool)),
            False,
        ),
    ],
)
def test_cudnn_where_the_program_is_for_a_gpu_and_the_kernel_takes_it(how, x, kernel, with_cudnn):
    gradient = gradient_of(fp.attention(2, **how))
    passes = lowered(gradient, x, platform="cuda").count("custom_call @__cudnn$fmha")
    assert passes == (2 if kernel else 0)  # forward and backward once each
    assert "fmha" not in lowered(gradient, x, platform="cpu")
    if kernel:  # a GPU machine's CPU
        blocks = gradient_of(fp.attention(2, **how, method="blocks"))
        with jax.default_device(jax.devices("cpu")[0]):
            x = jnp.asarray(np.asarray(x))
            chex.assert_trees_all_equal(jax.jit(gradient)(x), jax.jit(blocks)(x))


@pytest.mark.parametrize("method", [None, "cudnn"])
def test_jax_differentiates_through_the_kernel(method, with_cudnn):
    layer, x = fp.attention(2, method=method), random(2, 8, 48, dtype=jnp.bfloat16)

    def loss(x):
        return layer.forward((), x)[0].astype(jnp.float32).sum()

    for gradient in (jax.grad(loss), gradient_of(fp.autodiff(layer))):
        assert lowered(gradient, x, platform="cuda").count("custom_call @__cudnn$fmha") == 2
    if method is None:
        with jax.default_device(jax.devices("cpu")[0]):
            blocks = fp.attention(2, method="blocks")
            y, kept = blocks.forward((), x)
            want = blocks.backward((), kept, jnp.ones_like(y))[1]
            got = jax.jit(jax.grad(loss))(x)
            gap = jnp.abs(got - want).astype(jnp.float32).max()
            assert gap < 0.02 * jnp.abs(want).max().astype(jnp.float32)


@pytest.mark.slow
def test_verify_where_the_kernel_may_be_chosen(with_cudnn):
    with jax.default_device(jax.devices("cpu")[0]):
        assert fp.verify(fp.attention(2), (), random(2, 8, 48, dtype=jnp.bfloat16)).ok


@pytest.mark.parametrize("shape", [pytest.param((0, 5, 12), marks=pytest.mark.slow), (2, 0, 5, 12)])
def test_no_examples_give_no_gradient(shape):
    for layer in (fp.attention(2), fp.attention(2, kv_heads=2, window=2, causal=False)):
        y, kept = layer.forward((), jnp.zeros(shape))
        dx = layer.backward((), kept, y)[1]
        assert (y.shape, dx.shape) == ((*shape[:-1], 4), shape)
    with pytest.raises(ValueError, match="must have time"):
        fp.attention(2).forward((), jnp.zeros((2, 0, 12)))


def test_what_cudnn_does_not_take_is_refused_where_it_is_asked_for(with_cudnn):
    layer = fp.attention(2, method="cudnn")
    for x, why in ((random(2, 8, 120, dtype=jnp.bfloat16), "head dim"), (random(2, 8, 48), "fp16")):
        with pytest.raises(ValueError, match=rf'method "cudnn" does not take this input: .*{why}'):
            layer.forward((), x)


HIDDEN = {
    # How queries look, the mask, and which places cannot see place 3.
    "mask": ({"causal": False}, [1, 1, 1, 0, 1, 1], [0, 1, 2, 4, 5]),
    "causal": ({}, None, [0, 1, 2]),
    "window": ({"window": 2, "causal": False}, None, [0, 1, 5]),
    "causal-window": ({"window": 2}, None, [0, 1, 2, 5]),
    "grouped": ({"kv_heads": 1, "rotary": 100.0}, None, [0, 1, 2]),
}


@pytest.mark.parametrize("number", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow), -np.inf])
@pytest.mark.parametrize("kind", HIDDEN)
def test_what_is_hidden_may_hold_anything(kind, number):
    how, mask, apart = HIDDEN[kind]
    layer = fp.attention(2, block=4, **how)
    good = random(2, 6, 24 if "kv_heads" in how else 36)
    bad = good.at[:, 3].set(number)
    mask = None if mask is None else jnp.array([mask, mask], bool)

    @jax.jit
    def run(x, dy):
        y, kept = layer.forward((), x if mask is None else (x, mask))
        dx = layer.backward((), kept, dy)[1]
        return y, dx if mask is None else dx[0]

    ones = jnp.ones_like(run(good, jnp.ones((2, 6, 12)))[0])
    real = jnp.zeros_like(ones).at[:, jnp.array(apart)].set(1)
    at = np.array(apart)
    for dy in (real, ones):
        y, dx = run(bad, dy)
        want_y, want_dx = run(good, real)
        np.testing.assert_allclose(y[:, at], want_y[:, at], rtol=1e-6, atol=1e-7)
        assert np.isnan(y[:, 3]).all()
        assert np.isfinite(dx[:, at]).all()
        if dy is real:
            np.testing.assert_allclose(dx[:, at], want_dx[:, at], rtol=1e-5, atol=1e-6)
            assert np.isfinite(dx).all()
        else:
            assert np.isnan(dx[:, 3]).any()  # it does not pass unseen


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", HIDDEN)
def test_what_is_hidden_may_be_huge(kind, dtype):
    """Its scores overflow, and so do its products with `dy`: neither comes to the other places."""
    how, mask, apart = HIDDEN[kind]
    layer, at = fp.attention(2, **how, method="blocks"), np.array(apart)
    good = random(2, 6, 24 if "kv_heads" in how else 36, dtype=dtype)
    mask = None if mask is None else jnp.array([mask, mask], bool)
    dy = jnp.zeros((2, 6, 12), dtype).at[:, at].set(1e3)

    @jax.jit
    def run(x):
        y, kept = layer.forward((), x if mask is None else (x, mask))
        dx = layer.backward((), kept, dy)[1]
        return y, dx if mask is None else dx[0]

    wide = functools.partial(np.asarray, dtype=np.float32)
    want_y, want_dx = map(wide, run(good))
    for number in (3e38, -3e38):
        y, dx = map(wide, run(good.at[:, 3].set(number)))
        np.testing.assert_array_equal(y[:, at], want_y[:, at])
        near = 1e-6 * np.abs(want_dx).max()
        np.testing.assert_allclose(dx[:, at], want_dx[:, at], rtol=1e-5, atol=near)
        assert np.isfinite(dx).all()


@pytest.mark.parametrize("masked", [False, True])
def test_a_query_whose_scores_all_overflow_is_no_number(masked):
    """To minus infinity: as those of one that sees nothing, whose output is zero."""
    layer = fp.attention(1, causal=False, window=2, method="blocks")
    huge = jnp.array([[3e38, 3e38, -3e38, -3e38, 1.0, 1.0]])  # q, k, v
    x = jnp.stack([jnp.tile(huge, (4, 1)), random(4, 6)])
    mask = jnp.array([[True, True, False, False], [True] * 4])

    @jax.jit
    def run(x, dy):
        y, kept = layer.forward((), (x, mask) if masked else x)
        dx = layer.backward((), kept, dy)[1]
        return y, dx[0] if masked else dx

    y, dx = run(x, jnp.ones((2, 4, 2)))
    blind = [False, False, False, masked]  # the last one sees two hidden places
    np.testing.assert_array_equal(np.isnan(y[0]).all(-1), np.logical_not(blind))
    np.testing.assert_array_equal(np.isnan(dx[0, :, :2]).all(-1), np.logical_not(blind))
    assert (
        not np.asarray(y[0])[blind].any() and np.isfinite(y[1]).all() and np.isfinite(dx[1]).all()
    )


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
