"""Wrappers of steps do what they say, bit by bit; in a wrong order they are refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.test_bad_input import raises
from tests.test_transforms import BACKPROP, KEY, MESH, OBJECTIVE, example

SUMS = fp.from_loss(lambda w, x: ((w * x).sum(), x.size))  # its gradient is the sum of x


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def copied(tree):
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def plain_step(learning_rate=1.0):
    return fp.step(SUMS, optax.sgd(learning_rate, momentum=0.5))


# ------------------------------------------------------------------------------------ averages


@given(decay=st.floats(0, 1), n=st.integers(1, 5))
@settings(max_examples=6, deadline=None)
def test_an_average_is_that_of_the_params_so_far(decay, n):
    train = fp.ema(plain_step(), decay)
    state = train.init(jnp.array(1.0), None)
    want = 1.0
    for i in range(n):
        state, _ = train.update(state, jnp.full(2, float(i)))
        want = decay * want + (1 - decay) * float(state.params)
    np.testing.assert_allclose(state.average, want, rtol=1e-5, atol=1e-6)


def test_the_plain_average():
    train = fp.ema(plain_step(), lambda n: n / (n + 1))
    state, seen = train.init(jnp.array(1.0), None), []
    for i in range(5):
        state, _ = train.update(state, jnp.full(2, float(i)))
        seen.append(float(state.params))
    np.testing.assert_allclose(state.average, np.mean(seen), rtol=1e-6)


def test_an_average_of_bfloat16_moves():
    train = fp.ema(fp.step(SUMS, optax.sgd(1.0)), 0.999)
    state = train.init(jnp.array(1.0, jnp.bfloat16), None)
    for _ in range(8):
        state, _ = train.update(state, jnp.full(2, -1, jnp.bfloat16))
    assert state.average.dtype == jnp.bfloat16 and state.sums.dtype == jnp.float32
    np.testing.assert_allclose(state.sums, 1 + 0.001 * 36, rtol=1e-2)


@pytest.mark.parametrize(
    "around",
    [
        fp.skip_nonfinite,
        fp.loss_scale,
        lambda step: fp.skip_nonfinite(fp.loss_scale(step)),
        lambda step: fp.shard(fp.skip_nonfinite(step), MESH, fp.data_parallel_rules()),
        lambda step: fp.scan(fp.skip_nonfinite(step)),
    ],
)
def test_a_state_has_the_average_of_an_ema_however_it_is_wrapped(around):
    train = around(fp.ema(plain_step(), 0.5))
    batch = jnp.ones(2)
    state = train.init(jnp.array(1.0), None)
    state, _ = train.update(state, batch[None] if "scan" in train.parts else batch)
    np.testing.assert_allclose((state.params, state.average), (0.0, 0.5))
    without = around(plain_step())
    assert not hasattr(without.init(jnp.array(1.0), None), "average")


# ----------------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize(
    ("optimizer", "spoilt"),
    [(optax.adam(0.1), jnp.inf), (optax.sgd(0.1), -jnp.inf), (optax.lion(0.1), jnp.nan)],
)
def test_an_update_that_is_not_finite_changes_no_bit(optimizer, spoilt):
    params, (x, *rest) = example(dtype=jnp.float32)
    train = fp.skip_nonfinite(fp.step(BACKPROP, optimizer))
    with jax.numpy_dtype_promotion("standard"):  # for optax
        state, metrics = train.update(train.init(params, None), (x, *rest))
        before = copied(state.inner)
        assert not metrics["skipped"].total
        state, metrics = train.update(state, (x.at[0, 0].set(spoilt), *rest))
        chex.assert_trees_all_equal(state.inner, before)
        assert metrics["skipped"].mean == 1 and metrics["loss"].weight == 0
        state, metrics = train.update(state, (x, *rest))
    assert not metrics["skipped"].total and state.skipped == 0
    assert not np.array_equal(state.params.dense_0.w, before.params.dense_0.w)


def test_numbers_that_would_overflow_from_a_finite_gradient_stay_as_they_are():
    grad_fn = fp.from_loss(lambda w, x: ((w * x).sum(), 1))
    train = fp.skip_nonfinite(fp.step(grad_fn, optax.adam(0.1)))
    state = train.init(jnp.ones(2), None)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        state, _ = train.update(state, jnp.array([1e30, 1.0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    np.testing.assert_allclose(state.params[1], 0.9, rtol=1e-5)


def test_fit_stops_after_so_many_in_a_row_and_says_where():
    params, (x, labels, _) = example(12, jnp.float32)
    data = x, labels
    broken = fp.step(
        fp.from_loss(lambda p, batch: (jnp.nan * p.dense_1.w.sum(), 1)), optax.sgd(0.1)
    )
    train = fp.skip_nonfinite(broken, n=3)
    options = {"epochs": 9, "batch_size": 4, "progress": None}
    result = fp.fit(train, train.init(params, KEY), data, **options)
    assert result.stopped == "update 3: the gradient of dense_1/w is infinite or NaN, 3 in a row"
    chex.assert_trees_all_equal(result.state.params, params)


# ------------------------------------------------------------------------------- compositions

WRAPPERS = {
    "ema": lambda step: fp.ema(step, 0.5),
    "skip_nonfinite": fp.skip_nonfinite,
    "loss_scale": fp.loss_scale,
    "scan": fp.scan,
}
REFUSED = {
    ("ema", "scan"),
    ("skip_nonfinite", "scan"),
    ("loss_scale", "scan"),
    ("loss_scale", "skip_nonfinite"),
}


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", WRAPPERS)
def test_every_pair_trains_as_the_plain_step_or_is_refused(outer, inner, x64):
    """Where nothing overflows, wrappers change no update; metrics and averages come beside."""
    params, batch = example()
    train = fp.step(BACKPROP, optax.sgd(0.1, momentum=0.9))
    if (outer, inner) in REFUSED:
        with pytest.raises(ValueError, match=rf"{inner} must be outside {outer}, {inner}\({outer}"):
            WRAPPERS[outer](WRAPPERS[inner](train))
        return
    if outer == inner == "loss_scale":
        sentence = "step must have no loss_scale yet, got one that has"
        raises(ValueError, sentence, lambda: fp.loss_scale(fp.loss_scale(train)))
        return
    both = WRAPPERS[outer](WRAPPERS[inner](train))
    assert both.parts == (outer, inner, "step")
    batches = batch
    for _ in range((outer, inner).count("scan")):
        batches = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), batches)
    state, metrics = both.update(both.init(params, KEY), batches)
    want, told = train.update(train.init(params, KEY), batch)
    for _ in range(2 ** (outer, inner).count("scan") - 1):
        want, told = train.update(want, batch)
    chex.assert_trees_all_close(state.params, want.params, rtol=1e-12)
    np.testing.assert_allclose(np.ravel(metrics["loss"].total)[-1], told["loss"].total, rtol=1e-12)
    assert jax.tree.leaves(both.check(state)) == []


@pytest.mark.parametrize("wrapper", ["ema", "skip_nonfinite", "scan"])
def test_a_fused_step_is_wrapped_as_any_other(wrapper):
    params, batch = example(dtype=jnp.float32)
    fused = fp.fused_step(OBJECTIVE, optax.sgd(0.1))
    wrapped = WRAPPERS[wrapper](fused)
    batches = jax.tree.map(lambda leaf: leaf[None], batch) if wrapper == "scan" else batch
    state, _ = wrapped.update(wrapped.init(params, KEY), batches)
    want, _ = fused.update(fused.init(params, KEY), batch)
    chex.assert_trees_all_close(state.params, want.params, rtol=1e-6)


@pytest.mark.parametrize(
    ("sentence", "call"),
    [
        ("decay must be from 0 to 1, got 1.5", lambda: fp.ema(plain_step(), 1.5)),
        ("n must be at least 1, got 0", lambda: fp.skip_nonfinite(plain_step(), 0)),
        (
            "step must have a gradient that can be divided, got a fused_step",
            lambda: fp.loss_scale(fp.fused_step(OBJECTIVE, optax.sgd(0.1))),
        ),
    ],
)
def test_bad_input(sentence, call):
    raises(ValueError, sentence, call)


# ------------------------------------------------------------------- parts that are not trained


def deep(depth=3):
    block = fp.residual(fp.serial(fp.layer_norm(), fp.dense(8), fp.gelu()))
    model = fp.serial(fp.dense(8), fp.repeat(block, depth), block, fp.dense(3))
    return fp.objective(model, fp.softmax_cross_entropy())


def frozen_example(where):
    model = deep()
    batch = jax.random.normal(KEY, (16, 5)), jnp.zeros(16, int)
    params = model.init(KEY, batch)
    return fp.freeze(model, where), fp.frozen(model, where, params), model, params, batch


@pytest.mark.parametrize("where", ["*/repeat", *map(slow, ("dense_0", "*/layer_norm", "*/dense*"))])
def test_frozen_params_stay_and_the_others_train_as_ever(where):
    model, params, plain, plain_params, batch = frozen_example(where)
    got = fp.backprop(model)(params, batch)
    want = fp.backprop(plain)(plain_params, batch)
    assert float(got.loss) == float(want.loss)
    seen = jax.tree_util.tree_flatten_with_path(got.grads)[0]
    by_path = dict(jax.tree_util.tree_flatten_with_path(want.grads)[0])
    assert 0 < len(seen) < len(by_path)
    for path, leaf in seen:
        chex.assert_trees_all_close(leaf, by_path[path], rtol=1e-6)
    train = fp.ema(fp.step(fp.backprop(model), optax.adam(0.1)), 0.9)
    with jax.numpy_dtype_promotion("standard"):
        state, _ = train.update(train.init(params, KEY), batch)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.inner.opt_state)]
    assert sum(sizes) == 1 + 2 * sum(leaf.size for _, leaf in seen)
    chex.assert_trees_all_equal_structs(state.average, params)
    is_frozen = lambda node: isinstance(node, fp.Frozen)
    for old, new in zip(
        jax.tree.leaves(params, is_leaf=is_frozen),
        jax.tree.leaves(state.params, is_leaf=is_frozen),
        strict=True,
    ):
        if is_frozen(old):
            chex.assert_trees_all_equal(old, new)


def test_below_the_lowest_trained_part_nothing_is_computed_backward():
    """All but the last block and the head frozen: forward, and one block's backward."""
    wide = fp.objective(
        fp.serial(fp.repeat(fp.residual(fp.dense(64)), 7), fp.residual(fp.dense(64))),
        fp.mean_squared(),
    )
    batch = jnp.ones((64, 64)), jnp.ones((64, 64))
    params = wide.init(KEY, batch)

    def text(model, params):
        return jax.jit(fp.backprop(model)).lower(params, batch).compile().as_text()

    everything = text(wide, params)
    some = text(fp.freeze(wide, "dense_0"), fp.frozen(wide, "dense_0", params))
    assert everything.count(" while(") == 2 and some.count(" while(") == 1


COPIES = fp.serial(fp.repeat(fp.repeat(fp.dense(5), 2), 2), fp.dense(3))  # of one layer, no block


@pytest.mark.parametrize(
    ("where", "copies"),
    [
        ("dense_0", False),
        ("dense_0", True),
        *(pytest.param(w, False, marks=pytest.mark.slow) for w in ("*dense*", "repeat/dense")),
    ],
)
def test_adapters_are_trained_alone_and_begin_at_the_model_itself(where, copies, x64):
    model = fp.objective(COPIES, fp.softmax_cross_entropy()) if copies else deep()
    batch = jax.random.normal(KEY, (16, 5)), jnp.zeros(16, int)
    plain = model.init(KEY, batch)
    adapted = fp.low_rank(model, where, 2, scale=0.5)
    params = fp.adapted(model, where, 2, plain, KEY)
    chex.assert_trees_all_equal_shapes(params, adapted.init(KEY, batch))
    loss, _ = adapted.forward(params, batch)
    np.testing.assert_allclose(loss.total, model.forward(plain, batch)[0].total, rtol=1e-12)
    # Away from zero: the gradient of what is added, by JAX.
    params = jax.tree.map(lambda p: p + 0.1, params)
    got = fp.backprop(adapted)(params, batch).grads
    want = jax.grad(lambda p: adapted.forward(p, batch)[0].total)(params)
    by_path = dict(jax.tree_util.tree_flatten_with_path(want)[0])
    seen = jax.tree_util.tree_flatten_with_path(got)[0]
    assert {name.split("/")[-1] for name in fp.by_name(got)} == {"down", "up"}
    for path, leaf in seen:
        chex.assert_trees_all_close(leaf, by_path[path], rtol=1e-9, atol=1e-12)


def test_what_cannot_be_frozen_or_adapted():
    model = deep()
    batch = jnp.ones((2, 5)), jnp.zeros(2, int)
    nearest = "dense_0, repeat, repeat/layer_norm"
    sentence = f"the pattern 'nothing' must match a name, the nearest are {nearest}"
    raises(ValueError, sentence, lambda: fp.freeze(model, "nothing"))
    raises(ValueError, "rank must be at least 1, got 0", lambda: fp.low_rank(model, "*", 0))
    frozen = fp.freeze(model, "dense_0")
    raises(
        TypeError,
        "dense_0: params must be Frozen(params), got DenseParams",
        lambda: frozen.forward(model.init(KEY, batch), batch),
    )
    raises(
        TypeError,
        "repeat/gelu: params to be adapted must be those of a dense layer, got tuple",
        lambda: fp.low_rank(model, "repeat/gelu", 1).init(KEY, batch),
    )


def test_a_batch_of_another_shape_is_reported_once(caplog):
    train = plain_step()
    state = train.init(jnp.array(1.0), None)
    for n in (4, 4, 3, 3, 2):
        state, _ = train.update(state, jnp.ones(n))
    assert [record.message for record in caplog.records] == [
        "update is compiled again: batch is float32[3], was float32[4]"
    ]
