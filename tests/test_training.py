"""Steps and the loop around them: exact, deterministic, and stopped when it should be."""

import os
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.train import loop
from funprop.train.data.in_memory import epoch_rows, gather
from funprop.train.progress import for_terminal, lines, live
from tests.cases import OPTIMISED

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (50, 3))
Y = (X[:, 0] > 0).astype(jnp.int32)
DATA = X, Y


def objective(*layers):
    model = fp.serial(fp.dense(8), fp.tanh(), *layers, fp.dense(2))
    return fp.objective(model, fp.softmax_cross_entropy(), accuracy=fp.accuracy)


def start(whole, optimizer=None, key=None):
    train = fp.step(fp.backprop(whole), optimizer or optax.sgd(0.3))
    return train, train.init(whole.init(KEY, DATA), key)


def test_the_state_given_stays_usable():
    whole = objective()
    params = whole.init(KEY, DATA)
    train = fp.step(fp.backprop(whole), optax.sgd(0.1))
    state = train.init(params, KEY)
    train.update(state, DATA)
    assert state.params.dense_0.w.is_deleted()  # donated
    assert jnp.isfinite(params.dense_0.w).all()  # copied
    state = train.init(params, KEY)
    fp.fit(train, state, DATA, epochs=1, batch_size=10, progress=None)
    assert not state.params.dense_0.w.is_deleted()


def test_scan_gives_the_bits_of_single_updates():
    train, state = start(objective(fp.dropout(0.3)), key=jax.random.key(5))
    other = jax.tree.map(jnp.copy, state)
    batches = jax.tree.map(lambda leaf: leaf.reshape(5, 10, *leaf.shape[1:]), DATA)
    totals = []
    for i in range(5):
        state, metrics = train.update(state, jax.tree.map(lambda leaf, i=i: leaf[i], batches))
        totals.append(metrics["loss"].total)
    other, metrics = fp.scan(train).update(other, batches)
    chex.assert_trees_all_equal(state, other)
    chex.assert_trees_all_equal(jnp.stack(totals), metrics["loss"].total)


def test_each_update_draws_other_noise_and_the_same_again():
    train, state = start(objective(fp.dropout(0.5)), optax.sgd(0.0), jax.random.key(5))
    runs = []
    for _ in range(2):
        here = jax.tree.map(jnp.copy, state)
        losses = []
        for _ in range(3):
            here, metrics = train.update(here, DATA)
            losses.append(float(metrics["loss"].mean))
        runs.append(losses)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


def test_a_batch_of_weight_zero_changes_nothing():
    train, state = start(objective())
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = train.update(state, (*DATA, jnp.zeros(50)))
    chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, state.params))
    assert metrics["loss"].weight == 0


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 30)),
        optax.lion(1e-3),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
        optax.lbfgs(),
    ],
    ids=["nesterov", "schedule", "lion", "clip", "plateau", "lbfgs"],
)
def test_any_optax_transform(optimizer):
    with jax.numpy_dtype_promotion("standard"):  # optax itself promotes
        train, state = start(objective(), optimizer)
        losses = []
        for _ in range(30):
            state, metrics = train.update(state, DATA)
            losses.append(float(metrics["loss"].mean))
    assert losses[-1] < losses[0]


def test_all_leaves_as_one_vector_are_updated_alike():
    """What is frozen stands beside them."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(1e-2))
    whole = fp.freeze(objective(), "*/dense_0")
    states = []
    with jax.numpy_dtype_promotion("standard"):
        for way in (optimizer, optax.flatten(optimizer)):
            train, state = start(whole, way)
            for _ in range(3):
                state, _ = train.update(state, DATA)
            states.append(state.params)
    chex.assert_trees_all_close(*states, rtol=1e-5)
    assert not jnp.allclose(states[0].dense_1.w, whole.init(KEY, DATA).dense_1.w)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), epoch=st.integers(0, 9))
def test_every_epoch_sees_each_example_once(n, batch_size, epoch):
    rows = epoch_rows(n, batch_size, 3, epoch)
    assert sorted(rows[rows >= 0].tolist()) == list(range(n))
    assert (rows == -1).sum() == -n % batch_size
    dropped = epoch_rows(n, batch_size, 3, epoch, last="drop")
    assert len(set(dropped.ravel().tolist())) == dropped.size == n - n % batch_size
    assert (rows == epoch_rows(n, batch_size, 3, epoch)).all()
    if n > 20:  # by chance the same order: never
        assert (rows != epoch_rows(n, batch_size, 3, epoch + 1)).any()
        assert (rows != epoch_rows(n, batch_size, 4, epoch)).any()


def test_padding_is_exact():
    """A padded batch has the gradient of the short one."""
    whole = objective()
    params = whole.init(KEY, DATA)
    rows = jnp.array([4, 7, -1, -1])
    for data in (DATA, (*DATA, jnp.arange(50.0))):
        padded = fp.backprop(whole)(params, gather(data, rows, padded=True))
        short = fp.backprop(whole)(params, gather(data, rows[:2], padded=False))
        chex.assert_trees_all_close(padded[:4], short[:4], rtol=1e-6, atol=1e-7)


def test_fit_is_the_plain_loop(x64):
    """Two epochs of `fit` against a loop of single updates over the same batches."""
    whole = objective()
    train, state = start(whole)
    result = fp.fit(train, state, DATA, epochs=2, batch_size=8, seed=4, progress=None)
    for epoch in range(2):
        total, weight = 0.0, 0.0
        for rows in epoch_rows(50, 8, 4, epoch):
            rows = jnp.asarray(rows[rows >= 0])  # the last batch is short, as it comes
            state, metrics = train.update(state, gather(DATA, rows, padded=False))
            total += float(metrics["loss"].total)
            weight += float(metrics["loss"].weight)
        assert weight == 50
        assert abs(result.history[epoch]["loss"] - total / weight) < 1e-6
    chex.assert_trees_all_close(result.state.params, state.params, rtol=1e-6)


def test_same_seed_same_bits_whatever_the_calls(monkeypatch):
    whole = objective(fp.dropout(0.2))
    results = []
    data = jax.tree.map(lambda leaf: np.tile(leaf, (8, *[1] * (leaf.ndim - 1))), DATA)
    for seconds in (0.2, 1e-9):  # many updates a device call, or one
        monkeypatch.setattr(loop, "CALL_SECONDS", seconds)
        train, state = start(whole, key=jax.random.key(1))
        results.append(fp.fit(train, state, data, epochs=3, batch_size=3, seed=2, progress=None))
    chex.assert_trees_all_equal(*(r.state.params for r in results))
    assert [row["loss"] for row in results[0].history] == [
        row["loss"] for row in results[1].history
    ]
    train, state = start(whole, key=jax.random.key(1))
    other = fp.fit(train, state, DATA, epochs=3, batch_size=8, seed=3, progress=None)
    assert not (other.state.params.dense_0.w == results[0].state.params.dense_0.w).all()


def test_stops_at_a_target_and_by_patience():
    whole = objective()
    measure = fp.measure(fp.backprop(whole))
    train, state = start(whole)
    options = {"batch_size": 10, "held_out": DATA, "measure": measure, "progress": None}
    result = fp.fit(
        train, state, DATA, epochs=200, stop=[fp.at_least("held_out/accuracy", 0.95)], **options
    )
    assert result.stopped == "held_out/accuracy reached 0.95"
    assert result.history[-1]["held_out/accuracy"] >= 0.95
    assert all(row["held_out/accuracy"] < 0.95 for row in result.history[:-1])
    still = fp.step(fp.backprop(whole), optax.sgd(0.0))
    result = fp.fit(
        still, state, DATA, epochs=200, stop=[fp.patience("held_out/loss", 4)], **options
    )
    assert (result.stopped, len(result.history)) == ("held_out/loss no better for 4 epochs", 5)


@pytest.mark.parametrize(
    ("values", "best", "stops"),
    [
        ([np.nan, 3.0, 2.0, 1.0], min, False),
        ([np.nan, 0.1, 0.2], max, False),
        ([2.0, np.nan, np.nan], min, True),
        ([np.nan, np.nan, np.nan], min, True),
        ([3.0, np.nan, 1.0, 2.0], min, False),
    ],
)
def test_nan_is_worse_than_any_number_to_patience(values, best, stops):
    history = [{"loss": value} for value in values]
    assert bool(fp.patience("loss", 2, best)(history)) is stops


def test_held_out_is_measured_whole_with_no_key():
    whole = objective(fp.dropout(0.5))
    train, state = start(whole, key=KEY)
    measure = fp.measure(fp.backprop(whole))
    result = fp.fit(
        train, state, DATA, epochs=1, batch_size=10, held_out=DATA, measure=measure, progress=None
    )
    exact = measure(result.state.params, DATA)
    assert result.history[0]["held_out/loss"] == pytest.approx(float(exact["loss"].mean), rel=1e-6)


def test_a_run_that_diverges_says_so():
    line = fp.objective(fp.dense(1), fp.mean_squared())
    data = X, X[:, :1]
    train = fp.step(fp.backprop(line), optax.sgd(1e30))
    state = train.init(line.init(KEY, data), None)
    result = fp.fit(train, state, data, epochs=20, batch_size=10, progress=None)
    assert "diverged" in result.stopped and len(result.history) < 20


def test_ctrl_c_returns_what_has_been_reached():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    train, state = start(objective())
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    result = fp.fit(train, state, DATA, epochs=10_000_000, batch_size=10, progress=None)
    assert result.stopped == "interrupted"
    assert result.history and jnp.isfinite(result.state.params.dense_0.w).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_progress(capsys):
    train, state = start(objective())

    def shown(progress):
        fp.fit(train, state, DATA, epochs=3, batch_size=10, progress=progress)
        return capsys.readouterr().out

    assert shown(None) == ""
    assert isinstance(for_terminal(), lines)  # pytest's output is no terminal
    plain = shown(lambda: lines(seconds=0))
    assert [line.split()[:2] for line in plain.splitlines()[:3]] == [
        ["epoch", str(i)] for i in (1, 2, 3)
    ]
    assert "loss" in plain and "accuracy" in plain and "examples/s" in plain
    assert plain.splitlines()[-1] == "stopped: all 3 epochs done"
    assert "3/3" in shown(live) and "left" in shown(live)


def test_backward_is_dead_code_in_measure():
    whole = fp.objective(fp.serial(fp.dense(64), fp.tanh(), fp.dense(64)), fp.mean_squared())
    batch = jnp.ones((32, 64)), jnp.ones((32, 64))
    params = whole.init(KEY, batch)

    def flops(function):
        return jax.jit(function).lower(params, batch).compile(OPTIMISED).cost_analysis()["flops"]

    assert flops(fp.measure(fp.backprop(whole))) < 0.5 * flops(fp.backprop(whole))
