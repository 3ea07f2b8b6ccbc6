"""The scale of a loss: what it is for, how it moves, and that it stays a number that helps."""

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from tests.test_bad_input import raises
from tests.test_transforms import BACKPROP, KEY, example


def half(scale):
    """A float16 model whose gradient, 1e-6 times 1e-3, float16 does not have."""

    def loss(w, batch):
        return (jnp.float16(1e-3) * w.astype(jnp.float16) * batch).sum().astype(jnp.float32), 1

    train = fp.step(fp.from_loss(loss), optax.sgd(1.0))
    return fp.loss_scale(train, scale, every=2) if scale else train


def test_small_gradients_of_float16_survive():
    batch = jnp.array([1e-6], jnp.float16)
    moved = []
    for scale in (None, 2.0**15):
        train = half(scale)
        state, _ = train.update(train.init(jnp.array(0.0), None), batch)
        moved.append(-float(state.params))
    assert moved[0] == 0
    np.testing.assert_allclose(moved[1], 1e-9, rtol=0.1)


def test_the_scale_is_halved_and_doubled():
    train = half(2.0**10)
    state, scales = train.init(jnp.array(0.0), None), []
    for x in (1.0, 1.0, jnp.inf, 1.0, 1.0, 1.0, 1.0):
        state, metrics = train.update(state, jnp.array([x], jnp.float16))
        scales.append(float(metrics["loss_scale"].mean) / 2**10)
        assert metrics["skipped"].mean == float(x == jnp.inf)
    assert scales == [1, 1, 2, 1, 1, 2, 2]


def test_a_scale_changes_nothing_in_float64(x64):
    params, batch = example()
    grad_fn = fp.microbatch(fp.mixed_precision(BACKPROP, jnp.float64), 3)
    train = fp.step(grad_fn, optax.sgd(0.1))
    scaled = fp.loss_scale(train, 2.0**10)
    want, _ = train.update(train.init(params, KEY), batch)
    got, _ = scaled.update(scaled.init(params, KEY), batch)
    chex.assert_trees_all_close(got.params, want.params, rtol=1e-12)


# ---------------------------------------------------------------------------------- its bounds


def following(initial, every, dtype, through_cotangents=False):
    """From a list of gradients to the scales, what was skipped, and the params: the loss is in
    `dtype`, or its first cotangents are."""

    def loss(w, x):
        total = (w.astype(dtype) * x.astype(dtype)).sum()
        return (total.astype(jnp.float32) if through_cotangents else total), 1

    train = fp.scan(fp.loss_scale(fp.step(fp.from_loss(loss), optax.sgd(1.0)), initial, every))

    def follow(xs):
        state, told = train.update(train.init(jnp.zeros(()), None), jnp.asarray(xs, jnp.float32))
        scales = np.array([*told["loss_scale"].total, state.scale])
        return scales, np.array(told["skipped"].total), float(state.params)

    return follow


@pytest.mark.parametrize("through_cotangents", [False, True])
@pytest.mark.parametrize(
    ("initial", "every", "dtype"),
    [
        (2.0**15, 1, jnp.float16),
        (1.0, 3, jnp.float32),
        (2.0**127, 1, jnp.bfloat16),
        *(
            pytest.param(*scale, dtype, marks=pytest.mark.slow)
            for scale in ((2.0**127, 1), (2.0**-126, 2), (2.0**-10, 1), (2.0**16, 5))
            for dtype in (jnp.float16, jnp.bfloat16, jnp.float32)
        ),
    ],
)
def test_it_stays_a_power_of_two_and_recovers(initial, every, dtype, through_cotangents):
    """However long gradients are zero, or infinite; and then an update is what it should be."""
    bad, zero = [np.inf] * 300, [0.0] * 300
    follow = following(initial, every, dtype, through_cotangents)
    for xs in (3 * zero, 3 * bad, zero + bad + zero, bad + zero + bad):
        scales, skipped, params = follow([*xs, *[1.0] * 100, 0.5])
        mantissas, exponents = np.frexp(scales)
        assert (mantissas == 0.5).all() and np.isfinite(scales).all()
        assert exponents.max() <= max(16, np.frexp(initial)[1])
        assert exponents.min() >= min(-13, np.frexp(initial)[1])
        assert not skipped[-50:].any()  # it has found its place
        assert skipped[: len(xs)][-100:].all() == np.isinf(xs[-1])
        made = 1 - skipped[len(xs) : -1]
        np.testing.assert_allclose(params, -made.sum() - 0.5, rtol=1e-2)


def test_a_run_of_bad_batches_does_not_leave_a_scale_that_makes_gradients_zero():
    """A gradient of 1e-6 in float16, times 2^-14, is zero: with the default of 2000 good updates
    to double, 30 thousand would train nothing."""
    xs = [*[np.inf] * 200, *[1e-6] * 60]
    scales, skipped, params = following(2.0**15, 2000, jnp.float16)(xs)
    assert scales[200] == 2**-14 and scales[-1] == 1 and not skipped[200:].any()
    np.testing.assert_allclose(params, -1e-6 * 60, rtol=0.4)


def test_gradients_that_overflow_at_one_find_a_smaller_scale():
    model = fp.from_loss(lambda w, x: ((w.astype(jnp.float16) * x).astype(jnp.float32).sum(), 1))
    train = fp.loss_scale(fp.step(model, optax.sgd(1.0)), 2.0**4)
    state = train.init(jnp.zeros(()), None)
    for _ in range(12):  # eight times 60,000 is no float16
        state, _ = train.update(state, jnp.full(8, 60000, jnp.float16))
    assert float(state.params) < 0


@pytest.mark.parametrize(
    ("kind", "sentence", "given"),
    [
        (ValueError, "initial must be a power of two from 2^-126 to 2^127, got {}", initial)
        for initial in (3.0, 0.0, -2.0, np.inf, np.nan, 2.0**128, 2.0**-127)
    ]
    + [
        (TypeError, "initial must be a power of two, got '8'", "8"),
        (TypeError, "initial must be a power of two, got True", True),
    ],
)
def test_an_initial_scale_that_cannot_be(kind, sentence, given):
    raises(kind, sentence.format(given), lambda: fp.loss_scale(half(None), given))


@pytest.mark.parametrize(
    ("kind", "sentence", "every"),
    [
        (ValueError, "every must be at least 1, got 0", 0),
        (TypeError, "every must be an integer, got 2.5", 2.5),
        (TypeError, "every must be an integer, got None", None),
    ],
)
def test_a_number_of_good_updates_that_cannot_be(kind, sentence, every):
    raises(kind, sentence, lambda: fp.loss_scale(half(None), every=every))


def test_a_grad_fn_that_takes_no_cotangent_is_told():
    def own(params, batch, key=None):
        return fp.Gradient(params, params, 1.0, {})

    raises(
        TypeError,
        "grad_fn must take a fourth argument, dloss, the cotangent of the loss, under loss_scale, "
        "got the function own",
        lambda: updated(fp.loss_scale(fp.step(fp.microbatch(own, 2), optax.sgd(1.0)))),
    )
    updated(fp.step(fp.microbatch(own, 2), optax.sgd(1.0)))


def updated(train):
    return train.update(train.init(jnp.ones(()), None), jnp.ones(2))


def test_integers_of_any_size_are_good_for_both():
    train = fp.loss_scale(half(None), np.int64(2**10), every=2**40)
    state, _ = train.update(train.init(jnp.array(0.0), None), jnp.ones(1, jnp.float16))
    assert state.scale == 2**10 and state.good == 1
