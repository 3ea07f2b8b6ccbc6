"""Something else than what was meant, given to a step, a wrapper, a transform or an objective: one
sentence, where it comes in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from tests.test_bad_input import raises

KEY = jax.random.key(0)
MODEL = fp.serial(fp.dense(4), fp.tanh())
LOSS = fp.softmax_cross_entropy()
OBJECTIVE = fp.objective(MODEL, LOSS)
BATCH = jnp.ones((8, 5)), jnp.zeros(8, int)
PARAMS = jax.jit(OBJECTIVE.init)(KEY, BATCH)
MODEL_PARAMS = jax.jit(MODEL.init)(KEY, BATCH[0])
GRAD_FN = fp.backprop(OBJECTIVE)
SGD = optax.sgd(0.1)
STEP = fp.step(GRAD_FN, SGD)
MESH = fp.make_mesh(data=1)


def own_loss(params, batch):
    return OBJECTIVE.forward(params, batch)[0].total


WRAPPERS = {
    "ema": lambda step: fp.ema(step, 0.5),
    "skip_nonfinite": fp.skip_nonfinite,
    "loss_scale": fp.loss_scale,
    "scan": fp.scan,
    "shard": lambda step: fp.shard(step, MESH, fp.data_parallel_rules()),
}
TAKE_A_GRAD_FN = {
    "step": lambda g: fp.step(g, SGD),
    "measure": fp.measure,
    "microbatch": lambda g: fp.microbatch(g, 2),
    "mixed_precision": fp.mixed_precision,
    "gradient_statistics": fp.gradient_statistics,
    "data_parallel": lambda g: fp.data_parallel(g, MESH),
    "ordered": lambda g: fp.ordered(g, 2),
}


@pytest.mark.parametrize("name", TAKE_A_GRAD_FN)
def test_what_is_no_grad_fn(name):
    for given, got in (
        (STEP, "Step"),
        (OBJECTIVE, "Layer"),
        (SGD, "GradientTransformationExtraArgs"),
        (own_loss, "the function own_loss(params, batch)"),
        (fp.Gradient, "the class Gradient"),
        (None, "None"),
    ):
        raises(
            TypeError,
            "grad_fn must be a function (params, batch, key) -> Gradient, as backprop(objective) "
            f"or from_loss(loss_fn) makes it, got {got}",
            lambda given=given: TAKE_A_GRAD_FN[name](given),
        )


def test_a_loss_that_takes_a_key_in_the_place_of_a_grad_fn():
    step = fp.step(lambda params, batch, key=None: own_loss(params, batch), SGD)
    raises(
        TypeError,
        "grad_fn must give a Gradient, as that of from_loss(loss_fn) does, got float32[]",
        lambda: step.update(step.init(PARAMS, None), BATCH),
    )


@pytest.mark.parametrize("name", [*WRAPPERS, "fit"])
def test_what_is_no_step(name):
    fit = lambda step: fp.fit(step, STEP.init(PARAMS, KEY), BATCH, epochs=1, batch_size=4)
    for given, got in ((GRAD_FN, "the function grad_fn"), (SGD, "GradientTransformationExtraArgs")):
        raises(
            TypeError,
            f"step must be a Step, as step(grad_fn, optimizer) makes it, got {got}",
            lambda given=given: WRAPPERS.get(name, fit)(given),
        )


@pytest.mark.parametrize(
    "make", [lambda o: fp.step(GRAD_FN, o), lambda o: fp.fused_step(OBJECTIVE, o)]
)
def test_what_is_no_optimizer(make):
    for given, got in (
        (optax.sgd, "the function sgd"),
        (0.1, "0.1"),
        ("adam", "'adam'"),
        (STEP, "Step"),
        (GRAD_FN, "the function grad_fn"),
    ):
        told = f"optimizer must be an optax transform, as optax.sgd(0.1) is, got {got}"
        raises(TypeError, told, lambda given=given: make(given))


def test_a_model_where_an_objective_is_meant():
    told = "objective must give a Sum, as objective(model, loss) does, got the model serial alone"
    for grad_fn in (
        fp.backprop(MODEL),
        fp.clip_per_example(MODEL, 1.0),
        fp.microbatch(fp.backprop(MODEL), 2),
    ):
        raises(TypeError, told, lambda grad_fn=grad_fn: grad_fn(MODEL_PARAMS, BATCH))
    for step in (fp.step(fp.backprop(MODEL), SGD), fp.fused_step(MODEL, SGD)):
        state = step.init(MODEL_PARAMS, None)
        raises(TypeError, told, lambda step=step, state=state: step.update(state, BATCH))
    raises(
        TypeError,
        "objective must give a Sum, (total, weight) over the batch, got float32[8,4]",
        lambda: fp.backprop(MODEL)(MODEL_PARAMS, BATCH[0]),
    )
    raises(
        TypeError,
        "objective must be a layer, as objective(model, loss) is, got the function grad_fn",
        lambda: fp.backprop(GRAD_FN),
    )


def test_what_an_objective_is_not_made_of():
    for call, told in (
        (
            lambda: fp.objective(fp.relu, LOSS),
            "model must be a layer, as serial(dense(4)) is, got the function relu",
        ),
        (
            lambda: fp.objective(MODEL, fp.mean_squared),
            "loss must be a layer, as mean_squared() is, got the function mean_squared",
        ),
        (
            lambda: fp.objective(MODEL, LOSS, accuracy=LOSS),
            "accuracy must be a function (outputs, targets, weights) -> Sum, got Layer",
        ),
        (
            lambda: fp.from_loss(OBJECTIVE),
            "loss_fn must be a function (params, batch) or (params, batch, key), got Layer",
        ),
    ):
        raises(TypeError, told, call)
    mean = fp.layer(forward=lambda p, x: (x[0].mean(), ()), backward=lambda p, r, dy: ((), dy))
    of_a_mean = fp.objective(MODEL, mean)
    raises(
        TypeError,
        "loss must give a Sum, (total, weight) over the batch, got float32[]",
        lambda: of_a_mean.forward(of_a_mean.init(KEY, BATCH), BATCH),
    )


@pytest.mark.parametrize("name", [*WRAPPERS, "step", "fused_step"])
def test_a_state_of_something_else_and_one_given_twice(name):
    plain = {"step": STEP, "fused_step": fp.fused_step(OBJECTIVE, SGD)}
    step = plain[name] if name in plain else WRAPPERS[name](STEP)
    batch = jax.tree.map(lambda leaf: leaf[None], BATCH) if name == "scan" else BATCH
    for given in (PARAMS, {"params": PARAMS}, (PARAMS, None)):
        with pytest.raises(
            TypeError, match=r"^state must be .* init of the same step gives.* got "
        ):
            step.update(given, batch)
    if name in ("ema", "skip_nonfinite", "loss_scale", "fused_step"):
        with pytest.raises(TypeError, match=r"^state must be of type \w+, .* got TrainState"):
            step.update(STEP.init(PARAMS, KEY), batch)
    state = step.init(PARAMS, KEY)
    new, _ = step.update(state, batch)
    told = (
        "state must not have been given to an update before, which used up its memory: go on with "
        "the state that update gave"
    )
    raises(ValueError, told, lambda: step.update(state, batch))
    if name != "scan":
        fit = lambda: fp.fit(step, state, BATCH, epochs=1, batch_size=4, progress=None)
        raises(ValueError, told, fit)
    step.update(new, batch)
    assert "while" in step.update.lower(step.init(PARAMS, KEY), batch).as_text() or name != "scan"


def test_params_that_cannot_be_trained():
    for leaf, got in (
        (np.arange(3), "int64[3]"),
        (jnp.ones(2, bool), "bool[2]"),
        (KEY, "key<fry>[]"),
        (3, "3"),
        ("relu", "'relu'"),
        (jnp.tanh, "PjitFunction"),
    ):
        told = (
            f"params must be floating numbers where they are trained, got {got} at a/1: freeze it, "
            "or keep it apart from params"
        )
        params = {"a": (jnp.ones(2), leaf), "b": fp.Frozen(jnp.arange(3))}
        for step in (STEP, fp.ema(STEP, 0.9)):
            raises(TypeError, told, lambda params=params, step=step: step.init(params, None))
    grad_fn = fp.from_loss(lambda params, batch: (params["a"].sum(), 1))
    with pytest.raises(TypeError, match=r"^params must be floating .* got int32\[3\] at a: "):
        grad_fn({"a": jnp.arange(3)}, BATCH)


@pytest.mark.parametrize("name", [*WRAPPERS, "step", "fused_step", "measure"])
def test_labels_beyond_32_bits_are_refused_before_jax_cuts_them(name):
    step = {"step": STEP, "fused_step": fp.fused_step(OBJECTIVE, SGD)}.get(name, STEP)
    step = WRAPPERS[name](step) if name in WRAPPERS else step
    run, first = step.update, step.init(PARAMS, None)
    if name == "measure":
        run, first = fp.measure(GRAD_FN), PARAMS
    batch = np.ones((8, 5), np.float32), np.arange(8) % 4
    for bad, dtype, kind in ((2**32 + 1, np.int64, "int32"), (2**40, np.uint64, "uint32")):
        labels = batch[1].astype(dtype)
        labels[3] = bad
        raises(
            ValueError,
            f"batch/1 must fit in {kind}, got {bad}: set jax_enable_x64, or use less",
            lambda labels=labels: run(first, (batch[0], labels)),
        )
    assert fp.measure(GRAD_FN)(PARAMS, batch)["loss"].weight == 8  # others pass


def test_metrics_without_a_name():
    sentence = "metric '' needs a name: without one it is told nowhere"
    raises(ValueError, sentence, lambda: fp.objective(MODEL, LOSS, **{"": fp.accuracy}))
    nameless = fp.from_loss(lambda w, batch: (w, 1, {"": fp.Sum(1, 1)}))
    raises(ValueError, sentence, lambda: nameless(jnp.ones(()), None))


def test_an_empty_batch_is_not_cut():
    empty = jax.tree.map(lambda leaf: leaf[:0], BATCH)
    for make in (fp.ordered, fp.microbatch, fp.gradient_statistics):
        raises(
            ValueError,
            "batch must have at least 2 examples, got 0",
            lambda make=make: make(GRAD_FN, 2)(PARAMS, empty),
        )


def test_a_mesh_that_is_none_or_explicit():
    explicit = jax.make_mesh((1,), ("data",))
    rules = fp.data_parallel_rules()

    def fit(mesh):
        return fp.fit(
            STEP, STEP.init(PARAMS, KEY), BATCH, epochs=1, batch_size=4, progress=None, mesh=mesh
        )

    takes_one = [
        lambda mesh: fp.data_parallel(GRAD_FN, mesh),
        lambda mesh: fp.ordered(GRAD_FN, 4, mesh),
        lambda mesh: fp.shard(STEP, mesh, rules),
        fit,
    ]
    for make in takes_one:
        told = "mesh must have axes of AxisType.Auto, got (Explicit,); see make_mesh"
        raises(ValueError, told, lambda make=make: make(explicit))
        raises(TypeError, "mesh must be a jax.sharding.Mesh, got int", lambda make=make: make(4))
    for make in (takes_one[0], takes_one[2]):  # for the others, none is meant
        told = "mesh must be a jax.sharding.Mesh, got None"
        raises(TypeError, told, lambda make=make: make(None))


def test_numbers_that_are_none():
    for name, kind, make in (
        ("n", "an integer", lambda n: fp.microbatch(GRAD_FN, n)),
        ("n", "an integer", lambda n: fp.gradient_statistics(GRAD_FN, n)),
        ("parts", "an integer", lambda n: fp.ordered(GRAD_FN, n)),
        ("n", "an integer", lambda n: fp.skip_nonfinite(STEP, n)),
        ("every", "an integer", lambda n: fp.loss_scale(STEP, every=n)),
        ("decay", "a number", lambda n: fp.ema(STEP, n)),
    ):
        for given in ("2", None, *([4.0] if kind == "an integer" else [])):
            told = f"{name} must be {kind}, got {given!r}"
            raises(TypeError, told, lambda make=make, given=given: make(given))


def test_a_decay_of_a_traced_number():
    def update(decay):
        step = fp.ema(STEP, decay)
        return step.update(step.init(PARAMS, KEY), BATCH)

    told = (
        "decay must be a function of a traced number: use jnp.minimum and jnp.where in it, not "
        "min, if or float"
    )
    for decay in (
        lambda n: min(0.9, n / (n + 1)),
        lambda n: 0.9 if n < 3 else 0.99,
        lambda n: np.minimum(0.9, n / 2),
        lambda n: [0.0, 0.9][n],
    ):
        raises(TypeError, told, lambda decay=decay: update(decay))
    raises(TypeError, "decay must give one number, got None", lambda: update(lambda n: None))
    update(lambda n: jnp.minimum(0.9, n / (n + 1)))
