"""An update inside the backward pass is the update after it."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.params.updating import Updating
from tests.cases import OPTIMISED, tied
from tests.test_bad_input import raises

KEY = jax.random.key(0)

pytestmark = pytest.mark.slow  # compiles two whole steps for each case


def block():
    return fp.residual(fp.serial(fp.dense(5), fp.tanh(), fp.dropout(0.2), fp.dense(5)))


def data(rows=6, width=5):
    x = jax.random.normal(KEY, (rows, width), jnp.float64)
    return x, jnp.arange(rows) % 3, jnp.linspace(0.5, 2, rows)


def objective(*layers):
    return fp.objective(
        fp.serial(*layers, fp.dense(3)), fp.softmax_cross_entropy(), accuracy=fp.accuracy
    )


def trained(train, params, batch, updates=3):
    state, metrics = train.init(params, jax.random.key(3)), None
    for _ in range(updates):
        state, metrics = train.update(state, batch)
    return state, metrics


def both(whole, optimizer, batch):
    """The states and metrics after some updates: inside the backward pass, and after it."""
    params = whole.init(KEY, batch)
    with jax.numpy_dtype_promotion("standard"):  # optax itself promotes
        return (
            trained(fp.fused_step(whole, optimizer), params, batch),
            trained(fp.step(fp.backprop(whole), optimizer), params, batch),
        )


def assert_same(got, want):
    chex.assert_trees_all_close(got[0].params, want[0].params, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(got[1], want[1], rtol=1e-6)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(optax.cosine_decay_schedule(1e-2, 6)),
    "adamw": optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 9), weight_decay=0.1),
    "rmsprop": optax.rmsprop(1e-2),
    "lion": optax.lion(1e-3),
    "clip": optax.chain(optax.clip(0.01), optax.trace(0.9), optax.scale(-0.1)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_equals_gradient_then_update(optimizer, x64):
    whole = objective(fp.repeat(fp.serial(fp.dense(5), fp.tanh()), 2))
    assert_same(*both(whole, optimizer, data()))


def test_through_every_combinator(x64):
    """Nested repeat, residual, remat, noise, shared weights, autodiff: the sum over all uses of a
    weight comes before its update."""
    whole = objective(
        fp.repeat(fp.repeat(block(), 2), 2),
        fp.remat(fp.parallel(fp.remat(tied()), fp.repeat(tied(), 2))),
        fp.add(),
        fp.autodiff(fp.dense(4)),
    )
    got, want = both(whole, OPTIMIZERS["momentum"], data())
    assert_same(got, want)
    chex.assert_tree_all_finite(got[0].params)


MASKED = optax.adamw(1e-2, weight_decay=0.5, mask=fp.decayed)


@pytest.mark.parametrize("optimizer", [OPTIMIZERS["adamw"], MASKED], ids=["adamw", "mask"])
def test_of_what_is_trained_in_part(optimizer, x64):
    whole = objective(
        fp.dense(5),
        fp.batch_norm(),
        fp.repeat(block(), 2),
        fp.named("adapted", fp.dense(5)),
        tied(),
    )
    x, labels, _ = data()
    whole = fp.freeze(fp.low_rank(whole, "*adapted", 2, train="*repeat"), "*repeat*dense_0")
    assert_same(*both(whole, optimizer, (x, labels)))


def test_a_mask_for_one_tree_is_refused():
    params = objective().init(KEY, (jnp.ones((3, 4)), jnp.zeros(3, jnp.int32)))
    raises(
        ValueError,
        "optimizer must take any tree of params, got one with a mask (or labels) for one tree "
        "alone: give it as a function that each leaf of the model is given to, as mask=fp.decayed",
        lambda: fp.fused_step(objective(), optax.adamw(0.1, mask=fp.decayed(params))),
    )


@pytest.mark.parametrize("name", ["adafactor", "block_rms", "adaptive"])
def test_what_looks_at_a_whole_leaf_sees_one_layer(name, x64):
    """Under repeat each copy is a leaf of its own, as the same layers are in a serial."""
    optimizer = {
        "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=2),
        "block_rms": optax.chain(optax.clip_by_block_rms(1e-3), optax.adam(1e-2)),
        "adaptive": optax.chain(optax.adaptive_grad_clip(1e-3), optax.sgd(0.1)),
    }[name]
    layer = fp.residual(fp.serial(fp.dense(5), fp.tanh()))
    stacked, single = objective(fp.repeat(layer, 3)), objective(layer, layer, layer)
    params = stacked.init(KEY, data())
    each = (jax.tree.map(lambda leaf, i=i: leaf[i], params.repeat) for i in range(3))
    unstacked = jax.eval_shape(single.init, KEY, data())._make([*each, params.dense])
    with jax.numpy_dtype_promotion("standard"):
        got, _ = trained(fp.fused_step(stacked, optimizer), params, data())
        want, _ = trained(fp.step(fp.backprop(single), optimizer), unstacked, data())
    *each, head = want.params
    again = params._make([jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), head])
    chex.assert_trees_all_close(got.params, again, rtol=1e-9, atol=1e-12)


@settings(max_examples=3, deadline=None)
@given(rows=st.integers(1, 5), width=st.integers(1, 4), n=st.integers(1, 4))
def test_of_any_shape(rows, width, n):
    with jax.enable_x64(True):
        whole = objective(fp.repeat(fp.serial(fp.dense(width), fp.tanh()), n))
        assert_same(*both(whole, optax.sgd(0.1, momentum=0.9), data(rows, width)))


def test_a_batch_of_weight_zero_has_a_gradient_of_zero():
    whole = objective(fp.repeat(fp.serial(fp.dense(3), fp.tanh()), 2))
    batch = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32), jnp.zeros(4)
    params = whole.init(KEY, batch)
    state, metrics = trained(fp.fused_step(whole, optax.sgd(1.0)), params, batch)
    chex.assert_trees_all_equal(state.params, params)
    assert metrics["loss"].weight == 0


def test_bfloat16_keeps_its_dtypes_and_the_state_given_stays_usable():
    whole = objective(fp.repeat(fp.serial(fp.dense(4), fp.gelu()), 2))
    batch = jnp.ones((4, 4), jnp.bfloat16), jnp.zeros(4, jnp.int32)
    params = whole.init(KEY, batch)
    train = fp.fused_step(whole, optax.adam(1e-2))
    state = train.init(params, None)
    with jax.numpy_dtype_promotion("standard"):
        after, _ = train.update(state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(after.params, params)
    assert jax.tree.leaves(state)[0].is_deleted()  # donated
    chex.assert_tree_all_finite(params)  # copied


def test_fit_takes_it(x64):
    whole = objective(block())
    params = whole.init(KEY, data())
    optimizer = optax.sgd(0.1, momentum=0.9)
    results = [
        fp.fit(train, train.init(params, KEY), data(), epochs=3, batch_size=2, progress=None)
        for train in (fp.fused_step(whole, optimizer), fp.step(fp.backprop(whole), optimizer))
    ]
    chex.assert_trees_all_close(*(r.state.params for r in results), rtol=1e-9)


def test_the_gradient_is_never_in_memory():
    """Under a scan: less than step by most of the gradient, and no stack of params is copied."""
    width, n = 128, 16
    inner = fp.serial(fp.dense(width, bias=False), fp.tanh(), fp.dense(width, bias=False))
    whole = fp.objective(fp.repeat(fp.residual(inner), n), fp.mean_squared())
    batch = jnp.ones((4, width)), jnp.ones((4, width))
    params = whole.init(KEY, batch)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def compiled(train):
        return train.update.lower(train.init(params, None), batch).compile(OPTIMISED)

    optimizer = optax.sgd(0.1, momentum=0.9)
    fused = compiled(fp.fused_step(whole, optimizer))
    plain = compiled(fp.step(fp.backprop(whole), optimizer))
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (fused, plain)]
    assert temporary[0] < temporary[1] - 0.7 * gradient
    stack = f"f32[{n},{width},{width}]"
    assert stack in fused.as_text()
    assert not [
        line for line in fused.as_text().splitlines() if f"= {stack}" in line and " copy(" in line
    ]


def by_last_of_a():
    """Divides by what the leaf `a` was an update ago: the leaves meet only in the state."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u: u / state, updates), jnp.abs(updates["a"]).max()

    return optax.GradientTransformation(lambda params: jnp.ones(()), update)


@pytest.mark.parametrize(
    "optimizer",
    [
        by_last_of_a(),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
        optax.apply_if_finite(optax.sgd(0.1), 3),
        optax.chain(optax.sgd(0.1), optax.add_noise(0.1, 0.5, key=0)),
    ],
    ids=["by_last_of_a", "global_norm", "if_finite", "noise"],
)
def test_optimizers_that_mix_leaves_are_refused(optimizer):
    raises(
        ValueError,
        "optimizer must update each leaf from that leaf alone, got one that looks at several "
        "(a global norm?): use optax.clip, clip_by_block_rms or adaptive_grad_clip instead",
        lambda: fp.fused_step(objective(), optimizer),
    )


def test_what_cannot_be_updated_is_refused():
    with pytest.raises(TypeError, match="must want gradients, state and params only, got one of"):
        fp.fused_update(fp.dense(2), optax.contrib.reduce_on_plateau())
    fused = fp.fused_update(fp.dense(2), optax.sgd(0.1))
    x = jnp.ones((3, 4))
    raises(
        TypeError,
        "params must be Updating(params, opt_state), got DenseParams",
        lambda: fused.forward(fp.dense(2).init(KEY, x), x),
    )
    odd = fp.layer(
        init=lambda key, x: x[0],
        forward=lambda params, x: (x, ()),
        backward=lambda params, kept, dy: ((dy, dy), dy),
        name="odd",
    )
    raises(
        TypeError,
        "odd must return dparams in the structure of params to be updated, got tuple",
        lambda: fp.fused_update(odd, optax.sgd(0.1)).backward(Updating(x[0], ()), (), x),
    )
    train = fp.fused_step(objective(), optax.sgd(0.1))
    state = train.init(objective().init(KEY, (x, jnp.zeros(3, jnp.int32))), None)
    with pytest.raises(ValueError, match="params do not belong to this model"):
        train.update(state, (jnp.ones((3, 7)), jnp.zeros(3, jnp.int32)))
