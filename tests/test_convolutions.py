"""Convolutions, pooling and upsampling agree with Flax and JAX, forward and every gradient."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.layers import chunks
from funprop.layers.materialised import materialised
from tests.cases import OPTIMISED, quickly
from tests.test_bad_input import raises
from tests.test_fit import counted

KEY = jax.random.key(0)
conv: Any = fp.conv  # and upsample: with arguments of wrong types
upsample: Any = fp.upsample
FEW = settings(max_examples=8, deadline=None, derandomize=True)
NUMBERS = st.integers(1, 3)


def same(layer, x, reference, params=()):
    """`reference(params, x)` gives what `layer` gives, and `jax.vjp` of it what backward gives."""

    def both(params, x):
        y, residuals = layer.forward(params, x)
        want, pullback = jax.vjp(reference, params, x)
        dy = jnp.asarray(np.random.default_rng(1).standard_normal(want.shape), want.dtype)
        return (y, layer.backward(params, residuals, dy)), (want, pullback(dy))

    with jax.numpy_dtype_promotion("standard"):  # Flax mixes dtypes
        got, expected = quickly(both)(params, x)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-9), got, expected)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))  # float64 under x64


def variables(params):
    return {"params": {"kernel": params.w, "bias": params.b}}


def paddings(axes):
    pairs = st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * axes)
    return st.one_of(st.sampled_from(["same", "valid"]), pairs)


def flax_padding(padding):
    return padding.upper() if isinstance(padding, str) else padding


@given(data=st.data(), axes=st.integers(1, 2), groups=NUMBERS)
@FEW
def test_conv_is_that_of_flax(data, axes, groups):
    kernel, stride, dilation = (data.draw(st.tuples(*[NUMBERS] * axes)) for _ in range(3))
    padding = data.draw(paddings(axes))
    per_group = data.draw(st.tuples(NUMBERS, NUMBERS))
    features = groups * per_group[1]
    with jax.enable_x64(True):
        x = normal(2, *data.draw(st.tuples(*[st.integers(7, 9)] * axes)), groups * per_group[0])
        layer = fp.conv(
            features, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
        flax = nn.Conv(
            features,
            kernel,
            strides=stride,
            padding=flax_padding(padding),
            kernel_dilation=dilation,
            feature_group_count=groups,
            param_dtype=jnp.float64,
        )
        params = layer.init(KEY, x)._replace(b=normal(features))
        same(layer, x, lambda params, x: flax.apply(variables(params), x), params)


@pytest.mark.parametrize("batch", [0, 1, 5], ids=lambda n: f"batch-{n}")
@pytest.mark.parametrize("groups", [1, 3], ids=["whole", "depthwise"])
def test_a_few_examples_at_a_time_are_all_of_them(groups, batch, monkeypatch, x64):
    """Two at a time and one left over; one by one; none."""
    how = {"stride": (2, 1), "dilation": (1, 2), "groups": groups}
    x = normal(batch, 7, 6, 3)
    layer = fp.conv(6, (3, 2), padding=((2, 0), (0, 1)), bias=False, **how)
    params = layer.init(KEY, x)
    monkeypatch.setattr(chunks, "CACHE", 2 * 8 * (7 * 6 * 3 + 4 * 5 * 6))

    def by_jax(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params.w,
            (2, 1),
            ((2, 0), (0, 1)),
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    dy = jax.eval_shape(by_jax, params, x)
    backward = str(jax.make_jaxpr(layer.backward)(params, x, dy))
    assert ("scan[" in backward) == (batch > 1)
    same(layer, x, by_jax, params)


def test_convolutions_of_half_precision_sum_in_single(monkeypatch):
    """Over chunks, too: each is rounded to a bfloat16 at the end alone."""
    monkeypatch.setattr(chunks, "CACHE", 1)
    for groups in (1, 2):
        layer = fp.conv(2, (1,), groups=groups, bias=False)
        x = jnp.ones((300, 4, 2), jnp.bfloat16)
        params = layer.init(KEY, x)
        dw = quickly(layer.backward)(params, x, jnp.ones((300, 4, 2), jnp.bfloat16))[0].w
        assert dw.dtype == jnp.bfloat16 and (dw == 1200).all()


@given(data=st.data(), axes=st.integers(1, 2))
@FEW
def test_conv_transpose_is_that_of_flax(data, axes):
    kernel, stride, dilation = (data.draw(st.tuples(*[NUMBERS] * axes)) for _ in range(3))
    padding = data.draw(paddings(axes))
    with jax.enable_x64(True):
        x = normal(2, *data.draw(st.tuples(*[st.integers(5, 6)] * axes)), 2)
        layer = fp.conv_transpose(3, kernel, stride=stride, padding=padding, dilation=dilation)
        flax = nn.ConvTranspose(
            3,
            kernel,
            strides=stride,
            padding=flax_padding(padding),
            kernel_dilation=dilation,
            param_dtype=jnp.float64,
        )
        params = layer.init(KEY, x)._replace(b=normal(3))
        same(layer, x, lambda params, x: flax.apply(variables(params), x), params)


@given(data=st.data(), axes=st.integers(1, 2))
@settings(FEW, max_examples=20)
def test_pools_are_those_of_flax(data, axes):
    window, stride = (data.draw(st.tuples(*[NUMBERS] * axes)) for _ in range(2))
    pair = st.tuples(*[st.tuples(*[st.integers(0, k - 1)] * 2) for k in window])
    padding = data.draw(st.one_of(st.sampled_from(["same", "valid"]), pair))
    count = data.draw(st.booleans())
    like_flax = {"strides": stride, "padding": flax_padding(padding)}
    with jax.enable_x64(True):
        x = normal(2, *data.draw(st.tuples(*[st.integers(3, 7)] * axes)), 2)
        numbers = data.draw(st.sampled_from([x, jnp.round(x)]))  # of ties the same one counts
        largest = fp.max_pool(window, stride=stride, padding=padding)
        same(largest, numbers, lambda _, x: nn.max_pool(x, window, **like_flax))
        average = fp.average_pool(window, stride=stride, padding=padding, count_include_pad=count)
        same(
            average,
            x,
            lambda _, x: nn.avg_pool(x, window, **like_flax, count_include_pad=count),
        )


def test_global_pools_are_a_mean_and_a_maximum(x64):
    x = normal(2, 3, 4, 5)
    same(fp.global_average_pool(), x, lambda _, x: x.mean((1, 2)))
    same(fp.global_max_pool(), x, lambda _, x: x.max((1, 2)))
    y, kept = fp.global_max_pool().forward((), jnp.zeros((1, 2, 2, 1)))
    dx = fp.global_max_pool().backward((), kept, y + 1)[1]
    assert dx.ravel().tolist() == [1, 0, 0, 0]  # the first, where max would divide among all


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
@pytest.mark.parametrize("factor", [(1,), (3,), (2, 3), (4, 1)])
def test_upsample_is_resize(method, factor, x64):
    x = normal(2, *(3, 4)[: len(factor)], 2)
    shape = (2, *(n * f for n, f in zip(x.shape[1:-1], factor, strict=True)), 2)
    same(fp.upsample(factor, method), x, lambda _, x: jax.image.resize(x, shape, method))


def test_max_pool_keeps_a_byte_an_output_and_more_for_wide_windows():
    for window, dtype in ((256, jnp.uint8), (257, jnp.uint16)):
        x = jax.ShapeDtypeStruct((2, 600, 3), jnp.float32)
        y, (place, _) = jax.eval_shape(fp.max_pool((window,)).forward, (), x)
        assert place.dtype == dtype and place.shape == y.shape


def test_max_pool_holds_bytes_and_not_what_they_are_made_of():
    model = fp.serial(fp.conv(8, (3, 3)), fp.relu(), fp.max_pool((2, 2)), fp.dense(2))
    objective = fp.objective(model, fp.mean_squared())
    x, y = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 32, 32, 1), (32, 16, 16, 2))
    )
    params = jax.eval_shape(objective.init, KEY, (x, y))
    lowered = jax.jit(fp.backprop(objective)).lower(params, (x, y))
    held = lowered.compile(OPTIMISED).memory_analysis().temp_size_in_bytes
    assert held < 2 * 8 * x.size * 4  # what the convolution gives, and no copy of it


def test_an_array_of_its_own_is_that_of_its_function():
    def bytes_of(x):
        return (x > 0).astype(jnp.uint8)

    x = jnp.arange(-6.0, 6.0).reshape(3, 4)
    one = functools.partial(materialised, bytes_of)
    for run in (one, jax.jit(one), jax.vmap(one)):
        np.testing.assert_array_equal(run(x), bytes_of(x))
    assert jax.jit(one)(x[:0]).shape == (0, 4)
    slope = jax.grad(lambda x: (x * one(x).astype(x.dtype)).sum())(x)
    np.testing.assert_array_equal(slope, bytes_of(x))
    rows = jax.sharding.PartitionSpec("data")
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, rows))
        split = jax.shard_map(one, mesh=mesh, in_specs=rows, out_specs=rows)
        for run in (split, one):
            np.testing.assert_array_equal(jax.jit(run)(placed), bytes_of(x))


def test_outside_of_jit_max_pool_compiles_nothing_anew():
    x = jnp.zeros((1, 4, 3))
    fp.max_pool(2).forward((), x)
    with counted() as events:
        fp.max_pool(2).forward((), x)
    assert not events["backend_compile_duration"]


def test_max_pool_of_nan_is_nan():
    x = jnp.array([1.0, jnp.nan, 2.0, 3.0]).reshape(1, 4, 1)
    y, kept = fp.max_pool((2,)).forward((), x)
    assert jnp.isnan(y[0, 0, 0]) and y[0, 1, 0] == 3
    assert fp.max_pool((2,)).backward((), kept, y)[1][0, 0, 0] == 0


def test_sums_of_low_precision_are_taken_in_float32():
    x = jnp.array([256, 1, 1], jnp.bfloat16).reshape(1, 3, 1)  # in bfloat16, 256 + 1 is 256
    for pool in (fp.average_pool((3,)), fp.global_average_pool()):
        assert pool.forward((), x)[0].item() == 86


@pytest.mark.parametrize("groups", [1, 2])
def test_no_examples_give_no_gradient(groups):
    layer = fp.conv(4, (3, 3), groups=groups)
    params = layer.init(KEY, jnp.zeros((1, 4, 4, 2)))
    y, x = layer.forward(params, jnp.zeros((0, 4, 4, 2)))
    dparams, dx = layer.backward(params, x, y)
    assert dx.shape == x.shape and not any(leaf.any() for leaf in dparams)


def init(layer, *shape):
    return lambda: layer.init(KEY, jnp.zeros(shape))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_number_is_meant_for_every_space_axis(axes):
    """As in Keras and PyTorch; of how many axes, `x` says."""
    x = jax.random.normal(KEY, (2, *(6, 4, 5)[:axes], 3))

    def of(layer, x):
        params = layer.init(KEY, x)
        y, kept = layer.forward(params, x)
        return y, layer.backward(params, kept, y)

    pairs, k = [(1, 1)] * axes, (3,) * axes
    for one, each in (
        (fp.conv(4, 3), fp.conv(4, k)),
        (
            fp.conv(4, 2, stride=2, padding=1),
            fp.conv(4, [2] * axes, stride=2, padding=pairs),
        ),
        (fp.conv_transpose(4, np.int64(3), stride=2), fp.conv_transpose(4, k, stride=2)),
        (fp.max_pool(2), fp.max_pool((2,) * axes)),
        (fp.average_pool(3, padding="SAME"), fp.average_pool(k, padding="same")),
    ):
        programs = [jax.make_jaxpr(lambda x, f=f: of(f, x))(x) for f in (one, each)]
        assert str(programs[0]) == str(programs[1])


def test_a_window_of_minus_infinity_gives_its_cotangent_to_a_place_of_x():
    pool = fp.max_pool(3, stride=1, padding="same")
    y, kept = pool.forward((), jnp.full((1, 2, 2, 1), -jnp.inf))
    dx = pool.backward((), kept, jnp.ones_like(y))[1]
    assert (y == -jnp.inf).all() and dx.sum() == 4  # none in the padding, where it would be lost


X2 = "x must have a batch axis, 2 space axes and a channel axis, got shape (5, 8, 2)"
BAD = [
    (
        lambda: conv(4, (3, 3), stride=(1, 1, 1)),
        "stride must have one number for 2 space axes, got (1, 1, 1)",
    ),
    (
        init(fp.conv(4, 3), 5, 2),
        "x must have a batch axis, space and a channel axis, got shape (5, 2)",
    ),
    (lambda: fp.conv(4, (3, 0)), "kernel must be at least 1, got (3, 0)"),
    (lambda: fp.conv(4, (3, 3), stride=0), "stride must be at least 1, got 0"),
    (
        lambda: fp.conv(4, (3, 3), dilation=(1, 1, 1)),
        "dilation must have one number for 2 space axes, got (1, 1, 1)",
    ),
    (
        lambda: fp.conv(4, (3,), padding="full"),
        "padding must be 'same', 'valid', a number or a pair for each of 1 space axes, got 'full'",
    ),
    (lambda: fp.conv(4, (3,), padding=[(1, -1)]), "padding must be at least 0, got [(1, -1)]"),
    (
        lambda: fp.conv(4, (3,), groups=3),
        "features must be a positive multiple of groups 3, got 4",
    ),
    (
        init(fp.conv(4, (3,), groups=2), 5, 8, 3),
        "x must have a positive multiple of groups 2 for channels, got 3",
    ),
    (init(fp.conv(4, (3, 3)), 5, 8, 2), X2),
    (
        init(fp.conv(4, (9,), padding="valid"), 5, 8, 2),
        "x must be at least as large as the window (9,), got (8,) with its padding",
    ),
    (
        init(fp.conv(4, (3,), dilation=4, padding=((0, 0),)), 5, 8, 2),
        "x must be at least as large as the window (9,), got (8,) with its padding",
    ),
    (
        init(fp.conv_transpose(4, (9,), padding=((0, 0),)), 5, 8, 2),
        "x must be at least as large as the window (9,), got (8,) with its padding",
    ),
    (lambda: fp.conv_transpose(0, (3,)), "features must be at least 1, got 0"),
    (lambda: fp.max_pool((0,)), "window must be at least 1, got (0,)"),
    (lambda: fp.max_pool((2,), stride=-1), "stride must be at least 1, got -1"),
    (
        lambda: fp.max_pool((2,), padding=((2, 0),)),
        "padding must be smaller than the window (2,), got ((2, 0),)",
    ),
    (
        lambda: fp.max_pool((9, 2)).forward((), jnp.zeros((5, 8, 8, 2))),
        "x must be at least as large as the window (9, 2), got (8, 8) with its padding",
    ),
    (lambda: fp.average_pool((2, 2)).forward((), jnp.zeros((5, 8, 2))), X2),
    (
        lambda: fp.global_max_pool().forward((), jnp.zeros((5, 8))),
        "x must have a batch axis, space and a channel axis, got shape (5, 8)",
    ),
    (lambda: fp.upsample(0), "factor must be at least 1, got 0"),
    (lambda: upsample(2, "cubic"), "method must be 'nearest' or 'bilinear', got 'cubic'"),
    (
        lambda: fp.upsample((2, 2)).forward((), jnp.zeros((5, 8, 2))),
        "factor must have one number for 1 space axes, got (2, 2)",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence[:40] for _, sentence in BAD])
def test_bad_input(call, sentence):
    raises(ValueError, sentence, call)


def test_wrong_types():
    for kernel in ((3.5,), 3.0, "3", None, True):
        sentence = f"kernel must be of integers, got {kernel!r}"
        raises(TypeError, sentence, lambda kernel=kernel: conv(4, kernel))
    layer = fp.conv(4, (3,))
    integers = jnp.zeros((5, 8, 2), jnp.int32)
    raises(
        TypeError,
        "x must be of floating dtype, got int32[5,8,2]",
        lambda: layer.init(KEY, integers),
    )
    x = jnp.zeros((5, 8, 2))
    raises(TypeError, "params must be ConvParams(w, b), got tuple", lambda: layer.forward((), x))
    raises(
        ValueError,
        "x must have 2 channels to go with w of shape (3, 2, 4) in 1 groups, got 3",
        lambda: jax.jit(layer.forward)(layer.init(KEY, x), jnp.zeros((5, 8, 3))),
    )


@pytest.mark.parametrize(("groups", "convolutions"), [(1, 2), (2, 2), (4, 0)])
def test_on_a_cpu_every_convolution_is_channels_last(groups, convolutions):
    """XLA is fast at others only outside of loops: a weight's gradient took 100 times as long.
    Depthwise ones are sums."""
    layer, x = fp.conv(4, (3, 3), groups=groups), jnp.ones((2, 5, 5, 4))
    params = layer.init(KEY, x)
    traced = jax.jit(layer.backward).trace(params, x, x)
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]") == convolutions
    assert text.count("stablehlo.convolution(") == convolutions
