"""Statistics are carried: no gradient, no optimizer state, no decay; ours and anybody's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp

MODEL = fp.serial(
    fp.dense(6),
    fp.batch_norm(),
    fp.relu(),
    fp.repeat(fp.residual(fp.serial(fp.dense(6), fp.batch_norm())), 2),
    fp.dense(3),
)
OBJECTIVE = fp.objective(MODEL, fp.softmax_cross_entropy())


def batches(n=4, rows=16):
    rng = np.random.default_rng(0)
    return [
        (
            jnp.asarray(rng.normal(3, 2, (rows, 5)), jnp.float32),
            jnp.asarray(rng.integers(0, 3, rows)),
        )
        for _ in range(n)
    ]


def trained_by(step, params, n=4):
    state = step.init(params, jax.random.key(1))
    for batch in batches(n):
        state, _ = step.update(state, batch)
    return state


def test_running_statistics_are_the_mean_at_first_then_a_moving_average():
    """Nothing is learned, so that each batch_norm sees the data: a plain reference."""
    norm = fp.serial(fp.batch_norm(momentum=0.7), fp.dense(3))
    objective = fp.objective(norm, fp.softmax_cross_entropy())
    params = objective.init(jax.random.key(0), batches()[0])
    state = trained_by(fp.step(fp.backprop(objective), optax.sgd(0.0)), params, 6)
    mean, variance = np.zeros(5), np.ones(5)
    for i, (x, _) in enumerate(batches(6)):
        share = max(1 - 0.7, 1 / (i + 1))
        x = np.asarray(x, np.float64)
        mean += share * (x.mean(0) - mean)
        variance += share * (x.var(0) - variance)
    got = state.params.batch_norm
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(got.variance, variance, rtol=1e-5)
    assert float(got.updates) == 6


REWRITES = {
    "plain": lambda o: fp.backprop(o),
    "remat": lambda o: fp.backprop(fp.remat(o)),
    "remat-keep": lambda o: fp.backprop(fp.remat(o, keep="dense_0")),
    "autodiff": lambda o: fp.backprop(fp.autodiff(o)),
    "tap": lambda o: fp.backprop(fp.tap(o, "*/dense", forward=jnp.sum)),
    "cast": lambda o: fp.backprop(fp.cast(o, jnp.float32)),
}


@pytest.mark.parametrize("how", REWRITES)
def test_every_rewrite_carries_them(how):
    params = OBJECTIVE.init(jax.random.key(0), batches()[0])
    want = trained_by(fp.step(fp.backprop(OBJECTIVE), optax.sgd(1e-2)), params).params
    got = trained_by(fp.step(REWRITES[how](OBJECTIVE), optax.sgd(1e-2)), params).params
    for (path, w), g in zip(fp.by_name(want).items(), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-3, atol=2e-4, err_msg=path)
    assert got.batch_norm.updates == 4 and (got.repeat.batch_norm.updates == 4).all()


@pytest.mark.parametrize("wrap", ["ema", "skip_nonfinite", "fused", "scan"])
def test_every_step_carries_them(wrap):
    params = OBJECTIVE.init(jax.random.key(0), batches()[0])
    plain = fp.step(fp.backprop(OBJECTIVE), optax.sgd(1e-2))
    want = trained_by(plain, params).params
    if wrap == "scan":
        many = fp.scan(plain)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches())
        got = many.update(many.init(params, jax.random.key(1)), stacked)[0].params
    else:
        step = {
            "ema": lambda: fp.ema(plain, 0.9),
            "skip_nonfinite": lambda: fp.skip_nonfinite(plain),
            "fused": lambda: fp.fused_step(OBJECTIVE, optax.sgd(1e-2)),
        }[wrap]()
        state = trained_by(step, params)
        got = state.params
        if wrap == "ema":  # an average of what is trained, beside the statistics of now
            np.testing.assert_array_equal(state.average.batch_norm.mean, got.batch_norm.mean)
    for (path, w), g in zip(fp.by_name(want).items(), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5, err_msg=path)


def test_no_gradient_no_state_no_decay():
    params = OBJECTIVE.init(jax.random.key(0), batches()[0])
    gradient = fp.backprop(OBJECTIVE)(params, batches()[0], jax.random.key(0))
    assert gradient.grads.batch_norm[2:] == (None, None, None)
    step = fp.step(fp.backprop(OBJECTIVE), optax.sgd(1e-2, momentum=0.9))
    state = step.init(params, jax.random.key(1))
    assert len(jax.tree.leaves(state.opt_state[0].trace)) == len(jax.tree.leaves(params)) - 6
    # Without a key nothing is recorded.
    assert not jax.tree.leaves(fp.backprop(OBJECTIVE)(params, batches()[0]).recorded)


def test_what_is_frozen_stays_and_takes_nothing_from_the_batch():
    """So it mixes no examples, and a part of the batch is normalised as the whole."""
    model = fp.freeze(OBJECTIVE, "*/batch_norm")
    params = model.init(jax.random.key(0), batches()[0])
    state = trained_by(fp.step(fp.backprop(model), optax.sgd(1e-2)), params)
    for new, old in zip(state.params.batch_norm.frozen, params.batch_norm.frozen, strict=True):
        np.testing.assert_array_equal(new, old)
    assert OBJECTIVE.mixes and not model.mixes
    whole = fp.backprop(model)(params, batches()[0], jax.random.key(1))
    parts = fp.microbatch(fp.backprop(model), 4)(params, batches()[0], jax.random.key(1))
    np.testing.assert_allclose(parts.grads.dense_0.w, whole.grads.dense_0.w, rtol=1e-4, atol=1e-5)


def test_a_step_without_a_key_would_carry_nothing():
    params = OBJECTIVE.init(jax.random.key(0), batches()[0])
    with pytest.raises(ValueError, match="as batch_norm takes statistics from the batch"):
        fp.step(fp.backprop(OBJECTIVE), optax.sgd(0.1)).init(params, None)
    with pytest.raises(ValueError, match="as batch_norm takes statistics from the batch"):
        fp.fused_step(OBJECTIVE, optax.sgd(0.1)).init(params, None)


@pytest.mark.parametrize("swapped", [True, False])
def test_no_place_for_what_was_recorded_is_told(swapped):
    """Params that are made from others have an order of their own."""

    def expand(params):
        return params["z"], params["d"], params["a"]

    model = fp.reparam(
        fp.serial(fp.batch_norm(), fp.dense(5), fp.batch_norm()),
        expand=expand,
        initial=lambda p: dict(zip("adz" if swapped else "zda", p, strict=True)),
    )
    objective = fp.objective(model, fp.softmax_cross_entropy())
    step = fp.step(fp.backprop(objective), optax.sgd(0.1))
    state = step.init(objective.init(jax.random.key(0), batches()[0]), jax.random.key(1))
    with pytest.raises(ValueError, match="got BatchNormParams made from others by reparam"):
        step.update(state, batches()[0])


def test_what_cannot_be_finite_is_left_out_whole():
    objective = fp.objective(fp.serial(fp.batch_norm(), fp.dense(3)), fp.softmax_cross_entropy())
    params = objective.init(jax.random.key(0), batches()[0])
    step = fp.step(fp.backprop(objective), optax.sgd(0.0))
    x, y = batches()[0]
    state, _ = step.update(step.init(params, jax.random.key(1)), (x.at[0, 0].set(jnp.inf), y))
    for new, old in zip(state.params.batch_norm[2:], params.batch_norm[2:], strict=True):
        np.testing.assert_array_equal(new, old)


# ------------------------------------------------------------------------------- of anybody's model


def flax_model():
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.Dense(6)(x)
            x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            return linen.Dense(3)(linen.relu(x))

    net = Net()
    variables = net.init(jax.random.key(0), batches()[0][0], train=False)
    params = {
        "params": variables["params"],
        "batch_stats": fp.Statistic(variables["batch_stats"]),
    }

    def loss_fn(params, batch, key):
        x, y = batch
        variables = {"params": params["params"], "batch_stats": params["batch_stats"].statistic}
        train = key is not None
        logits, new = net.apply(variables, x, train=train, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.sum(), len(x), {}, new["batch_stats"] if train else None

    return net, params, loss_fn


def flax_reference(net, params, optimizer):
    """Flax's own loop."""
    weights, stats = params["params"], params["batch_stats"].statistic
    opt_state = optimizer.init(weights)

    def loss(weights, stats, x, y):
        logits, new = net.apply(
            {"params": weights, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), new["batch_stats"]

    for x, y in batches():
        (_, stats), grads = jax.value_and_grad(loss, has_aux=True)(weights, stats, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights, stats


def test_flax_batch_statistics_are_carried():
    net, params, loss_fn = flax_model()
    with jax.numpy_dtype_promotion("standard"):
        want = flax_reference(net, params, optax.sgd(1e-2))
        state = trained_by(fp.step(fp.from_loss(loss_fn), optax.sgd(1e-2)), params)
    got = state.params["params"], state.params["batch_stats"].statistic
    for w, g in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_give_the_mean_of_their_statistics():
    def loss_fn(params, batch):
        return (params["w"] * batch).sum(), batch.size, {}, {"mean": batch.mean()}

    params = {"w": jnp.ones(()), "s": fp.Statistic({"mean": jnp.zeros(())})}
    step = fp.step(fp.microbatch(fp.from_loss(loss_fn), 2), optax.sgd(0.1))
    state, _ = step.update(step.init(params, None), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert float(state.params["s"].statistic["mean"]) == pytest.approx(3.0)
    with pytest.raises(TypeError, match="loss_fn must return statistics like those in params"):
        fp.from_loss(lambda p, b: (b.sum(), b.size, {}, {"mean": b}))(params, jnp.ones(3))


def test_integers_change_by_whole_numbers_and_a_part_without_weight_has_no_say():
    def loss_fn(params, batch):
        x, weights = batch
        mean = (x * weights).sum() / weights.sum()  # of no rows: NaN
        new = {"count": params["s"].statistic["count"] + 1, "mean": mean}
        return (params["w"] * x * weights).sum(), weights.sum(), {}, new

    start = {"count": jnp.array(2**24, jnp.int32), "mean": jnp.zeros(())}
    params = {"w": jnp.ones(()), "s": fp.Statistic(start)}
    for grad_fn in (fp.from_loss(loss_fn), fp.microbatch(fp.from_loss(loss_fn), 3)):
        step = fp.step(grad_fn, optax.sgd(0.1))
        state = step.init(params, None)
        weights = jnp.array([0.3, 0.0, 0.3, 0.3, 0.0, 0.3])  # parts take every third
        for _ in range(5):
            state, _ = step.update(state, (jnp.arange(6.0), weights))
        found = state.params["s"].statistic
        assert int(found["count"]) == 2**24 + 5
        assert float(found["mean"]) == pytest.approx((0 + 2 + 3 + 5) / 4)


def test_ours_are_carried_inside_anybodys_loss_beside_theirs():
    model = fp.serial(fp.batch_norm(), fp.dense(3))

    def loss_fn(params, batch, key):
        x, y = batch
        logits, kept = model.forward(params["model"], x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.sum(), len(x), {}, fp.recorded(kept)

    own = model.init(jax.random.key(0), batches()[0][0])
    params = {"model": own, "buffer": fp.Statistic(jnp.ones(()))}
    with jax.numpy_dtype_promotion("standard"):
        got = trained_by(fp.step(fp.from_loss(loss_fn), optax.sgd(1e-2)), params).params
    whole = fp.objective(model, fp.softmax_cross_entropy())
    want = trained_by(fp.step(fp.backprop(whole), optax.sgd(1e-2)), own).params
    for g, w in zip(jax.tree.leaves(got["model"]), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
    assert float(got["buffer"].statistic) == 1


def test_equinox_state_is_a_statistic():
    eqx = pytest.importorskip("equinox")
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis_name="batch", mode="batch")
    weights, static = eqx.partition(norm, eqx.is_inexact_array)

    def loss_fn(params, batch):
        layer = eqx.combine(params["norm"], static)
        run = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, new = run(batch, params["state"].statistic)
        return (y**2).sum(), y.size, {}, new

    params = {"norm": weights, "state": fp.Statistic(state)}
    with jax.numpy_dtype_promotion("standard"):
        step = fp.step(fp.from_loss(loss_fn), optax.sgd(1e-2))
        after, _ = step.update(step.init(params, None), jnp.arange(12.0).reshape(4, 3))
    old, new = (jax.tree.leaves(p["state"].statistic) for p in (params, after.params))
    assert any((jnp.asarray(o) != jnp.asarray(n)).any() for o, n in zip(old, new, strict=True))
