"""Layers say whether they mix the examples of a batch, and whether they draw: every rewrite keeps
it, what takes a batch apart refuses the first, and a step without a key the second."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from tests.cases import quickly
from tests.test_bad_input import raises

KEY = jax.random.key(0)
MESH = fp.make_mesh(data=1)


def centred() -> fp.Layer:
    """A user's layer that mixes: each example less the mean of all, in training."""

    def forward(params, x, key):
        return (x if key is None else x - x.mean(0, keepdims=True)), key

    def backward(params, key, dy):
        return (), dy if key is None else dy - dy.mean(0, keepdims=True)

    return fp.layer(forward=forward, backward=backward, name="centred", mixes=True, draws=False)


def noisy() -> fp.Layer:
    """A user's layer that draws, which nobody said: it takes a key."""

    def forward(params, x, key):
        return (x if key is None else x + jax.random.normal(key, x.shape, x.dtype)), ()

    return fp.layer(forward=forward, backward=lambda params, _, dy: ((), dy), name="noisy")


def theirs(**said) -> fp.Layer:
    return fp.from_function(lambda key, x: (), lambda params, x: x, **said)


# name: (layer, whether it mixes, whether it draws)
LAYERS = {
    "dense": (fp.dense(4), False, False),
    "batch_norm": (fp.batch_norm(), True, False),
    "dropout": (fp.dropout(0.5), False, True),
    "no dropout": (fp.dropout(0.0), False, False),
    "own, mixing": (centred(), True, False),
    "own, drawing": (noisy(), False, True),
    "function": (theirs(), False, False),
    "function, mixing": (theirs(mixes=True), True, False),
    "function, drawing": (theirs(draws=True), False, True),
    "function of a key": (fp.from_function(theirs().init, lambda p, x, key: x), False, True),
    "both": (fp.serial(fp.batch_norm(), fp.dropout(0.5)), True, True),
}
SAVED = jax.checkpoint_policies.everything_saveable
REWRITES = {
    "named": lambda layer: fp.named("other", layer),
    "autodiff": fp.autodiff,
    "autodiff, policy": lambda layer: fp.autodiff(layer, policy=SAVED),
    "autodiff of leaves": lambda layer: fp.map_layers(fp.autodiff, layer),
    "cast": lambda layer: fp.cast(layer, jnp.bfloat16),
    "remat": fp.remat,
    "remat, keep": lambda layer: fp.remat(fp.serial(fp.dense(4), fp.named("it", layer)), keep="it"),
    "offload": fp.offload,
    "tap": lambda layer: fp.tap(layer, forward=jnp.sum, backward=jnp.sum),
    "freeze": lambda layer: fp.freeze(fp.serial(fp.dense(4), fp.named("it", layer)), "it"),
    "low_rank": lambda layer: fp.low_rank(fp.serial(fp.named("it", fp.dense(4)), layer), "it", 2),
    "feedback_alignment": fp.feedback_alignment,
    "sign_symmetric": fp.sign_symmetric,
    "quantised": lambda layer: fp.quantised(layer, "int8"),
    "fused_update": lambda layer: fp.fused_update(layer, optax.sgd(0.1)),
    "gathered": lambda layer: fp.gathered(layer, MESH),
    "squared_norms": fp.quantities.squared_norms.squared_norms,
    "weighted": lambda layer: fp.quantities.weighted.weighted(layer, jnp.ones(2)),
    "serial": lambda layer: fp.serial(fp.dense(4), layer),
    "residual": fp.residual,
    "parallel": lambda layer: fp.parallel(fp.dense(4), layer),
    "repeat": lambda layer: fp.repeat(layer, 2),
    "reparam": lambda layer: fp.reparam(layer, lambda params: params),
    "with_lengths": fp.with_lengths,
    "gated": fp.gated,
    "objective": lambda layer: fp.objective(layer, fp.mean_squared()),
    "loss": lambda layer: fp.objective(fp.dense(2), layer),
    "rebuilt": lambda layer: fp.map_layers(lambda leaf: leaf, fp.serial(layer)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_rewrite_and_every_combinator_keeps_what_a_layer_says(layer):
    plain, mixes, draws = LAYERS[layer]
    assert (plain.mixes, plain.draws) == (mixes, draws)
    said = {name: (new.mixes, new.draws) for name, new in made(plain).items()}
    # What has its statistics frozen takes none from the batch.
    fixed = dict.fromkeys(("freeze", "low_rank"), (mixes and plain.paramless, draws))
    assert said == dict.fromkeys(REWRITES, (mixes, draws)) | fixed
    twice = REWRITES["autodiff"](REWRITES["remat"](REWRITES["cast"](REWRITES["tap"](plain))))
    assert (twice.mixes, twice.draws) == (mixes, draws)


def made(layer):
    return {name: rewrite(layer) for name, rewrite in REWRITES.items()}


def test_every_rewrite_is_in_the_table():
    told = {name.partition(",")[0] for name in REWRITES}
    of_params = {
        "untap",
        "adapted",
        "merged",
        "frozen",
        *filter(str.istitle, fp.rewrites.__all__),
        "LowRank",
    }
    of_params |= {"backward_inputs", "backward_params"}  # which give no layer
    assert set(fp.rewrites.__all__) - of_params <= told


# ---------------------------------------------------------------------------------- what mixes

SPLITS = {
    "microbatch": lambda g: fp.microbatch(g, 2),
    "gradient_statistics": lambda g: fp.gradient_statistics(g, 2),
    "data_parallel": lambda g: fp.data_parallel(g, MESH),
    "ordered": lambda g: fp.ordered(g, 2),
    "clip_per_example": lambda g: fp.clip_per_example(g, 1e9),
}
MIXING = {
    "batch_norm": lambda: fp.serial(fp.dense(3), fp.residual(fp.batch_norm())),
    "centred": lambda: fp.serial(fp.dense(3), fp.remat(fp.serial(centred()))),
    "serial": lambda: fp.autodiff(fp.serial(fp.dense(3), fp.batch_norm())),
    "dense": lambda: fp.serial(fp.from_function(fp.dense(3).init, _normed, "dense", mixes=True)),
}


def _normed(params, x, key):
    y = fp.dense(3).forward(params, x)[0]
    return y if key is None else y / jnp.abs(y).max(0, keepdims=True)


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_is_refused_with_a_key_and_exact_without(name, x64):
    objective = fp.objective(MIXING[name](), fp.mean_squared())
    batch = jnp.arange(8.0).reshape(4, 2), jnp.ones((4, 3))
    params, grad_fn = objective.init(KEY, batch), fp.backprop(objective)
    want = quickly(grad_fn)(params, batch)
    for split, transform in SPLITS.items():
        for inner in (grad_fn, fp.mixed_precision(grad_fn, jnp.float64)):
            with pytest.raises(ValueError) as error:
                transform(inner)(params, batch, KEY)
            path, _, rest = str(error.value).partition(" mixes the examples of a batch in training")
            assert path.rpartition("/")[2] == name and "batch_norm" not in rest
            assert rest.startswith(f", which {split} takes apart: use group_norm or layer_norm")
            assert ("shard, which is exact" in rest) == (split != "clip_per_example")
            assert len(str(error.value)) < 200
        got = quickly(transform(grad_fn))(params, batch)
        chex.assert_trees_all_close(got.grads, want.grads, rtol=1e-12, atol=1e-12)


def test_a_loss_that_mixes_is_refused_too_and_norms_of_examples_are():
    loss = fp.layer(
        forward=lambda p, x: (fp.Sum(jnp.ptp(x[0]), 1.0), x),
        backward=lambda p, x, dy: ((), x),
        name="spread",
        mixes=True,
    )
    objective = fp.objective(fp.dense(3), loss)
    batch = jnp.ones((4, 2)), jnp.ones((4, 3))
    params = objective.init(KEY, batch)
    raises(
        ValueError,
        "spread mixes the examples of a batch in training, which microbatch takes apart: use "
        "group_norm or layer_norm, or shard, which is exact",
        lambda: fp.microbatch(fp.backprop(objective), 2)(params, batch, KEY),
    )
    with_key = fp.from_loss(lambda w, x, key=None: (jnp.ptp(w * x), 1), mixes=True)
    without = fp.from_loss(lambda w, x: (jnp.ptp(w * x), 1), mixes=True)
    for split, transform in SPLITS.items():
        for grad_fn, key in ((with_key, KEY), (without, None), (without, KEY)):
            with pytest.raises(ValueError, match=f"^loss_fn mixes the .* which {split} takes"):
                transform(fp.mixed_precision(grad_fn))(jnp.ones(()), jnp.arange(4.0), key)
    assert fp.microbatch(with_key, 2)(jnp.ones(()), jnp.arange(4.0)).loss == 4  # as it is asked to
    norms = fp.quantities.squared_norms.squared_norms(fp.serial(fp.batch_norm()))
    with pytest.raises(ValueError, match=r"batch_norm mixes .* squared_norms takes apart"):
        norms.forward(norms.init(KEY, batch[0]), batch[0], KEY)


# ---------------------------------------------------------------------------------- what draws


def drawing(model):
    batch = jnp.ones((4, 3)), jnp.ones((4, 3))
    objective = fp.objective(model, fp.mean_squared())
    return objective, objective.init(KEY, batch), batch


SENTENCE = (
    "key must be given, as {} draws from it in training, got None: to train without noise, leave "
    "it out of the model"
)
DRAWING = {
    "dropout": lambda: fp.serial(fp.dense(3), fp.residual(fp.dropout(0.5))),
    "serial": lambda: fp.autodiff(fp.serial(fp.dense(3), fp.dropout(0.5))),
    "noisy": noisy,
}


@pytest.mark.parametrize("path", DRAWING)
def test_a_step_without_a_key_is_refused_where_the_model_draws(path):
    objective, params, batch = drawing(DRAWING[path]())
    grad_fn, sgd = fp.backprop(objective), optax.sgd(0.1)
    steps = [
        fp.step(grad_fn, sgd),
        fp.step(fp.microbatch(fp.mixed_precision(grad_fn), 2), sgd),
        fp.scan(fp.skip_nonfinite(fp.ema(fp.step(grad_fn, sgd), 0.9))),
        fp.fused_step(objective, sgd),
    ]
    steps.append(fp.shard(steps[0], MESH, fp.data_parallel_rules()))
    for step in steps:
        raises(ValueError, SENTENCE.format(path), lambda step=step: step.init(params, None))
        step.init(params, jax.random.PRNGKey(0))  # a key of the old style is one
    taken = steps[0].init(params, KEY)._replace(key=None)
    raises(ValueError, SENTENCE.format(path), lambda: steps[0].update(taken, batch))
    fit = lambda: fp.fit(steps[0], taken, batch, epochs=1, batch_size=4, progress=None)
    raises(ValueError, SENTENCE.format(path), fit)


def test_where_nothing_draws_no_key_is_wanted():
    for model in (fp.dense(3), fp.serial(fp.dense(3), fp.dropout(0.0), fp.layer_norm())):
        objective, params, _ = drawing(model)
        assert fp.step(fp.backprop(objective), optax.sgd(0.1)).init(params, None).key is None


def test_a_loss_function_that_takes_a_key_and_the_noise_of_clipping_want_one():
    loss_fn = fp.from_loss(lambda params, batch, key=None: (params.sum(), 1))
    step = fp.step(fp.microbatch(loss_fn, 2), optax.sgd(0.1))
    raises(ValueError, SENTENCE.format("loss_fn"), lambda: step.init(jnp.ones(2), None))
    objective, params, _ = drawing(fp.dense(3))
    private = fp.step(fp.clip_per_example(objective, 1.0, noise=1.0), optax.sgd(0.1))
    told = SENTENCE.format("the noise of clip_per_example")
    raises(ValueError, told, lambda: private.init(params, None))


def test_keys_of_the_old_style_draw_what_they_always_did():
    objective, params, batch = drawing(fp.serial(fp.dense(3), fp.dropout(0.5)))
    step = fp.step(fp.backprop(objective), optax.sgd(0.1))
    new, old = (
        step.update(step.init(params, key), batch)[0].params
        for key in (jax.random.key(3), jax.random.PRNGKey(3))
    )
    chex.assert_trees_all_equal(new, old)
    for key, got in ((0, "0"), (np.zeros(3), "float64[3]"), (jax.random.split(KEY), "key<fry>[2]")):
        told = f"key must be one random key, as jax.random.key(0) makes it, got {got}"
        raises(TypeError, told, lambda key=key: step.init(params, key))
        raises(TypeError, told, lambda key=key: fp.backprop(objective)(params, batch, key))


MODELS_WITH_NOISE = {
    "serial": fp.serial(fp.dense(6), fp.dropout(0.5)),
    "repeat": fp.repeat(fp.residual(fp.serial(fp.dense(6), fp.dropout(0.5))), 2),
    "reversible": fp.reversible(fp.dense(3), fp.dense(3), copies=2),
    "remat": fp.remat(fp.serial(fp.dense(6), fp.dropout(0.5))),
}


@pytest.mark.parametrize("name", MODELS_WITH_NOISE)
def test_a_layer_is_given_one_key_or_none(name):
    model, x = MODELS_WITH_NOISE[name], jnp.ones((2, 6))
    params = model.init(KEY, x)
    for key in (3, "a", jnp.ones(3), jax.random.split(KEY)):
        for call in (lambda k: model.init(k, x), lambda k: model.forward(params, x, k)):
            with pytest.raises(TypeError, match=r"key must be one random key, .*, got"):
                call(key)
