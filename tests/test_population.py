"""A population: each member trains as it would alone, whatever the others do."""

import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.train import progress

N = 22
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 3))
DATA = X.astype(np.float32), (X[:, 0] > 0).astype(np.int32)
KEYS = jax.random.split(jax.random.key(0), 2)


def objective(smoothing=0.0, rate=0.0):
    model = fp.serial(fp.dense(4), fp.relu(), fp.dropout(rate), fp.dense(2))
    return fp.objective(model, fp.softmax_cross_entropy(smoothing), accuracy=fp.accuracy)


def made(learning_rate, smoothing=0.1, rate=0.3, decay=0.9, norm=1.0):
    clipped = fp.clip_per_example(objective(smoothing, rate), norm)
    return fp.skip_nonfinite(fp.ema(fp.step(clipped, optax.adam(learning_rate)), decay), 10**6)


def plain(learning_rate):
    return fp.step(fp.backprop(objective()), optax.sgd(learning_rate))


def init(key):
    return objective().init(key, DATA)


def alone(step, key):
    first, second = jax.random.split(key)
    return step.init(init(first), second)


@jax.numpy_dtype_promotion("standard")  # for optax
def test_every_member_is_what_it_is_alone(x64):
    """Numbers of the optimizer, the loss, a layer, a transform and a wrapper; in float64."""
    data = X, DATA[1]
    numbers = {
        "learning_rate": [1e-3, 0.1, 0.03],
        "smoothing": [0.0, 0.1, 0.3],
        "rate": [0.3, 0.0, 0.5],
        "decay": [0.9, 0.5, 1.0],
        "norm": [0.1, 1.0, 2.0],
    }
    train = fp.population(made, **numbers)
    params = lambda key: objective().init(key, data)
    state = train.init(params, KEYS)
    got = fp.fit(train, state, data, epochs=2, batch_size=11, progress=None)
    for i in (0, 3, 5):
        step = made(**{name: values[i // 2] for name, values in numbers.items()})
        first, second = jax.random.split(KEYS[i % 2])
        one = fp.fit(
            step, step.init(params(first), second), data, epochs=2, batch_size=11, progress=None
        )
        member = fp.member(got.state, i)
        chex.assert_trees_all_close(member.average, one.state.average, rtol=1e-12, atol=1e-14)
        chex.assert_trees_all_close(member.inner.inner.opt_state, one.state.inner.inner.opt_state)
        assert jax.tree.structure(member) == jax.tree.structure(one.state)
        for row, other in zip(got.history, one.history, strict=True):
            for name in ("loss", "accuracy", "clipped", "skipped"):
                assert row["members"][name][i] == pytest.approx(other[name], rel=1e-12, abs=1e-14)
    assert not np.allclose(*(fp.member(got.state, i).params[0].w for i in (0, 1)))


def test_one_that_diverges_harms_no_other_and_nothing_that_fit_does(tmp_path):
    """The rows are the best's, rules look at them, checkpoints are written and gone on from."""
    rates = [1e30, 0.1, 0.3]
    options = {"batch_size": 11, "progress": None, "held_out": DATA, "measure": MEASURE}

    made_once = functools.cache(lambda *rates: fp.population(plain, learning_rate=rates))

    def fitted(rates, epochs=3, **more):
        train = made_once(*rates)
        return fp.fit(train, train.init(init, KEYS), DATA, epochs=epochs, **options | more)

    good, found = fitted([0.2, 0.1, 0.3]), fitted(rates)
    for i in (2, 3, 4, 5):
        chex.assert_trees_all_equal(fp.member(good.state, i), fp.member(found.state, i))
    row = found.history[-1]
    losses = row["members"]["held_out/loss"]
    assert all(map(math.isnan, losses[:2])) and len(losses) == 6
    assert row["member"] == int(np.nanargmin(losses)) and row["held_out/loss"] == min(losses[2:])
    assert row["accuracy"] == row["members"]["accuracy"][row["member"]]
    first = fitted(rates, 1, checkpoints=tmp_path)
    assert first.history[-1]["members"]["loss"][0] != first.history[-1]["members"]["loss"][2]
    again = fitted(rates, checkpoints=tmp_path)
    chex.assert_trees_all_equal(again.state, found.state)
    told = [json.dumps([row["members"] for row in run.history]) for run in (again, found)]
    assert told[0] == told[1]
    below = found.history[0]["held_out/loss"]
    assert len(fitted(rates, stop=[fp.at_most("held_out/loss", below)]).history) == 1
    best = fp.callbacks.best_params("held_out/loss")
    assert fitted(rates, callbacks=[best]).state.members == 6
    ends = fitted([1e30, 1e30])
    assert ends.stopped == "the loss is nan: diverged"


MEASURE = fp.measure(fp.backprop(objective()))


def test_each_leaves_out_its_own_updates_and_the_run_ends_with_the_last():
    guarded = lambda scale: fp.skip_nonfinite(fp.step(fp.from_loss(loss(scale)), optax.sgd(0.1)), 2)
    loss = lambda scale: lambda w, batch: ((w * scale) ** 2 * batch[0].sum(), 4)
    data = np.ones(8, np.float32), np.ones(8, np.float32)

    def fitted(scales):
        train = fp.population(guarded, scale=scales)
        state = train.init(jnp.float32(1e-3), KEYS[0])
        return train, fp.fit(train, state, data, epochs=3, batch_size=4, progress=None)

    train, found = fitted([1e30, 1.0])
    assert fp.member(found.state, 0).params == np.float32(1e-3)
    assert fp.member(found.state, 1).params < 1e-3
    assert found.history[-1]["members"]["skipped"] == [1.0, 0.0] and len(found.history) == 3
    train.check(found.state)
    train, found = fitted([1e30, 1e31])
    with pytest.raises(
        FloatingPointError, match="all 2 members; the first: update 2: the gradient"
    ):
        train.check(found.state)


def test_scan_stands_around_and_bfloat16_stays():
    low = lambda key: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), init(key))
    train = fp.population(plain, learning_rate=[0.1, 0.2])
    data = jnp.asarray(X, jnp.bfloat16), DATA[1]
    many, batches = fp.scan(train), jax.tree.map(lambda leaf: leaf[None].repeat(3, 0), data)
    state, metrics = many.update(many.init(low, KEYS), batches)
    assert metrics["loss"].mean.shape == (3, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    one = train.init(low, KEYS)
    for _ in range(3):
        one, _ = train.update(one, data)
    chex.assert_trees_all_equal(one, state)


def test_the_table_knows_the_best_and_draws(tmp_path):
    rates = [1e-4, 0.3, 1e30]
    train = fp.population(plain, learning_rate=rates)
    options = {"held_out": DATA, "measure": MEASURE, "progress": None, "batch_size": 11}
    result = fp.fit(train, train.init(init, KEYS), DATA, epochs=4, **options)
    with progress.live() as display:  # which shows the best one's numbers
        display.update(1.0, 4, N, result.history[-1])
        display.epoch(result.history[-1], 4)
        assert display.bar.tasks[0].fields["metrics"].startswith("loss 0.")
    table = fp.population_table(result)
    assert table.best == result.history[-1]["member"] and table.best in (2, 3)
    assert table.order[0] == table.best and {*table.order[-2:]} == {4, 5}
    lines = repr(table).splitlines()
    assert lines[0].split() == [
        "member",
        "learning_rate",
        "seed",
        "loss",
        "accuracy",
        "held-out",
        "loss",
        "held-out",
        "accuracy",
    ]
    assert lines[2].split()[:3] == [str(table.best), "0.3", str(table.best % 2)]
    assert table._repr_html_().count("<tr>") == 7
    assert len(repr(result)) < 500 and "seed=int32[6]" in repr(result)
    assert "nan" in lines[-2] and "nan" in lines[-1]
    table.draw(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    plain_run = fp.fit(plain(0.1), alone(plain(0.1), KEYS[0]), DATA, epochs=1, **options)
    with pytest.raises(ValueError, match="result must be of a population"):
        fp.population_table(plain_run)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fp.population(3), "make must be a function from numbers to a Step, or a Step"),
        (lambda: fp.population(plain(0.1), rate=[1.0]), "make must be a function from numbers"),
        (lambda: fp.population(lambda: 3), "step must be a Step"),
        (lambda: fp.population(plain, learning_rate=0.1), "learning_rate must be numbers, one a"),
        (
            lambda: fp.population(plain, learning_rate=[0.1, math.nan]),
            "learning_rate must be finite",
        ),
        (lambda: fp.population(made, learning_rate=[0.1], decay=[1, 2]), "numbers must be of one"),
        (
            lambda: fp.population(made, learning_rate=[1, 2], decay=[0.5, 2.0]),
            "decay must be from 0",
        ),
        (lambda: fp.population(fp.scan(plain(0.1))), "scan must be outside population, scan"),
        (lambda: fp.ema(fp.population(plain(0.1)), 0.9), "population must be outside ema"),
        (
            lambda: fp.population(plain(0.1)).init(init, None),
            "keys must be random keys, one a seed",
        ),
        (lambda: fp.member(alone(plain(0.1), KEYS[0]), 0), "state must be of type Population"),
        (
            lambda: fp.member(fp.population(plain(0.1)).init(init, KEYS), 2),
            "i must be below 2, the number of members, got 2",
        ),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        call()
