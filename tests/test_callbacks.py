"""Callbacks, rows within epochs, validation by any function; and that they change no bit."""

import csv
import importlib
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.train.progress import silent

fit = importlib.import_module("funprop.train.fit")
KEY = jax.random.key(0)
N = 22
X = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
DATA = X, (X[:, 0] > 0).astype(np.int32)
WHOLE = fp.objective(fp.serial(fp.dense(4), fp.relu(), fp.dense(2)), fp.softmax_cross_entropy())
STEP = fp.step(fp.backprop(WHOLE), optax.inject_hyperparams(optax.sgd)(lambda n: 0.5 / (n + 1)))
OPTIONS = {"batch_size": 4, "progress": None, "held_out": DATA, "measure": fp.measure(STEP.grad_fn)}


@pytest.fixture(autouse=True)
def as_optax_wants():
    """Its schedules divide integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def trained(epochs=3, step=STEP, **options):
    state = step.init(WHOLE.init(KEY, DATA), None)
    return fp.fit(step, state, DATA, epochs=epochs, **OPTIONS | options)


def timeless(history):
    return [{k: v for k, v in row.items() if "second" not in k} for row in history]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_callback_may_keep_what_it_is_given_and_changes_no_bit(monkeypatch, ahead):
    """Whether a state's memory is that of the next or not."""
    if not ahead:
        monkeypatch.setattr(fit, "KEPT_BYTES", 0)
    plain, seen, shown = trained(), [], []

    class Shown(silent):
        def epoch(self, row, epochs):
            shown.append(row)

    def keep(row, state):
        seen.append((row, state))

    result = trained(callbacks=[keep], measure_every=4, progress=Shown)
    chex.assert_trees_all_equal(result.state, plain.state)
    assert shown == result.history == [row for row, _ in seen]
    assert [row["update"] for row in shown] == [4, 6, 8, 12, 16, 18]
    assert shown[0]["epoch"] == pytest.approx(4 / 6)
    ends = [row for row in result.history if row["epoch"] % 1 == 0]
    assert timeless(ends) == timeless(plain.history)
    for row, state in seen:  # each is the one of its row, now that the run is over
        loss = fp.measure(STEP.grad_fn)(state.params, DATA)["loss"].mean
        assert row["held_out/loss"] == pytest.approx(float(loss), rel=1e-6)
        assert row["learning_rate"] == pytest.approx(0.5 / row["update"])


def test_the_next_call_is_under_way_while_a_callback_runs(monkeypatch):
    """The device computes meanwhile."""
    launched, told = [], []
    loop = importlib.import_module("funprop.train.loop").Loop
    launch = loop._launch
    note = lambda self, call: launched.append(call) or launch(self, call)
    monkeypatch.setattr(loop, "_launch", note)
    trained(epochs=4, callbacks=[lambda row, state: told.append((row["epoch"], launched[-1]))])
    for epoch, call in told[:-1]:
        assert call.epoch == epoch


def test_a_run_that_is_gone_on_with_has_the_same_rows(tmp_path):
    """Killed between two epochs' ends: what was in the file beyond the checkpoint comes anew."""
    rows, more = (
        tmp_path / "rows.csv",
        {"measure_every": 5, "validate": lambda p: {"w": p[0].w[0, 0]}},
    )
    whole = trained(callbacks=[fp.callbacks.csv(rows)], **more)
    want = rows.read_text()

    def killed(row, state):
        if row["update"] == 12:
            raise KeyboardInterrupt

    kept = lambda: fp.Checkpoints(tmp_path / "kept", updates=7, seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        trained(callbacks=[killed, fp.callbacks.csv(rows)], checkpoints=kept(), **more)
    result = trained(callbacks=[fp.callbacks.csv(rows)], checkpoints=kept(), **more)
    chex.assert_trees_all_equal(result.state, whole.state)
    assert timeless(result.history) == timeless(whole.history)
    table = [list(csv.DictReader(text.splitlines())) for text in (want, rows.read_text())]
    assert timeless(table[0]) == timeless(table[1]) and len(table[0]) == 6
    assert [float(row["loss"]) for row in table[1]] == [row["loss"] for row in result.history]


def test_where_a_callback_fails_what_was_reached_is_saved_and_it_is_named(tmp_path):
    class Fails:
        def on_epoch(self, row, state):
            if row["update"] == at:
                raise ZeroDivisionError("mine")

    for at in (6, 10):
        kept = fp.Checkpoints(tmp_path / str(at), seconds=1e9)
        with pytest.raises(ZeroDivisionError, match="mine") as found:
            trained(callbacks=[Fails()], checkpoints=kept, measure_every=5)
        assert found.value.__notes__ == [f"in the callback Fails, after update {at}"]
        assert fp.Checkpoints(tmp_path / str(at)).all()[-1].update == at
        again = trained(checkpoints=tmp_path / str(at), measure_every=5)
        chex.assert_trees_all_equal(again.state, trained().state)
        assert len(again.history) == 6


def test_the_best_is_given_back_and_known_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "KEPT_BYTES", 0)
    worse = fp.step(
        fp.backprop(WHOLE), optax.sgd(lambda n: jnp.where(jnp.asarray(n) < 6, 0.1, -0.3))
    )
    best = fp.callbacks.best_params("held_out/loss")
    result = trained(4, worse, callbacks=[best])
    at = min(result.history, key=lambda row: row["held_out/loss"])
    assert best.row is at and at["epoch"] == 1.0
    chex.assert_trees_all_equal(result.state, trained(1, worse).state)
    chex.assert_trees_all_equal(best.params, result.state.params)
    for epochs in (2, 4):  # the second goes on from the last, and returns the best of the first
        again = fp.callbacks.best_params("held_out/loss")
        kept = fp.Checkpoints(tmp_path, keep=1, seconds=1e9)
        found = trained(epochs, worse, callbacks=[again], checkpoints=kept)
        chex.assert_trees_all_equal(found.state, result.state)
    assert timeless(found.history) == timeless(result.history)
    chex.assert_trees_all_equal(
        trained(4, worse, checkpoints=tmp_path).state, trained(4, worse).state
    )
    other = fp.Checkpoints(tmp_path / "other", metric="loss")
    with pytest.raises(
        ValueError, match="checkpoints must keep the best by min of 'held_out/loss'"
    ):
        trained(callbacks=[again], checkpoints=other)


def test_the_best_is_by_what_one_says_and_never_nan():
    values = iter([0.2, math.nan, 0.7, 0.7, 0.1])
    best = fp.callbacks.best_params("held_out/score", max)
    trained(5, callbacks=[best], validate=lambda params: {"score": next(values)})
    assert best.row["epoch"] == 3.0


def test_patience_counts_epochs_not_rows():
    values = iter(range(1000))
    rules = [fp.patience("held_out/x", 2)]
    result = trained(9, validate=lambda p: {"x": next(values)}, measure_every=1, stop=rules)
    assert result.history[-1]["update"] == 13  # the first row is the best, two epochs of six later
    assert result.stopped == "held_out/x no better for 2 epochs"


def test_learning_rates_of_parts_and_of_a_plain_schedule():
    rates = {
        "a": optax.inject_hyperparams(optax.sgd)(0.1),
        "b": optax.inject_hyperparams(optax.adam)(0.2),
    }
    labels = lambda params: jax.tree.map_with_path(
        lambda path, _: "ab"["b" in str(path[-1])], params
    )
    step = fp.step(fp.backprop(WHOLE), optax.partition(rates, labels))
    row = trained(1, step).history[0]
    assert row["learning_rate/a"] == pytest.approx(0.1) and row["learning_rate/b"] == pytest.approx(
        0.2
    )
    schedule = optax.linear_schedule(1.0, 0.0, 20)
    told = fp.callbacks.learning_rate(schedule)
    plain = fp.skip_nonfinite(fp.step(fp.backprop(WHOLE), optax.sgd(schedule)))
    first = trained(1, plain, callbacks=[told])
    assert first.history[0]["learning_rate"] == pytest.approx(float(schedule(5)))
    more = fp.fit(plain, first.state, DATA, epochs=1, callbacks=[told], **OPTIONS)
    assert more.history[0]["learning_rate"] == pytest.approx(float(schedule(11)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"callbacks": print}, "callbacks must be a list, got"),
        ({"callbacks": [3]}, r"callbacks must hold functions \(row, state\), or objects"),
        ({"callbacks": [fp.callbacks.csv]}, "callbacks must hold functions"),
        ({"callbacks": [fp.callbacks.best_params("f1")]}, "best_params wants 'f1', got epoch"),
        ({"measure_every": 0}, "measure_every must be at least 1, got 0"),
        ({"validate": 3}, "validate must be a function of params, got"),
        ({"validate": lambda p: 3}, "validate must give a dict of numbers, got"),
        ({"validate": lambda p: {"loss": 3}}, "validate must give names that are new, got 'loss'"),
        ({"validate": lambda p: {"f1": X}}, "validate must give a number for 'f1', got"),
    ],
)
def test_bad_input(options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        trained(1, **options)


# --------------------------------------------------------------------- other people's clients


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    events = importlib.import_module("tensorboardX.proto.event_pb2")

    result = trained(callbacks=[fp.callbacks.tensorboard(tmp_path)], measure_every=4)
    (file,) = tmp_path.iterdir()
    data, found = file.read_bytes(), {}
    while data:  # records of TensorFlow: length, its checksum, an event, its checksum
        n = int.from_bytes(data[:8], "little")
        event, data = events.Event.FromString(data[12 : 12 + n]), data[16 + n :]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    want = {row["update"]: row["held_out/loss"] for row in result.history}
    assert found["held_out/loss"] == pytest.approx(want)
    assert {"loss", "learning_rate", "epoch"} <= found.keys()


def test_mlflow(tmp_path, monkeypatch):
    client = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client.set_tracking_uri((tmp_path / "runs").as_uri())
    with pytest.raises(RuntimeError):
        trained(callbacks=[fp.callbacks.mlflow(), failing])
    result = trained(callbacks=[fp.callbacks.mlflow(run_name="mine")])
    assert client.active_run() is None
    good, bad = client.search_runs(output_format="list")
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.info.run_name == "mine"
    history = client.MlflowClient().get_metric_history(good.info.run_id, "held_out/loss")
    assert {m.step: m.value for m in history} == {
        row["update"]: row["held_out/loss"] for row in result.history
    }


def failing(row, state):
    raise RuntimeError


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")

    class Run:
        def __init__(self):
            self.logged, self.ended = [], None

        def log(self, numbers, step):
            self.logged.append((step, numbers))

        def finish(self, exit_code):
            self.ended = exit_code

    run = Run()
    result = trained(callbacks=[fp.callbacks.wandb(run)])
    assert [step for step, _ in run.logged] == [6, 12, 18] and run.ended is None
    assert [numbers for _, numbers in run.logged] == result.history
    json.dumps(run.logged)
    monkeypatch.setattr("wandb.init", lambda project: run)
    with pytest.raises(RuntimeError):
        trained(callbacks=[fp.callbacks.wandb(project="mine"), failing])
    assert run.ended == 1


@pytest.mark.slow
def test_wandb_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    trained(callbacks=[fp.callbacks.wandb(mode="offline", dir=str(tmp_path))])
    assert list(tmp_path.rglob("*.wandb"))
