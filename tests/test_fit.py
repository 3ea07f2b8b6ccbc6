"""`fit`: exact sums, a last batch as it comes, no say of padding, no cost but the updates'."""

import collections
import contextlib
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.train.progress import silent
from funprop.train.sums import nothing, on_host, plus

KEY = jax.random.key(0)
N = 21  # batches of 4 leave one
X = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
DATA = X, Y
LOSS = fp.softmax_cross_entropy()


def objective(*layers, loss=LOSS, **metrics):
    return fp.objective(fp.serial(fp.dense(4), *layers, fp.dense(2)), loss, **metrics)


def trained(step, params, *, key=None, **options):
    options = {"epochs": 1, "batch_size": 4, "progress": None} | options
    return fp.fit(step, step.init(params, key), DATA, **options)


def stepped(whole, optimizer=None):
    return fp.step(fp.backprop(whole), optimizer or optax.sgd(0.1)), whole.init(KEY, DATA)


@contextlib.contextmanager
def counted():
    """How often JAX traces and compiles within."""
    events, listening = collections.Counter(), [True]

    def note(event, duration_secs, **_):
        if listening:
            events[event.rsplit("/")[-1]] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    listening.clear()


# ----------------------------------------------------------------------------------------- sums


def test_a_million_terms():
    term = {"loss": fp.Sum(jnp.float32(0.1), 2**30 + 1)}
    many = jax.jit(lambda sums: jax.lax.fori_loop(0, 10**6, lambda i, s: plus(s, term), sums))
    specs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, term))
    total, weight = on_host(many(nothing(specs)))["loss"]
    assert total == pytest.approx(1e6 * float(np.float32(0.1)), rel=1e-12)
    assert weight == 10**6 * (2**30 + 1)  # more digits than float32 has, and more than int32


def test_what_is_infinite_stays_so():
    term = {"loss": fp.Sum(jnp.float32(3e38), jnp.float32(1))}
    sums = plus(plus(plus(nothing(term), term), term), term)
    assert on_host(sums)["loss"].total == np.inf


def test_the_loss_of_an_epoch_is_the_mean_of_its_terms():
    n = 30_000
    data = np.full(n, 0.1, np.float32), np.zeros(n, np.float32)
    step = fp.step(fp.from_loss(lambda w, batch: (w * batch[0].sum(), 1)), optax.sgd(0.0))
    state = step.init(jnp.array(1.0), None)
    result = fp.fit(step, state, data, epochs=1, batch_size=1, progress=None)
    assert result.history[0]["loss"] == pytest.approx(float(np.float32(0.1)), rel=1e-7)


# --------------------------------------------------------------------------------- the last batch


def test_a_function_of_ones_own_gets_batches_as_the_data_is():
    seen = set()

    def loss_fn(w, batch):
        x, y = batch
        seen.add((len(batch), x.shape))
        return ((x @ w - y.astype(w.dtype)) ** 2).sum(), len(x)

    step = fp.step(fp.from_loss(loss_fn), optax.sgd(0.0))
    result = trained(step, jnp.ones(3))
    assert seen == {(2, (4, 3)), (2, (1, 3))}
    assert result.history[0]["loss"] == pytest.approx(((X.sum(1) - Y) ** 2).mean(), rel=1e-6)


def test_batch_norm_sees_no_padding():
    """The loss of an epoch is that over the batches by themselves."""
    whole = objective(fp.batch_norm())
    step, params = stepped(whole, optax.sgd(0.0))
    got = trained(step, params, key=KEY, seed=3).history[0]["loss"]
    order = np.random.default_rng([3, 0]).permutation(N)
    parts = [order[i : i + 4] for i in range(0, N, 4)]
    totals = [float(whole.forward(params, (X[p], Y[p]), KEY)[0].total) for p in parts]
    assert got == pytest.approx(sum(totals) / N, rel=1e-6)


def test_padding_is_exact_where_it_is_asked_for():
    whole = objective(fp.layer_norm(), accuracy=fp.accuracy)
    for grad_fn in (fp.backprop(whole), fp.clip_per_example(whole, 0.5)):
        step, params = fp.step(grad_fn, optax.sgd(0.1)), whole.init(KEY, DATA)
        short, padded = (trained(step, params, last=last) for last in ("short", "pad"))
        for name in ("loss", "accuracy", "clipped"):
            if name in short.history[0]:
                assert padded.history[0][name] == pytest.approx(short.history[0][name], rel=1e-6)


def centred(x):
    return x - x.mean(0, keepdims=True)


CENTRE = fp.layer(
    forward=lambda params, x: (centred(x), ()),
    backward=lambda params, kept, dy: ((), centred(dy)),
    name="centre",
)
UNWEIGHTED = fp.layer(
    forward=lambda params, x: LOSS.forward(params, x[:2]),
    backward=lambda params, kept, dy: ((), (*LOSS.backward(params, kept, dy)[1], None)),
    name="unweighted",
)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (objective(fp.batch_norm()), "has a say here, as batch_norm mixes"),
        (objective(CENTRE), "has a say here"),
        (objective(loss=UNWEIGHTED), "counts in loss"),
        (objective(f1=lambda outputs, targets, *_: fp.accuracy(outputs, targets)), "counts in f1"),
        (objective(f1=lambda outputs, targets: fp.accuracy(outputs, targets)), "needs weights"),
        (None, "is for objectives"),
    ],
    ids=["batch_norm", "own layer", "loss", "metric", "metric of two", "loss function"],
)
def test_padding_is_refused_where_it_would_have_a_say(whole, reason):
    if whole is None:
        step = fp.step(fp.from_loss(lambda w, batch: (w.sum(), len(batch[0]))), optax.sgd(0.1))
        params = jnp.ones(3)
    else:
        # The first updates change nothing, as with a warm-up; padding is found nevertheless.
        step, params = stepped(whole, optax.adam(optax.linear_schedule(0, 1, 9)))
    refused = pytest.raises(ValueError, match=rf"last must be 'short' or 'drop'.*padding {reason}")
    with jax.numpy_dtype_promotion("standard"):  # for optax
        with refused:
            trained(step, params, key=KEY, last="pad")
        trained(step, params, key=KEY, last="drop")


PART_B = fp.layer(
    forward=lambda params, x: (x["b"], jax.tree.map(jnp.zeros_like, x)),
    backward=lambda params, zeros, dy: ((), zeros | {"b": dy}),
    name="part_b",
)


def test_padding_is_found_whichever_numbers_it_has():
    """Whether rows differ by themselves or not; and what one data set hides, another may not."""
    whole = fp.objective(fp.serial(PART_B, fp.dense(4), CENTRE, fp.dense(2)), LOSS)
    step = fp.step(fp.backprop(whole), optax.sgd(0.1))
    a = np.arange(N, dtype=np.float32)
    constant, same_ends = np.ones((N, 3), np.float32), np.vstack([X[-1:], X[1:]])
    for b in (constant, 0 * constant, same_ends, X):
        data = {"a": a, "b": b}, Y
        state = step.init(whole.init(KEY, data), None)
        with pytest.raises(ValueError, match="padding has a say here"):
            fp.fit(step, state, data, epochs=1, batch_size=4, last="pad", progress=None)


def test_nothing_is_taken_for_proven_by_ids_that_are_all_the_same():
    whole = fp.objective(fp.serial(fp.embedding(5, 4), CENTRE, fp.dense(2)), LOSS)
    step = fp.step(fp.backprop(whole), optax.sgd(0.1))
    ids = np.arange(N, dtype=np.int32) % 5
    state = step.init(whole.init(KEY, (ids, Y)), None)
    options = {"epochs": 1, "batch_size": 4, "last": "pad", "progress": None}
    fp.fit(step, state, (0 * ids, Y), **options)  # where it makes no difference
    with pytest.raises(ValueError, match="padding has a say here"):
        fp.fit(step, state, (ids, Y), **options)


def test_a_target_of_weight_zero_may_be_anything():
    x, weights = X[:8], np.ones(8, np.float32)
    weights[[2, 5]] = 0
    whole = fp.objective(fp.dense(1), fp.mean_squared())
    step = fp.step(fp.backprop(whole), optax.sgd(0.1))
    found = []
    for filling in (0, np.nan, np.inf):
        targets = x[:, :1].copy()
        targets[[2, 5]] = filling
        data = x, targets, weights
        state = step.init(whole.init(KEY, data), None)
        found.append(fp.fit(step, state, data, epochs=2, batch_size=3, last="pad", progress=None))
    for other in found[1:]:
        chex.assert_trees_all_equal(found[0].state.params, other.state.params)
        assert other.history[-1]["loss"] == found[0].history[-1]["loss"]


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_that_is_short(parts):
    """Where it has fewer examples than parts it is filled up."""
    whole = objective()
    params = whole.init(KEY, DATA)
    step = fp.step(fp.microbatch(fp.backprop(whole), parts), optax.sgd(0.1))
    got = trained(step, params).history[0]["loss"]
    assert got == pytest.approx(trained(*stepped(whole)).history[0]["loss"], rel=1e-6)


def test_no_word_of_compiling_again_for_batches_of_fits_own_making(caplog):
    step, params = stepped(objective())
    for last in ("short", "pad", "drop"):
        trained(step, params, last=last)
    assert not caplog.records


# --------------------------------------------------------------------------------------- its cost


@pytest.mark.parametrize("over", ["one device", "a mesh"])
def test_nothing_is_traced_or_compiled_twice(over):
    whole = objective(accuracy=fp.accuracy)
    grad_fn, mesh = fp.backprop(whole), None
    if over == "a mesh":
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        grad_fn = fp.data_parallel(grad_fn, mesh)
    step, params = fp.step(grad_fn, optax.sgd(0.1)), whole.init(KEY, DATA)
    options = {"held_out": DATA, "measure": fp.measure(grad_fn), "mesh": mesh}
    noted = []

    class Noted(silent):
        def epoch(self, row, epochs):
            noted.append(dict(events))

    with counted() as events:
        state = step.init(params, None)
        fp.fit(step, state, DATA, epochs=6, batch_size=4, progress=Noted, **options)
        assert noted[0] and noted[-1] == noted[1]  # calls of the second are ahead of the first
        events.clear()
        trained(step, params, epochs=3, **options)
    assert not events["jaxpr_trace_duration"] and not events["backend_compile_duration"]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_run_that_stops_returns_the_state_that_it_reached(monkeypatch, ahead):
    """Also where the next device call was under way."""
    if not ahead:
        module = importlib.import_module("funprop.train.fit")  # the name is the function's too
        monkeypatch.setattr(module, "KEPT_BYTES", 0)
    step, params = stepped(objective())
    one = trained(step, params, epochs=3)
    stopped = trained(step, params, epochs=9, stop=[lambda h: "here" if len(h) == 3 else None])
    assert stopped.stopped == "here" and len(stopped.history) == 3
    for a, b in zip(*(jax.tree.leaves(r.state) for r in (one, stopped)), strict=True):
        np.testing.assert_array_equal(a, b)


# --------------------------------------------------------------------------------- what it reports


def test_epochs_go_on_where_others_ended():
    step, params = stepped(objective())
    whole = trained(step, params, epochs=3, batch_size=7)
    state = step.init(params, None)
    for epoch in range(3):
        part = fp.fit(step, state, DATA, epochs=1, batch_size=7, first_epoch=epoch, progress=None)
        state = part.state
        assert part.history[0]["epoch"] == epoch + 1
        assert part.history[0]["loss"] == whole.history[epoch]["loss"]
    np.testing.assert_array_equal(*(jax.tree.leaves(s.params)[0] for s in (state, whole.state)))


@pytest.mark.parametrize("wrapped", [lambda s: s, fp.skip_nonfinite], ids=["ema", "around"])
def test_held_out_data_is_measured_with_the_average(wrapped):
    whole = objective()
    step, params = stepped(whole, optax.sgd(1.0))
    measure = fp.measure(fp.backprop(whole))
    result = trained(wrapped(fp.ema(step, 0.9)), params, held_out=DATA, measure=measure)
    average, raw = (
        float(measure(p, DATA)["loss"].mean) for p in (result.state.average, result.state.params)
    )
    assert result.history[0]["held_out/loss"] == pytest.approx(average, rel=1e-6)
    assert average != pytest.approx(raw, rel=1e-3)


@pytest.mark.parametrize(
    "guarded",
    [lambda s: fp.skip_nonfinite(s, n=100), fp.loss_scale],
    ids=["skip_nonfinite", "loss_scale"],
)
def test_updates_that_are_left_out_as_asked_are_no_divergence(guarded):
    broken = fp.from_loss(lambda w, batch: (w.sum() * jnp.nan, len(batch[0])))
    result = trained(guarded(fp.step(broken, optax.sgd(0.1))), jnp.ones(3), epochs=2)
    assert result.stopped == "all 2 epochs done"
    assert [row["skipped"] for row in result.history] == [1.0, 1.0]


@pytest.mark.parametrize(
    "transform",
    [
        lambda whole: fp.microbatch(fp.backprop(whole), 2),
        lambda whole: fp.gradient_statistics(fp.backprop(whole)),
        lambda whole: fp.ordered(fp.backprop(whole), 2),
        lambda whole: fp.clip_per_example(whole, 1.0, noise=0.1),
    ],
    ids=["microbatch", "gradient_statistics", "ordered", "noise"],
)
def test_measuring_is_by_the_plain_loss(transform):
    """Whatever the number of rows, and with no key."""
    whole = objective(accuracy=fp.accuracy)
    params = whole.init(KEY, DATA)
    rows = np.resize(X, (1025, 3)), np.resize(Y, 1025)
    measure, exact = fp.measure(transform(whole)), fp.measure(fp.backprop(whole))
    step = fp.step(fp.backprop(whole), optax.sgd(0.0))
    row = trained(step, params, held_out=rows, measure=measure).history[0]
    for name, value in exact(params, rows).items():
        assert row[f"held_out/{name}"] == pytest.approx(float(value.mean), rel=1e-6)
