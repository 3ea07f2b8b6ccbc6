"""Recurrent layers: the same as Flax's, forward and every gradient; lengths hide what is behind."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

import funprop as fp
from tests.cases import Case, build, normal, quickly

KEY = jax.random.key(0)
X = jnp.ones((2, 3, 4))
LENGTHS = jnp.array([3, 1])


def gradient(layer, params, x, dy):
    def run(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, *layer.backward(params, residuals, dy)

    return quickly(run)(params, x, dy)


def lstm_of_flax(params):
    """Flax keeps a matrix a gate, in our order."""
    cell = {}
    for name, w_x, w_h, b in zip("ifgo", *(jnp.split(leaf, 4, -1) for leaf in params), strict=True):
        cell |= {f"i{name}": {"kernel": w_x}, f"h{name}": {"kernel": w_h, "bias": b}}
    return cell


def gru_of_flax(params):
    w_x, w_h, b = (jnp.split(leaf, 3, -1) for leaf in params[:3])
    cell = {}
    for i, name in enumerate("rzn"):
        cell |= {f"i{name}": {"kernel": w_x[i], "bias": b[i]}, f"h{name}": {"kernel": w_h[i]}}
    cell["hn"] = {"kernel": w_h[2], "bias": params.b_h}
    return cell


LSTM_OF_FLAX = nn.OptimizedLSTMCell(4, param_dtype=jnp.float64), lstm_of_flax
GRU_OF_FLAX = nn.GRUCell(4, param_dtype=jnp.float64), gru_of_flax


@pytest.mark.parametrize("lengths", [None, (5, 0, 3)], ids=["one-length", "lengths"])
@pytest.mark.parametrize(
    ("layer", "cell", "of_flax"),
    [
        (fp.lstm(4), *LSTM_OF_FLAX),
        (fp.lstm(4, keep="output"), *LSTM_OF_FLAX),
        (fp.gru(4), *GRU_OF_FLAX),
        (fp.gru(4, keep="output"), *GRU_OF_FLAX),
    ],
    ids=["lstm", "lstm-output", "gru", "gru-output"],
)
def test_the_same_as_flax(layer, cell, of_flax, lengths, x64):
    params, x, _ = build(Case("", layer, normal(3, 5, 2)), jnp.float64)
    dy = jax.random.normal(KEY, (3, 5, 4), jnp.float64)
    lengths = None if lengths is None else jnp.array(lengths)

    def flax(params, x):
        variables = {"params": {"cell": of_flax(params)}}
        y: Any = nn.RNN(cell).apply(variables, x, seq_lengths=lengths)
        return (
            y
            if lengths is None
            else jnp.where(jnp.arange(5)[None, :, None] < lengths[:, None, None], y, 0)
        )

    def of_jax(params, x):
        y, pullback = jax.vjp(flax, params, x)
        return y, pullback(dy)

    with jax.numpy_dtype_promotion("standard"):
        want, wanted = quickly(of_jax)(params, x)
    if lengths is None:
        y, dparams, dx = gradient(layer, params, x, dy)
    else:
        (y, _), dparams, (dx, _) = gradient(layer, params, (x, lengths), (dy, None))
    chex.assert_trees_all_close((y, (dparams, dx)), (want, wanted), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [fp.lstm, fp.gru], ids=["lstm", "gru"])
def test_parts_of_a_batch_and_both_ways_to_keep_agree(make, x64):
    params, x, _ = build(Case("", make(3), normal(18, 4, 2)), jnp.float64)
    dy = jax.random.normal(KEY, (18, 4, 3), jnp.float64)
    whole, again = (gradient(layer, params, x, dy) for layer in (make(3), make(3, keep="output")))
    chex.assert_trees_all_close(again, whole, rtol=1e-9, atol=1e-12)
    parts = [gradient(make(3), params, x[i : i + 9], dy[i : i + 9]) for i in (0, 9)]
    y, dparams, dx = zip(*parts, strict=True)
    summed = jax.tree.map(jnp.add, *dparams)
    joined = jnp.concatenate(y), summed, jnp.concatenate(dx)
    chex.assert_trees_all_close(joined, whole, rtol=1e-9, atol=1e-12)


def test_what_a_recurrence_keeps():
    """Beside `x` and `y` the gates, and the cells of a long short-term memory; or nothing."""
    for make, arrays in ((fp.lstm, 5), (fp.gru, 4)):
        for keep, more in (("gates", arrays), ("output", 0)):
            layer = make(4, keep=keep)
            params = layer.init(KEY, X)
            kept = jax.tree.leaves(jax.eval_shape(layer.forward, params, X)[1])
            assert len(kept) == 2 + more


def test_the_forget_gate_starts_open():
    params = fp.lstm(2).init(KEY, X)
    assert params.b.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(params.w_h[:, 2:4] @ params.w_h[:, 2:4].T, np.eye(2), atol=1e-6)


@settings(max_examples=4, deadline=None)
@given(
    batch=st.integers(1, 3),
    lengths=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    make=st.sampled_from([fp.lstm, fp.gru]),
)
def test_a_sequence_among_others_is_as_alone(batch, lengths, make):
    """Whatever stands behind it, in outputs and in every gradient."""
    lengths = np.array(lengths[:batch], np.uint8)
    model = fp.serial(make(3), fp.last_step())
    x = np.array(jax.random.normal(KEY, (batch, 4, 2)))
    params = quickly(model.init)(KEY, (jnp.asarray(x), jnp.asarray(lengths)))
    for row, n in zip(x, lengths, strict=True):
        row[n:] = np.nan
    dy = jnp.ones((batch, 3))
    y, dparams, (dx, _) = gradient(model, params, (jnp.asarray(x), jnp.asarray(lengths)), dy)
    total = jax.tree.map(jnp.zeros_like, params)
    for i, n in enumerate(lengths):
        assert not dx[i, n:].any()
        if n == 0:
            assert not y[i].any()
            continue
        alone, d, dx_alone = gradient(model, params, jnp.asarray(x[i : i + 1, :n]), dy[:1])
        chex.assert_trees_all_close((y[i], dx[i, :n]), (alone[0], dx_alone[0]), atol=1e-5)
        total = jax.tree.map(jnp.add, total, d)
    chex.assert_trees_all_close(dparams, total, atol=1e-4)


@pytest.mark.slow
def test_a_classifier_of_sequences_learns():
    """Does the last of the steps that are there exceed zero?"""
    model = fp.serial(
        fp.with_lengths(fp.dense(8)),
        fp.lstm(8),
        fp.with_lengths(fp.dropout(0.1)),
        fp.gru(8),
        fp.last_step(),
        fp.dense(2),
    )
    x = jax.random.normal(KEY, (64, 6, 1))
    lengths = jax.random.randint(KEY, (64,), 1, 7)
    last = jnp.take_along_axis(x[..., 0], lengths[:, None] - 1, 1)[:, 0]
    batch = (x, lengths), (last > 0).astype(jnp.int32)
    objective = fp.objective(model, fp.softmax_cross_entropy(), accuracy=fp.accuracy)
    train = fp.step(fp.backprop(objective), optax.adam(3e-2))
    state = train.init(objective.init(KEY, batch), KEY)
    with jax.numpy_dtype_promotion("standard"):  # for optax's adam
        for _ in range(150):
            state, _ = train.update(state, batch)
    assert fp.measure(fp.backprop(objective))(state.params, batch)["accuracy"].mean > 0.9


@pytest.mark.parametrize("length", [-1, 4])
@pytest.mark.parametrize("layer", [fp.lstm(2), fp.last_step()], ids=lambda layer: layer.name)
def test_a_length_out_of_range(layer, length):
    x = X, LENGTHS.at[1].set(length)
    params = layer.init(KEY, (X, LENGTHS))
    with pytest.raises(ValueError, match=f"^lengths must be from 0 to 3, got {length}$"):
        layer.forward(params, x)

    def run(x):
        return jax.tree.leaves(layer.forward(params, x)[0])[0]

    y = jax.jit(run)(x)
    assert jnp.isnan(y[1]).all() and jnp.isfinite(y[0]).all()
    checked = jax.jit(checkify.checkify(run, errors=checkify.nan_checks))
    with pytest.raises(checkify.JaxRuntimeError, match="nan generated"):
        checked(x)[0].throw()
    checked((X, LENGTHS))[0].throw()


@pytest.mark.parametrize(
    ("kind", "sentence", "call"),
    [
        (ValueError, "features must be at least 1, got 0", lambda: fp.lstm(0)),
        (ValueError, "features must be at least 1, got 0", lambda: fp.gru(0)),
        (
            ValueError,
            'keep must be "gates" or "output", got \'all\'',
            lambda: fp.lstm(2, keep="all"),
        ),
        (
            ValueError,
            "x must be [batch, time, i] with steps and inputs, got shape (3, 4)",
            lambda: fp.lstm(2).init(KEY, X[0]),
        ),
        (
            ValueError,
            "x must be [batch, time, i] with steps and inputs, got shape (2, 0, 4)",
            lambda: fp.last_step().forward((), X[:, :0]),
        ),
        (
            TypeError,
            "lengths must be integers, got float32[2]",
            lambda: fp.gru(2).init(KEY, (X, jnp.ones(2))),
        ),
        (
            TypeError,
            "lengths must be an array, got list",
            lambda: fp.last_step().forward((), (X, [1, 2])),
        ),
        (
            ValueError,
            "lengths must have shape (2,), got (3,)",
            lambda: fp.gru(2).init(KEY, (X, jnp.array([1, 1, 1]))),
        ),
        (ValueError, "x must be (x, lengths), got 3 parts", lambda: fp.lstm(2).init(KEY, (X,) * 3)),
        (
            ValueError,
            "x must be (x, lengths), got one array",
            lambda: fp.with_lengths(fp.relu()).forward((), X),
        ),
        (
            ValueError,
            "x must have a last axis of 4 to go with w_x of shape (4, 8), got 3",
            lambda: fp.lstm(2).forward(fp.lstm(2).init(KEY, X), X[..., :3]),
        ),
        (
            TypeError,
            "params must be LSTMParams(w_x, w_h, b), got GRUParams",
            lambda: fp.lstm(2).forward(fp.gru(2).init(KEY, X), X),
        ),
        (
            TypeError,
            "x must be of floating dtype, got int32[2,3,4]",
            lambda: fp.gru(2).init(KEY, X.astype(jnp.int32)),
        ),
    ],
)
def test_refused_in_one_sentence(kind, sentence, call):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == sentence
