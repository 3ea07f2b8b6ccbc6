"""Small models agree with the same ones in Flax, forward and every gradient; and bad input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.cases import quickly
from tests.test_bad_input import raises

KEY = jax.random.key(0)
FEW = settings(max_examples=5, deadline=None, derandomize=True)
WIDE = {"param_dtype": jnp.float64}


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))  # float64 under x64


def same(model, flax, variables, x):
    """Flax with the params that `variables` makes of ours gives the output and all gradients."""

    def both(params, x):
        y, residuals = model.forward(params, x)
        want, pullback = jax.vjp(lambda p, x: flax.apply({"params": variables(p)}, x), params, x)
        dy = normal(*y.shape) + 1
        return (y, model.backward(params, residuals, dy)), (want, pullback(dy))

    params = quickly(model.init)(KEY, x)
    with jax.numpy_dtype_promotion("standard"):  # Flax mixes dtypes
        got, expected = quickly(both)(params, x)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-8, 1e-9), got, expected)


def affine(params):
    bias = {} if params.b is None else {"bias": params.b}
    return {"kernel": params.w, **bias}


class MLP(nn.Module):
    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for i, n in enumerate(self.features):
            x = nn.Dense(n, name=f"{i}", **WIDE)(nn.tanh(x) if i else x)
        return x


@given(features=st.lists(st.integers(1, 5), min_size=1, max_size=4), n=st.integers(1, 4))
@FEW
def test_mlp(features, n):
    def variables(params):
        dense = params[::2] if len(features) > 1 else (params,)  # one child adds no level
        return {f"{i}": affine(p) for i, p in enumerate(dense)}

    with jax.enable_x64(True):
        model = fp.mlp(*features, activation=fp.tanh)
        same(model, MLP(tuple(features)), variables, normal(n, 3))


class PreActivation(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.GroupNorm(2, epsilon=1e-5, name="norm0", **WIDE)(x))
        y = nn.Conv(self.width, (3, 3), self.stride, use_bias=False, name="conv0", **WIDE)(y)
        y = nn.relu(nn.GroupNorm(2, epsilon=1e-5, name="norm1", **WIDE)(y))
        y = nn.Conv(self.width, (3, 3), use_bias=False, name="conv1", **WIDE)(y)
        if self.stride > 1:
            x = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, name="short", **WIDE)(x)
        return x + y


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), use_bias=False, name="stem", **WIDE)(x)
        for name, width, stride in (("a", 2, 1), ("b", 2, 1), ("c", 4, 2), ("d", 4, 1)):
            x = PreActivation(width, stride, name=name)(x)
        x = nn.relu(nn.GroupNorm(2, epsilon=1e-5, name="norm", **WIDE)(x))
        return nn.Dense(3, name="head", **WIDE)(x.mean((1, 2)))


@pytest.mark.slow
def test_cnn_is_the_pre_activated_residual_network(x64):
    def branch(params):
        norm0, _, conv0, norm1, _, conv1 = params
        norms = ({"scale": n.scale, "bias": n.bias} for n in (norm0, norm1))
        return dict(
            zip(
                ("norm0", "norm1", "conv0", "conv1"),
                (*norms, affine(conv0), affine(conv1)),
                strict=True,
            )
        )

    def copy(params):  # the only one under its scan
        return branch(jax.tree.map(lambda leaf: leaf[0], params))

    def variables(params):
        wider = params.stage_1.first.parallel
        return {
            "stem": affine(params.stem),
            "a": branch(params.stage_0.first),
            "b": copy(params.stage_0.rest),
            "c": branch(wider.branch) | {"short": affine(wider.short)},
            "d": copy(params.stage_1.rest),
            "norm": {"scale": params.norm.scale, "bias": params.norm.bias},
            "head": affine(params.head),
        }

    model = fp.cnn(3, widths=(2, 4), blocks=2, norm=lambda: fp.group_norm(2))
    same(model, ResNet(), variables, normal(2, 6, 4, 1))


@pytest.mark.slow
def test_cnn_with_batch_norm_is_evaluated_by_its_statistics(x64):
    """Where training sees all data in one batch, inference gives the same."""
    model, x = fp.cnn(3, widths=(2, 4), norm=fp.batch_norm), normal(8, 4, 4, 1)
    params = fp.calibrate(model, quickly(model.init)(KEY, x), [x])
    forward = quickly(model.forward)
    trained, _ = forward(params, x, KEY)
    np.testing.assert_allclose(forward(params, x)[0], trained, 1e-9, 1e-9)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        over_time = nn.RNN(nn.OptimizedLSTMCell(4, name="cell", **WIDE), name="over_time")
        return nn.Dense(2, name="head", **WIDE)(jnp.asarray(over_time(x))[:, -1])


@given(n=st.integers(1, 3), time=st.integers(1, 5))
@FEW
def test_rnn(n, time):
    def variables(params):
        cell, _, head = params
        gates = zip("ifgo", *(jnp.split(leaf, 4, -1) for leaf in cell), strict=True)
        named = [
            (f"i{g}", {"kernel": w_x}, f"h{g}", {"kernel": w_h, "bias": b})
            for g, w_x, w_h, b in gates
        ]
        return {
            "cell": {k: v for a, x, b, h in named for k, v in ((a, x), (b, h))},
            "head": affine(head),
        }

    with jax.enable_x64(True):
        same(fp.rnn(2, fp.lstm(4)), Recurrent(), variables, normal(n, time, 3))


TWO_CELLS = fp.rnn(2, fp.gru(3), fp.lstm(2))
of_two_cells = quickly(TWO_CELLS.forward)


@pytest.mark.slow
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
@FEW
def test_rnn_sees_no_padding(lengths):
    x = normal(len(lengths), 5, 2).astype(jnp.float32)
    params = TWO_CELLS.init(KEY, x)
    y, _ = of_two_cells(params, (x, jnp.array(lengths)))
    for i, n in enumerate(lengths):
        alone, _ = of_two_cells(params, x[i : i + 1, :n])
        np.testing.assert_allclose(y[i], alone[0], 1e-5, 1e-6)


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2, (3, 3), 2, name="down0", **WIDE)(x))
        x = nn.relu(nn.Conv(3, (3, 3), 2, name="down1", **WIDE)(x))
        x = nn.Dense(5, name="code", **WIDE)(x.reshape(len(x), -1))
        x = nn.relu(nn.Dense(6, name="open", **WIDE)(x).reshape(-1, 2, 1, 3))
        x = nn.relu(nn.ConvTranspose(2, (3, 3), (2, 2), name="up0", **WIDE)(x))
        return nn.ConvTranspose(1, (3, 3), (2, 2), name="up1", **WIDE)(x)


def test_autoencoder(x64):
    def variables(params):
        (_, down0, _, down1, _, _, code), (opened, _, _, up0, _, up1) = params
        names = ("down0", "down1", "code", "open", "up0", "up1")
        return dict(zip(names, map(affine, (down0, down1, code, opened, up0, up1)), strict=True))

    model = fp.autoencoder((8, 4, 1), code=5, widths=(2, 3))
    same(model, Autoencoder(), variables, normal(2, 8, 4, 1))


X = jnp.ones((2, 6, 6, 1))


@pytest.mark.parametrize(
    ("sentence", "build"),
    [
        ("features must have at least one number, got none", lambda: fp.mlp()),
        ("features must be at least 1, got 0", lambda: fp.mlp(3, 0)),
        ("widths must have at least one number, got none", lambda: fp.cnn(3, widths=())),
        ("blocks must be at least 1, got 0", lambda: fp.cnn(3, blocks=0)),
        ("features must be at least 1, got 0", lambda: fp.cnn(0)),
        ("cells must have at least one layer, got none", lambda: fp.rnn(3)),
        (
            "widths must have at least one number, got none",
            lambda: fp.autoencoder((4, 4, 1), widths=()),
        ),
        (
            "shape must have h and w that 4 divides, got (8, 6, 1)",
            lambda: fp.autoencoder((8, 6, 1)),
        ),
        (
            "stage/norm_0: channels must divide into 4 groups, got 6 channels",
            lambda: fp.cnn(3, widths=(6,), norm=lambda: fp.group_norm(4)).init(KEY, X),
        ),
        (
            "encoder/reshape: an example of shape (6, 6, 1) does not reshape to (4, 4, 1)",
            lambda: fp.autoencoder((4, 4, 1), widths=(2,)).init(KEY, X),
        ),
    ],
)
def test_bad_input(sentence, build):
    raises(ValueError, sentence, build)
