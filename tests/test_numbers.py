"""Any number, in any dtype and any batch: value and gradient are those of float64, within the
rounding of the dtype; NaN is never lost; infinite inputs give the limits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.cases import CONVOLUTIONS, LAYERS, RECURRENT, SEQUENCES, build
from tests.test_backward import cotangent
from tests.test_bad_input import raises

DTYPES = ["float16", "bfloat16", "float32", "float64"]
FLOAT = [case for case in LAYERS if case.id != "reshape-integers"]
LONG = CONVOLUTIONS + RECURRENT + SEQUENCES  # to compile
NEAR = 48  # roundings: the most that a layer of the table makes one after the other


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bell(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def cdf(x):
    return np.vectorize(math.erfc)(-x / np.sqrt(2)) / 2


def cubic(x):
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def cubic_slope(x):
    return np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


# Value and derivative from the definition, at numbers where that is safe; and at both infinities.
ACTIVATIONS = {
    "relu": (fp.relu(), lambda x: (np.maximum(x, 0), x > 0), ((0, 0), (np.inf, 1))),
    "leaky_relu": (
        fp.leaky_relu(0.25),
        lambda x: (np.where(x < 0, x / 4, x), np.where(x < 0, 0.25, 1)),
        ((-np.inf, 0.25), (np.inf, 1)),
    ),
    "leaky_relu-zero": (
        fp.leaky_relu(0.0),
        lambda x: (np.maximum(x, 0), x >= 0),
        ((0, 0), (np.inf, 1)),
    ),
    "elu": (
        fp.elu(),
        lambda x: (np.where(x > 0, x, np.expm1(x)), np.where(x > 0, 1, np.exp(x))),
        ((-1, 0), (np.inf, 1)),
    ),
    "gelu": (fp.gelu(), lambda x: (x * cdf(x), cdf(x) + x * bell(x)), ((0, 0), (np.inf, 1))),
    "gelu_tanh": (
        fp.gelu_tanh(),
        lambda x: (
            x * sigmoid(2 * cubic(x)),
            sigmoid(2 * cubic(x)) + x / 2 * cubic_slope(x) / np.cosh(cubic(x)) ** 2,
        ),
        ((0, 0), (np.inf, 1)),
    ),
    "silu": (
        fp.silu(),
        lambda x: (x * sigmoid(x), sigmoid(x) * (1 + x * sigmoid(-x))),
        ((0, 0), (np.inf, 1)),
    ),
    "tanh": (fp.tanh(), lambda x: (np.tanh(x), 1 / np.cosh(x) ** 2), ((-1, 0), (1, 0))),
    "sigmoid": (fp.sigmoid(), lambda x: (sigmoid(x), sigmoid(x) * sigmoid(-x)), ((0, 0), (1, 0))),
    "softplus": (
        fp.softplus(),
        lambda x: (np.log1p(np.exp(x)), sigmoid(x)),
        ((0, 0), (np.inf, 1)),
    ),
}
SAFE = np.array([-12.0, -5, -2, -0.7, -1e-3, 0, 1e-3, 0.7, 2, 5, 12])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_their_definitions_and_their_limits(name, dtype, x64):
    layer, plain, ends = ACTIVATIONS[name]
    dtype = jnp.dtype(dtype)
    most = float(jnp.finfo(dtype).max)
    huge = np.array([-np.inf, -most, -most / 8, np.nan, most / 8, most, np.inf])
    x = jnp.asarray(np.concatenate([SAFE, huge])).astype(dtype)

    @jax.jit
    def run(x):
        y, kept = layer.forward((), x)
        return y, layer.backward((), kept, jnp.ones_like(x))[1]

    y, dx = (np.asarray(leaf.astype(jnp.float64)) for leaf in run(x))
    exact = np.asarray(x.astype(jnp.float64))
    # `1 + tanh u` is rounded to half an eps, and multiplied with `x u'`, 17 at -5 where it rounds.
    n, near = len(SAFE), (16 if name == "gelu_tanh" else 8) * float(jnp.finfo(dtype).eps)
    for got, want in zip((y, dx), plain(exact[:n]), strict=True):
        np.testing.assert_allclose(got[:n], want, rtol=near, atol=near)
    assert np.isnan(y[n + 3]) and np.isnan(dx[n + 3])
    for at, (value, slope) in zip((slice(n, n + 3), slice(n + 4, None)), ends, strict=True):
        far = exact[at]
        limit = slope * far if np.isinf(value) else value
        np.testing.assert_allclose(y[at], limit, rtol=near, atol=near)
        np.testing.assert_allclose(dx[at], slope, rtol=near, atol=near)


def floats(function, tree):
    return jax.tree.map(
        lambda leaf: function(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def rows(x, n):
    return x if n is None else jax.tree.map(lambda leaf: leaf[:n], x)


def marked(cases):
    return [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in cases]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [case for case in FLOAT if case.id != "from_function"],  # the sine of a huge number
    ids=lambda case: case.id,
)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(DTYPES),
    batch=st.sampled_from([None, 1]),
    power=st.sampled_from([-1.0, -0.4, 0.0, 0.4]),
)
def test_as_in_float64(case, dtype, batch, power):
    """From the smallest numbers whose differences are not subnormal, which a CPU takes for zero, to
    those whose squares are just below the greatest."""
    with jax.enable_x64(True):
        dtype = jnp.dtype(dtype)
        params, x, key = build(case, dtype)
        info = jnp.finfo(dtype)
        scale = float(info.tiny / info.eps) if power == -1 else float(info.max) ** power
        scale = min(scale, 1e80)  # whose cube autodiff wants, in float64 too
        x = x if case.id == "dense-one-axis" else rows(x, batch)
        x = floats(lambda leaf: (leaf.astype(jnp.float64) * scale).astype(dtype), x)
        if case.id.startswith("batch_norm") and batch:
            x = floats(lambda leaf: jnp.concatenate([leaf, -leaf]), x)  # one row has no variance

        def forward(params, x):
            return case.layer.forward(params, x, key)[0]

        dy = cotangent(jax.eval_shape(forward, params, x))

        @jax.jit
        def run(params, x, dy):
            y, kept = case.layer.forward(params, x, key)
            return y, case.layer.backward(params, kept, dy)

        @jax.jit
        def plain(params, x, dy):
            y, pullback = jax.vjp(forward, params, x)
            given = jax.tree.map(
                lambda leaf, d: np.zeros(leaf.shape, jax.dtypes.float0) if d is None else d,
                y,
                dy,
                is_leaf=lambda node: node is None,
            )
            return y, pullback(given)

        wide = functools.partial(floats, lambda leaf: leaf.astype(jnp.float64))
        got, want = run(params, x, dy), plain(*wide((params, x, dy)))
        eps, least = float(info.eps), float(info.tiny)
        found, wanted = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (got, want))
        for path, a in found.items():  # statistics and integers have no cotangents
            b = wanted[path]
            a, b = np.asarray(a.astype(jnp.float64)), np.asarray(b.astype(dtype), np.float64)
            near = NEAR * (eps * np.abs(b[np.isfinite(b)]).max(initial=0) + least)
            np.testing.assert_allclose(a, b, rtol=0, atol=near)


@pytest.mark.parametrize("case", marked(FLOAT), ids=lambda case: case.id)
def test_no_examples_give_no_gradient_or_are_refused(case):
    params, x, key = build(case)
    empty = floats(lambda leaf: leaf[:0], x) if case.id == "dense-one-axis" else rows(x, 0)

    def run(params, x):
        y, kept = case.layer.forward(params, x, key)
        return y, case.layer.backward(params, kept, cotangent(y))

    if case.id in ("dense-one-axis", "batch_norm"):
        with pytest.raises(ValueError, match="x must have"):
            run(params, empty)
        return
    dparams, dx = jax.jit(run)(params, empty)[1]
    assert not any(leaf.any() for leaf in jax.tree.leaves(dparams))
    floating = [x for x in jax.tree.leaves(empty) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert [d.shape for d in jax.tree.leaves(dx)] == [x.shape for x in floating]


@pytest.mark.parametrize(
    "case",
    marked([case for case in FLOAT if case.id not in ("embedding", "attention-masked")]),
    ids=lambda case: case.id,
)
def test_nan_is_never_lost(case):
    params, x, key = build(case)
    first = next(i for i, leaf in enumerate(jax.tree.leaves(x)) if leaf.dtype == jnp.float32)
    leaves, tree = jax.tree.flatten(x)
    at = (-1,) * leaves[first].ndim  # the last of all, in a sequence of full length
    if case.id == "last_step" or case.id.endswith("lengths"):
        leaves[-1] = jnp.full_like(leaves[-1], leaves[0].shape[1])
    leaves[first] = leaves[first].at[at].set(jnp.nan)
    forward = jax.jit(lambda p, x: case.layer.forward(p, x, key)[0])
    y = forward(params, tree.unflatten(leaves))
    assert any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(y))


NORMS = {
    "layer_norm": (fp.layer_norm(), (8, 60), None),
    "group_norm": (fp.group_norm(2), (3, 4, 5, 8), None),
    "batch_norm": (fp.batch_norm(), (40, 6), jax.random.key(0)),
    "rms_norm": (fp.rms_norm(), (8, 60), None),
}
SMALL_STEPS = [(1e4, 1e-3), (-3e5, 0.1), (1e7, 1.0), (1e5, 0.0)]  # about a large mean
SIZES = [1e-30, 1e12, 1e18, 1e20, 1e30]


@pytest.mark.parametrize(("mean", "step"), [*SMALL_STEPS, *((0.0, size) for size in SIZES)])
@pytest.mark.parametrize("name", NORMS)
def test_normalisations_of_numbers_of_any_size(name, mean, step, x64):
    """The rounding of a mean that is as large as the steps has no say. Right as long as squares
    are numbers; then NaN, which does not pass unseen."""
    norm, shape, key = NORMS[name]
    rng = np.random.default_rng(0)
    steps = rng.integers(-5, 6, shape) if mean else rng.standard_normal(shape)
    x = jnp.asarray(mean + step * steps, jnp.float32)
    dy = jnp.asarray(rng.standard_normal(shape), jnp.float32)

    @jax.jit
    def run(params, x, dy):
        y, kept = norm.forward(params, x, key)
        return y, norm.backward(params, kept, dy)

    params = norm.init(None, x)
    wide = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.float64))
    got = wide(run(params, x, dy))
    if step > 1e19:
        assert jnp.isnan(got[0]).all() and jnp.isnan(got[1][1]).all()
        return
    close, least = (1e-5, 1.0) if mean else (1e-4, 0.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=close, atol=close / 10 * max(np.abs(b).max(), least)
        ),
        got,
        run(*wide((params, x, dy))),
    )


def test_branches_get_cotangents_in_their_own_dtypes():
    narrow, wide = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3))
    whole = jnp.ones((2, 3), jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        for layer in (fp.add(), fp.concatenate()):
            y, kept = layer.forward((), (narrow, wide, whole))
            first, second, third = layer.backward((), kept, y)[1]
            assert (y.dtype, first.dtype, second.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
            assert third is None
        both = fp.serial(fp.parallel(fp.serial(), fp.cast(fp.dense(3), jnp.bfloat16)), fp.add())
        params = both.init(jax.random.key(0), wide)
        y, kept = both.forward(params, wide)
        assert both.backward(params, kept, y)[1].dtype == jnp.float32
        places = fp.learned_positions(4)
        table = places.init(jax.random.key(0), wide)
        y, kept = places.forward(table, narrow)
        assert places.backward(table, kept, y)[1].dtype == jnp.bfloat16


def test_one_array_where_branches_are_wanted():
    sentence = "x must be a tuple of arrays, one a branch, got float32[5,3]"
    for layer in (fp.add(), fp.concatenate()):
        raises(TypeError, sentence, lambda layer=layer: layer.forward((), jnp.ones((5, 3))))
