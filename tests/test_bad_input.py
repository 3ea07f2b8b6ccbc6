"""Bad input gets one short sentence that names the argument or the leaf, what was expected and what
came; at build or trace time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.train.data.in_memory import arrays, check_data, split
from funprop.train.runs import job
from funprop.train.runs.tasks import task

KEY = jax.random.key(0)
X, Y = jnp.ones((8, 3)), jnp.zeros(8, jnp.int32)


def objective(model=None, loss=None):
    return fp.objective(model or fp.dense(2), loss or fp.softmax_cross_entropy())


def raises(kind, sentence, call):
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    assert str(error.value) == sentence
    assert len(sentence) < 200 and "\n" not in sentence


def test_shapes_that_do_not_chain_say_where():
    model = fp.serial(fp.dense(4), fp.residual(fp.serial(fp.relu(), fp.dense(5))), fp.dense(2))
    raises(
        ValueError,
        "residual: serial must give the shape and dtype it takes, float32[8,4], got float32[8,5]",
        lambda: model.init(KEY, X),
    )
    deep = fp.serial(fp.dense(4), fp.serial(fp.relu(), fp.reshape(3, 2)))
    raises(
        ValueError,
        "serial/reshape: an example of shape (4,) does not reshape to (3, 2)",
        lambda: deep.init(KEY, X),
    )
    good = fp.serial(fp.dense(4), fp.relu(), fp.dense(2))
    params = good.init(KEY, X)
    raises(
        ValueError,
        "dense_0: x must have a last axis of 3 to go with w of shape (3, 4), got x of shape (8, 7)",
        lambda: jax.jit(good.forward)(params, jnp.ones((8, 7))),
    )
    raises(
        ValueError,
        "dense: serial must give the shape and dtype it takes, float32[8,3], got float32[8,4]",
        lambda: fp.serial(fp.repeat(fp.serial(fp.dense(4)), 2), fp.relu()).init(KEY, X),
    )


def test_an_own_layer_is_located_too():
    def broken(params, x):
        raise ValueError("no good")

    own = fp.layer(forward=broken, backward=lambda *_: ((), ()), name="own")
    inside = fp.residual(fp.serial(fp.relu(), own))
    raises(ValueError, "residual/own: no good", lambda: fp.serial(inside, fp.relu()).init(KEY, X))


def test_errors_of_jax_itself_pass_unchanged():
    def branch(params, x):
        return (x if x.sum() > 0 else -x), ()

    own = fp.serial(fp.layer(forward=branch, backward=lambda *_: ((), ())))
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(own.forward)((), X)


def test_params_of_another_model():
    mine, other = objective(), objective(fp.serial(fp.dense(4), fp.relu(), fp.dense(2)))
    params = other.init(KEY, (X, Y))
    raises(
        ValueError,
        "params do not belong to this model: at w expected float32[3,2], got nothing",
        lambda: jax.jit(fp.backprop(mine))(params, (X, Y)),
    )
    narrow = objective(fp.serial(fp.dense(4), fp.relu(), fp.dense(5))).init(KEY, (X, Y))
    raises(
        ValueError,
        "params do not belong to this model: at dense_1/w expected float32[4,2], got float32[4,5]",
        lambda: fp.backprop(other)(narrow, (X, Y)),
    )
    raises(
        ValueError,
        "params must be a tuple of 3, one a layer, got 2",
        lambda: fp.serial(fp.relu(), fp.relu(), fp.relu()).forward(((), ()), X),
    )
    raises(
        TypeError,
        "params must be DenseParams(w, b), got tuple",
        lambda: fp.dense(2).forward((), X),
    )


@pytest.mark.parametrize("label", [-1, 2, 99])
def test_labels_outside_the_classes(label):
    labels = Y.at[3].set(label)
    sentence = f"labels must be from 0 to 1, got {label}"
    loss = fp.softmax_cross_entropy()
    raises(ValueError, sentence, lambda: loss.forward((), (jnp.ones((8, 2)), labels)))
    total, _ = jax.jit(loss.forward)((), (jnp.ones((8, 2)), labels))[0]
    assert jnp.isnan(total)  # never silently clamped
    train = fp.step(fp.backprop(objective()), optax.sgd(0.1))
    state = train.init(objective().init(KEY, (X, Y)), None)
    raises(
        ValueError,
        f"softmax_cross_entropy: {sentence}",
        lambda: fp.fit(train, state, (X, labels), epochs=1, batch_size=4, progress=None),
    )
    assert jnp.isfinite(state.params.w).all()  # what was given is still there


def test_a_label_of_weight_zero_may_be_anything():
    x = jnp.ones((2, 3)), jnp.array([1, -100]), jnp.array([1.0, 0.0])
    loss = fp.softmax_cross_entropy()
    for forward in (loss.forward, jax.jit(loss.forward)):
        y, kept = forward((), x)
        dlogits = loss.backward((), kept, fp.Sum(1.0, 0.0))[1][0]
        assert jnp.isfinite(y.total) and jnp.isfinite(dlogits).all()
        assert (dlogits[1] == 0).all()


def test_labels_that_are_not_integers():
    raises(
        TypeError,
        "softmax_cross_entropy: labels must be integers, got float32",
        lambda: jax.jit(fp.backprop(objective()))(
            objective().init(KEY, (X, Y)), (X, 1.0 * X[:, 0])
        ),
    )


def test_losses_refuse_shapes_that_would_broadcast():
    raises(
        ValueError,
        "targets must have the shape (8, 1), got (8,)",
        lambda: fp.mean_squared().forward((), (jnp.ones((8, 1)), jnp.ones(8))),
    )
    raises(
        ValueError,
        "labels must have the shape (8,), got (7,)",
        lambda: fp.softmax_cross_entropy().forward((), (jnp.ones((8, 2)), Y[:7])),
    )
    raises(
        ValueError,
        "weights must have shape (8, 2) or a leading part of it, got (2,)",
        lambda: fp.mean_squared().forward((), (X[:, :2], X[:, :2], jnp.ones(2))),
    )


def test_inputs_and_targets_of_different_length():
    raises(
        ValueError,
        "inputs and targets must have the same length, got shapes [(8, 3), (7,)]",
        lambda: objective().init(KEY, (X, Y[:7])),
    )
    raises(
        ValueError,
        "data must have as many inputs as targets, got 8 inputs, 7 targets",
        lambda: check_data((X, Y[:7])),
    )


def test_data_that_cannot_be_trained_on():
    raises(
        ValueError,
        "data must have at least one example, got none",
        lambda: check_data((X[:0], Y[:0])),
    )
    raises(
        ValueError,
        "data must be finite, got nan in inputs at [2, 1]",
        lambda: check_data((X.at[2, 1].set(jnp.nan), Y)),
    )
    raises(
        ValueError,
        "data must be finite, got inf in targets at [5]",
        lambda: check_data((X, X[:, 0].at[5].set(jnp.inf))),
    )
    raises(
        TypeError,
        "data must be (inputs, targets) or (inputs, targets, weights), got list",
        lambda: check_data([X, Y]),
    )
    raises(
        ValueError, "fraction must be between 0 and 1, got 1.5", lambda: split((X, Y), 1.5, seed=0)
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be from 1 to 8, the number of examples, got 0"),
        ({"batch_size": 9}, "batch_size must be from 1 to 8, the number of examples, got 9"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"last": "keep"}, "last must be 'short', 'pad' or 'drop', got 'keep'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"measure": lambda params, batch: {}}, "measure is of held_out data, and there is none"),
        (
            {"stop": [fp.at_least("f1", 1.0)]},
            "stop wants the metric 'f1', got epoch, update, loss, seconds, examples_per_second",
        ),
    ],
)
def test_fit_refuses(change, sentence):
    train = fp.step(fp.backprop(objective()), optax.sgd(0.1))
    state = train.init(objective().init(KEY, (X, Y)), None)
    options = {"epochs": 1, "batch_size": 4, "progress": None} | change
    raises(ValueError, sentence, lambda: fp.fit(train, state, (X, Y), **options))


class Frame:
    """What a DataFrame shows of itself to NumPy."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_what_numpy_takes_for_numbers_is_data(recwarn):
    """And the numbers are the same."""
    x, y = np.asarray(X), np.asarray(Y)
    for data in (
        (x.tolist(), y.tolist()),
        (x.astype(">f8"), y.astype(">i8")),
        (Frame(x.astype(np.float64)), y.astype(np.uint64)),
        (np.ma.masked_array(x), y),
    ):
        found = arrays(data)
        assert [leaf.dtype for leaf in found] in (
            [np.float32, np.int32],
            [np.float32, np.uint32],
        )
        np.testing.assert_array_equal(found[0], x)
        np.testing.assert_array_equal(found[1], y)
    wide = x.astype(np.float64), y.astype(np.int64)
    params = objective().init(KEY, wide)
    train = fp.step(fp.backprop(objective()), optax.sgd(0.1))
    fp.fit(train, train.init(params, None), wide, epochs=1, batch_size=4, progress=None)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("inputs", "kind", "sentence"),
    [
        (np.array(list("abcdefgh")), TypeError, "inputs must hold numbers, got dtype <U1"),
        (np.full(8, None), TypeError, "inputs must hold numbers, got dtype object"),
        (
            np.ma.masked_array(np.arange(8), np.arange(8) == 2),
            ValueError,
            "inputs must not be masked: give weights of zero instead",
        ),
        (
            np.arange(8) + 2**32,
            ValueError,
            "inputs must fit in int32, got 4294967296: set jax_enable_x64, or use less",
        ),
        (
            np.full(8, 1e300),
            ValueError,
            "inputs must fit in float32, got 1e+300: set jax_enable_x64, or use less",
        ),
        (3, TypeError, "inputs must be an array with an axis of examples, got int"),
    ],
)
def test_data_that_is_no_numbers(inputs, kind, sentence):
    raises(kind, f"data: {sentence}", lambda: check_data((inputs, Y)))


def test_weights_that_make_no_sense():
    raises(
        ValueError,
        "data: weights must be at least 0, got -1.0",
        lambda: check_data((X, Y, -jnp.ones(8))),
    )
    raises(
        ValueError, "data: weights must not all be zero", lambda: check_data((X, Y, jnp.zeros(8)))
    )


def test_fit_is_given_something_else():
    grad_fn, params = fp.backprop(objective()), objective().init(KEY, (X, Y))
    train = fp.step(grad_fn, optax.sgd(0.1))
    state, used = train.init(params, None), train.init(params, None)
    train.update(used, (X, Y))
    averaging = fp.ema(train, 0.9)
    measured = {"held_out": (X, Y)}

    def refused(sentence, step=train, state=state, kind=TypeError, **change):
        options = {"epochs": 1, "batch_size": 4, "progress": None} | change
        raises(kind, sentence, lambda: fp.fit(step, state, (X, Y), **options))

    refused(
        "step must be a Step, as step(grad_fn, optimizer) makes it, got the function grad_fn",
        step=grad_fn,
    )
    refused(
        "step must not be a scan: fit runs many updates in a device call itself",
        step=fp.scan(train),
        kind=ValueError,
    )
    without = "state must be what step.init(params, key) gives, got something without params: tuple"
    refused(without, state=(1, 2))
    refused(
        "state must be what step.init(params, key) gives, a TrainState, got the Averaged of "
        "another step or optimizer",
        state=averaging.init(params, None),
    )
    refused(
        "state must not have been given to an update before, which used up its memory: go on with "
        "the state that update gave",
        state=used,
        kind=ValueError,
    )
    refused("batch_size must be an integer, got 5.0", batch_size=5.0)
    refused("epochs must be an integer, got True", epochs=True)
    refused("seed must be an integer, got PRNGKeyArray", seed=KEY)
    refused("stop must be a list of rules, got function", stop=fp.at_least("loss", 1))
    refused("progress must be None or a function that makes a display, got True", progress=True)
    refused("mesh must be a jax.sharding.Mesh, got int", mesh=8)
    refused(
        "measure must be a function, as fp.measure makes it, got Step", measure=train, **measured
    )
    refused(
        "measure must give {name: Sum}, as fp.measure(grad_fn) does, got Gradient",
        measure=jax.jit(grad_fn),
        **measured,
    )
    raises(
        TypeError,
        "grad_fn must be a function (params, batch, key) -> Gradient, as backprop(objective) or "
        "from_loss(loss_fn) makes it, got Step",
        lambda: fp.measure(train),
    )


@pytest.mark.parametrize("name", ["loss", "epoch", "seconds", "held_out/loss", "skipped"])
def test_metrics_take_no_place_of_others(name):
    loss = fp.softmax_cross_entropy()
    sentence = f"metric '{name}' needs another name"
    with pytest.raises(ValueError, match=sentence):
        fp.objective(fp.dense(2), loss, **{name: fp.accuracy})
    theirs = fp.from_loss(lambda w, batch: (w.sum(), 1, {name: fp.Sum(w.sum(), 1)}))
    with pytest.raises(ValueError, match=sentence):
        theirs(X, (X, Y))


def test_metrics_that_are_no_sums():
    whole = fp.objective(fp.dense(2), fp.softmax_cross_entropy(), f1=lambda outputs, targets: 0.5)
    raises(
        TypeError,
        "metric 'f1' must be a Sum(total, weight), got float",
        lambda: fp.backprop(whole)(whole.init(KEY, (X, Y)), (X, Y)),
    )
    raises(
        TypeError,
        "objective must give a Sum, (total, weight) over the batch, got float32[8,2]",
        lambda: fp.backprop(fp.dense(2))(fp.dense(2).init(KEY, X), X),
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be positive and finite, got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"model": "rnn"}, "unknown model 'rnn', there are mlp"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion', there are sgd, momentum, adam, adamw"),
        (
            {"batch_size": 5000},
            "batch_size must be from 1 to 120, the number of examples, got 5000",
        ),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_the_job_refuses_and_leaves_no_folder(change, sentence, tmp_path):
    out = tmp_path / "run"
    raises(ValueError, sentence, lambda: job.train("iris", out=out, **change))
    assert list(tmp_path.iterdir()) == []


def test_the_job_refuses_an_unknown_set_and_a_folder_that_is_there(tmp_path):
    (tmp_path / "letter").touch()
    raises(
        ValueError,
        "unknown data set 'mnist', there are digits, digits-denoise, iris, breast-cancer, "
        "diabetes, stdlib",
        lambda: task("mnist"),
    )
    raises(
        ValueError,
        f"the run folder {tmp_path} exists already, and holds no run",
        lambda: job.train("iris", out=tmp_path),
    )


def test_from_loss_wants_sums():
    raises(
        TypeError,
        "loss_fn must return (total, weight), then metrics and statistics if there are any, sums "
        "over the batch, got float32[]",
        lambda: fp.from_loss(lambda w, x: w * x.sum())(1.0, X),
    )
    raises(
        TypeError,
        "loss_fn must return a scalar total and weight, got shapes (8,) and ()",
        lambda: fp.from_loss(lambda w, x: (w * x[:, 0], 8))(1.0, X),
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: fp.dense(0), "features must be at least 1, got 0"),
        (lambda: fp.dropout(1.0), "rate must be at least 0 and below 1, got 1.0"),
        (lambda: fp.elu(-1.0), "alpha must be positive, got -1.0"),
        (lambda: fp.huber(0.0), "delta must be positive, got 0.0"),
        (lambda: fp.repeat(fp.relu(), 0), "n must be at least 1, got 0"),
        (lambda: fp.parallel(), "parallel must have at least one branch, got none"),
        (
            lambda: fp.reshape(-1, -1),
            "shape must have positive axes and at most one -1, got (-1, -1)",
        ),
        (
            lambda: fp.objective(fp.dense(2), fp.mean_squared(), **{"": fp.accuracy}),
            "metric '' needs a name: without one it is told nowhere",
        ),
        (lambda: fp.patience("loss", 0), "epochs must be at least 1, got 0"),
        (
            lambda: fp.softmax_cross_entropy(1.0),
            "smoothing must be at least 0 and below 1, got 1.0",
        ),
    ],
)
def test_makers_refuse(make, sentence):
    raises(ValueError, sentence, make)


SIZES = {
    "features": (fp.dense, fp.lstm, fp.gru, fp.mlp, lambda n: fp.conv(n, (3,))),
    "n": (lambda n: fp.repeat(fp.relu(), n),),
    "rows": (lambda n: fp.embedding(n, 3),),
    "longest": (fp.learned_positions,),
    "groups": (fp.group_norm, lambda n: fp.conv(4, (3,), groups=n)),
    "heads": (fp.attention,),
    "window": (lambda n: fp.attention(2, window=n),),
    "classes": (fp.linear_cross_entropy, lambda n: fp.rnn(n, fp.lstm(2))),
    "axis": (fp.softmax, fp.concatenate),
    "depth": (lambda n: fp.gpt(50, depth=n),),
    "rank": (lambda n: fp.low_rank(fp.dense(2), "", rank=n),),
}
NUMBERS = {
    "eps": (fp.batch_norm, fp.layer_norm, fp.rms_norm),
    "momentum": (lambda x: fp.batch_norm(momentum=x),),
    "rate": (fp.dropout,),
    "slope": (fp.leaky_relu,),
    "alpha": (fp.elu,),
    "delta": (fp.huber,),
    "smoothing": (fp.softmax_cross_entropy,),
    "norm": (lambda x: fp.clip_per_example(objective(), x),),
    "noise": (lambda x: fp.clip_per_example(objective(), 1.0, noise=x),),
    "target": (lambda x: fp.at_least("loss", x), lambda x: fp.at_most("loss", x)),
}


def test_sizes_are_whole_and_numbers_are_numbers():
    for kind, table, wrong in (
        ("an integer", SIZES, (2.0, "2", True)),
        ("a number", NUMBERS, ("0.1", True, jnp.ones(2))),
    ):
        for name, makers in table.items():
            for make in makers:
                for value in wrong:
                    got = "ArrayImpl" if isinstance(value, jax.Array) else repr(value)
                    raises(
                        TypeError,
                        f"{name} must be {kind}, got {got}",
                        lambda make=make, value=value: make(value),
                    )
    for make, value in ((fp.dense, np.int64(2)), (fp.dropout, np.float32(0.1))):
        make(value)
    fp.batch_norm(jnp.array(1e-5))


def test_rules_are_made_of_what_they_can_ask():
    told = "best must be a function, min or max, got 'max'"
    raises(TypeError, told, lambda: fp.patience("loss", 2, best="max"))
    for make in (lambda: fp.at_least(3, 0.5), lambda: fp.patience(3, 2)):
        raises(TypeError, "metric must be the name of one, got 3", make)


def test_a_list_of_rows_is_an_array_as_numpy_has_it():
    for shape in ((8, 3), (8, 8), (8, 2, 2)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        y = np.arange(8)
        for inputs in (list(x), list(jnp.asarray(x)), x.tolist()):
            for targets in (y, list(y), y.tolist(), list(x)):
                found = arrays((inputs, targets))
                assert [leaf.shape for leaf in found] == [shape, np.shape(targets)]
                np.testing.assert_array_equal(found[0], x)
        assert len(arrays(([x, x], y))[0]) == 2  # two inputs
    raises(
        ValueError,
        "data must have as many inputs as targets, got 3 inputs/a/0, 8 targets",
        lambda: arrays(({"a": list(np.ones((8, 3)))}, Y)),
    )
    raises(
        TypeError,
        "data: weights must be an array, or left out, got None",
        lambda: arrays((X, Y, None)),
    )
    raises(
        TypeError,
        "x must be an array, got list",
        lambda: fp.dense(2).init(KEY, [X, X]),
    )


def test_what_is_not_finite_counts_where_its_weight_does():
    targets, weights = np.ones((8, 2), np.float32), np.ones(8, np.float32)
    targets[[2, 5], 1], weights[[2, 5]] = np.nan, 0
    arrays((X, targets, weights))
    arrays((X, {"a": targets}, {"a": weights[:, None] * np.ones(2)}))
    weights[5] = 1e-9
    told = "data must be finite, got nan in targets at [5, 1]"
    raises(ValueError, told, lambda: arrays((X, targets, weights)))
    told = "data must be finite, got nan in inputs at [2, 1]"
    raises(ValueError, told, lambda: arrays((targets, X, weights)))


@pytest.mark.parametrize(
    "layer", [fp.dense(2), fp.relu(), fp.softmax(), fp.dropout(0.1)], ids=lambda layer: layer.name
)
def test_integers_where_floats_are_wanted(layer):
    raises(
        TypeError,
        "x must be of floating dtype, got int32[8,3]",
        lambda: layer.forward((), jnp.ones((8, 3), jnp.int32)),
    )


def test_layer_wants_a_forward_of_two_or_three():
    raises(
        TypeError,
        "forward must take (params, x) or (params, x, key), got 1 arguments",
        lambda: fp.layer(forward=lambda x: (x, ()), backward=lambda *_: ((), ())),
    )


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@settings(max_examples=5, deadline=None)
@given(leading=shapes, features=st.integers(1, 5), outputs=st.integers(1, 5))
def test_dense_of_any_shape(leading, features, outputs):
    x = jnp.ones((*leading, features))
    layer = fp.dense(outputs)
    params = layer.init(KEY, x)
    y, residuals = layer.forward(params, x)
    dparams, dx = layer.backward(params, residuals, jnp.ones_like(y))
    assert (y.shape, dx.shape) == ((*leading, outputs), x.shape)
    assert dparams.b.tolist() == [float(np.prod(leading))] * outputs


@settings(max_examples=25, deadline=None)
@given(outputs=shapes, targets=shapes)
def test_a_loss_takes_equal_shapes_and_refuses_all_others(outputs, targets):
    x = jnp.ones(outputs), jnp.ones(targets)
    if outputs == targets:
        assert float(fp.mean_squared().forward((), x)[0].weight) == np.prod(outputs)
    else:
        with pytest.raises(ValueError, match="targets must have the shape"):
            fp.mean_squared().forward((), x)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, wanted=shapes)
def test_reshape_takes_what_fits_and_refuses_all_others(shape, wanted):
    x = jnp.ones((2, *shape))
    if np.prod(shape) == np.prod(wanted):
        y, was = fp.reshape(*wanted).forward((), x)
        assert y.shape == (2, *wanted)
        assert fp.reshape(*wanted).backward((), was, y)[1].shape == x.shape
    else:
        with pytest.raises(ValueError, match="does not reshape"):
            fp.reshape(*wanted).forward((), x)


FEATURES = "eps must be a small number, got {}: the number of features is found from the input"
ARRAY = "x must be an array, got "
BRANCHES = "x must be a tuple of arrays, one a branch, got "
COMPLEX = "x must be of floating dtype, got complex64[1,4,4]"


@pytest.mark.parametrize(
    ("kind", "sentence", "call"),
    [
        *[
            (ValueError, FEATURES.format(given), lambda make=make, given=given: make(given))
            for make in (fp.batch_norm, fp.layer_norm, fp.rms_norm, lambda n: fp.group_norm(2, n))
            for given in (64, 1, (64,), 1.5)
        ],
        (ValueError, "slope must be finite, got nan", lambda: fp.leaky_relu(float("nan"))),
        (ValueError, "slope must be finite, got -inf", lambda: fp.leaky_relu(-float("inf"))),
        (ValueError, "alpha must be finite, got inf", lambda: fp.elu(float("inf"))),
        *[
            (TypeError, ARRAY + "list", lambda layer=layer: layer.forward((), [1.0, 2.0]))
            for layer in (fp.relu(), fp.softmax(), fp.max_pool(2), fp.global_max_pool())
        ],
        (TypeError, ARRAY + "list", lambda: fp.flatten().forward((), [1.0])),
        (TypeError, ARRAY + "list", lambda: fp.dense(3).init(KEY, [1.0])),
        (TypeError, ARRAY + "list", lambda: fp.attention(1).forward((), [1.0])),
        (TypeError, ARRAY + "list", lambda: fp.conv(3, 3).init(KEY, [1.0])),
        (TypeError, ARRAY + "list", lambda: fp.embedding(3, 2).init(KEY, [1, 2])),
        (TypeError, ARRAY + "int", lambda: fp.embedding(3, 2).init(KEY, 1)),
        *[
            (
                TypeError,
                COMPLEX,
                lambda layer=layer: layer.forward((), jnp.ones((1, 4, 4), complex)),
            )
            for layer in (fp.relu(), fp.tanh(), fp.gelu(), fp.max_pool(2), fp.softmax())
        ],
        *[
            (TypeError, BRANCHES + "NoneType among them", lambda f=f: f.forward((), (X, None)))
            for f in (fp.add(), fp.concatenate())
        ],
        *[
            (
                ValueError,
                "x must have at least one branch, got an empty tuple",
                lambda f=f: f.forward((), ()),
            )
            for f in (fp.add(), fp.concatenate())
        ],
        (
            ValueError,
            "params.table must have shape (400, 2), got (300, 2)",
            lambda: fp.embedding(400, 2).forward(fp.EmbeddingParams(jnp.ones((300, 2))), Y),
        ),
    ],
)
def test_layers_are_given_something_else(kind, sentence, call):
    raises(kind, sentence, call)
