"""A loss or a gradient that is not finite: where it began is found, and it is never applied."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.nonfinite.numbers import Numbers
from funprop.nonfinite.report import Call, FirstBad
from funprop.nonfinite.update import given_by
from funprop.nonfinite.watch import watched_run
from funprop.transforms.transformed import objective_of as inside

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
BATCH = X, np.zeros((8, 4), np.float32)
MESH = fp.make_mesh(data=1)
SGD = optax.sgd(0.1)


def of(function, name):
    return fp.from_function(lambda key, x: (), lambda params, x: function(x), name)


LOG = of(lambda x: jnp.log(jnp.abs(x)), "log")  # -inf at zero
SQRT = of(jnp.sqrt, "sqrt")  # at zero, an infinite slope
EXP = of(jnp.exp, "exp")
SAME = fp.layer(forward=lambda p, x: (x, ()), backward=lambda p, r, dy: ((), dy), name="same")
# What overflows in its last copy alone: 1, 1e15, 1e30, infinity.
GROWS = of(lambda x: 1e15 * x, "grows")
SPOILT = fp.layer(  # one element of one gradient, by hand
    init=lambda key, x: {"a": jnp.ones(4), "b": jnp.ones(4)},
    forward=lambda p, x: (x * p["a"][None] + p["b"][None], x),
    backward=lambda p, x, dy: (
        {"a": (x * dy).sum(0), "b": dy.sum(0).at[2].set(jnp.nan)},
        dy * p["a"][None],
    ),
    name="spoilt",
)
# A mask of infinities that a softmax takes away, before what is really broken.
MASK = of(lambda x: jnp.where(jnp.arange(4)[None] < 2, x, -jnp.inf), "mask")


def tied(*inner):
    """The first layer's weights, transposed, in the last."""
    return fp.reparam(
        fp.serial(fp.dense(4, bias=False), *inner, fp.dense(4, bias=False)),
        expand=lambda w: (fp.DenseParams(w, None), (), (), fp.DenseParams(w.T, None)),
        initial=lambda params: params[0].w,
    )


ZERO = of(lambda x: 0 * x, "zero")
PLACES = {
    "log": (fp.serial(fp.dense(4), fp.relu(), LOG), "activation", "log", "log(0) in float32"),
    "exp": (
        fp.serial(of(lambda x: 0 * x + 105, "far"), fp.residual(EXP)),
        *("activation", "exp", "exp(105) in float32"),
    ),
    "a copy": (
        fp.serial(of(lambda x: 0 * x + 1, "one"), fp.named("blocks", fp.repeat(GROWS, 3))),
        *("activation", "blocks[2]", "1e+15 * 1e+30"),
    ),
    "residual": (
        fp.serial(of(lambda x: 0 * x + 3e38, "far"), fp.residual(SAME)),
        *("activation", "same (residual)", ""),
    ),
    "parallel": (
        fp.serial(fp.parallel(fp.tanh(), fp.serial(fp.relu(), LOG)), fp.add()),
        *("activation", "parallel/serial/log", "log(0)"),
    ),
    "remat": (
        fp.repeat(fp.remat(fp.serial(fp.dense(4), ZERO, SQRT)), 2),
        *("residual", "repeat[1]/sqrt", "0.5 / 0"),
    ),
    "remat twice": (
        fp.repeat(fp.remat(fp.remat(fp.serial(fp.dense(4), ZERO, SQRT), keep="zero")), 2),
        *("residual", "repeat[1]/sqrt", "0.5 / 0"),
    ),
    "tied": (tied(ZERO, SQRT), "residual", "sqrt", "0.5 / 0"),
    "by hand": (
        fp.serial(fp.dense(4), fp.named("block", fp.serial(SPOILT, fp.tanh()))),
        *("gradient", "block/spoilt", ""),
    ),
    "after a mask": (
        fp.serial(MASK, fp.softmax(), LOG),
        *("activation", "log", "log(0)"),
    ),
    "a norm": (  # which puts NaN where squares have overflowed
        fp.serial(of(lambda x: 1e20 * (1 + x), "far"), fp.layer_norm()),
        *("activation", "layer_norm", "e+19 in float32, moments.py"),
    ),
    "autodiff": (
        fp.autodiff(fp.serial(fp.dense(4), fp.relu(), LOG)),
        *("activation", "serial", "log(0)"),
    ),
}


def objective_of(model):
    objective = fp.objective(model, fp.mean_squared())
    return objective, objective.init(KEY, BATCH)


@pytest.mark.parametrize("name", PLACES)
def test_the_place_is_named(name):
    model, kind, path, why = PLACES[name]
    objective, params = objective_of(model)
    found = fp.find_nonfinite(fp.backprop(objective), params, BATCH)
    during = "forward" if kind in ("activation", "residual") else "backward"
    assert (found.first.kind, found.first.path, found.first.during) == (kind, path, during)
    assert why in found.first.why and not found.finite
    marked = [line for line in str(found).splitlines() if "<- first" in line]
    assert len(marked) == 1 and marked[0].startswith(during) and path in marked[0]
    if kind == "gradient":
        assert found.first.leaf == "b" and found.first.numbers.at == (2,)
        assert found.first.numbers.counted() == "1 NaN of 4"


def in_two(model):
    objective, params = objective_of(model)
    grad_fn = fp.backprop(objective)
    return params, {
        "microbatch": fp.microbatch(grad_fn, 2),
        "mixed_precision": fp.mixed_precision(grad_fn),
        "gradient_statistics": fp.gradient_statistics(grad_fn),
        "data_parallel": fp.data_parallel(grad_fn, MESH),
        "ordered": fp.ordered(grad_fn, 2),
        "both": fp.microbatch(fp.mixed_precision(grad_fn), 2),
        "clip_per_example": fp.clip_per_example(objective, 1e9),
        "noise": fp.clip_per_example(objective, 1e9, noise=1e-15),
    }


NAMES = list(in_two(fp.dense(4))[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_transform_is_looked_into_with_the_very_keys_parts_and_dtypes(name):
    """What is looked at is the gradient that is trained with, dropout's noise included."""
    params, grad_fns = in_two(fp.serial(fp.dense(4), fp.dropout(0.5), fp.dense(4)))
    grad_fn = grad_fns[name]
    want = jax.jit(grad_fn)(params, BATCH, KEY)
    objective = inside(grad_fn)
    got, seen = watched_run(grad_fn, objective, params, BATCH, KEY, None)
    low = name in ("mixed_precision", "both")  # rounded to bfloat16 after each layer
    chex.assert_trees_all_close(got[:3], want[:3], rtol=2**-6 if low else 1e-4, atol=1e-4)
    parts = 2 if name in ("microbatch", "gradient_statistics", "ordered", "both") else 1
    calls = [each for each in seen if each.layer.name == "dropout"]
    assert [(each.during, each.part) for each in calls] == [
        (during, part) for part in range(parts) for during in ("forward", "backward")
    ]


def test_what_was_bad_before_is_named_as_the_cause():
    objective, params = objective_of(fp.serial(fp.dense(4), fp.tanh()))
    grad_fn = fp.backprop(objective)
    x, y = BATCH
    bad = x.copy()
    bad[5, 1] = np.nan
    first = fp.find_nonfinite(grad_fn, params, (bad, y)).first
    assert (first.kind, first.path, first.numbers.at) == ("input", "inputs", (5, 1))
    first = fp.find_nonfinite(grad_fn, params, (x, bad)).first
    assert (first.kind, first.path, first.numbers.at) == ("input", "targets", (5, 1))
    weights = np.ones(8, np.float32)
    weights[5] = 0  # it may hold anything
    assert fp.find_nonfinite(grad_fn, params, (bad, y, weights)).finite
    spoilt = params._replace(dense=params.dense._replace(w=params.dense.w.at[1, 2].set(jnp.inf)))
    found = fp.find_nonfinite(grad_fn, spoilt, (bad, y, weights))
    assert found.first[:3] == ("parameter", "", "dense/w") and found.first.numbers.at == (1, 2)
    labelled = fp.objective(fp.dense(4), fp.softmax_cross_entropy())
    labels = np.array([0, 1, 2, 3, 4, 0, 0, 0])
    found = fp.find_nonfinite(fp.backprop(labelled), params.dense, (x, labels))
    assert found.first.path == "softmax_cross_entropy"
    assert "labels must be from 0 to 3, got 4" in found.sentence()


def test_an_overflow_in_float16_is_met_as_in_training():
    """The loss is finite, and so is the gradient in float32: the scale is too large."""
    objective, params = objective_of(fp.serial(fp.dense(4), fp.named("head", fp.dense(4))))
    low = fp.mixed_precision(fp.backprop(objective), jnp.float16)
    assert fp.find_nonfinite(low, params, BATCH, None, 2.0**4).finite
    found = fp.find_nonfinite(low, params, BATCH, None, 2.0**15)
    assert np.isfinite(found.loss)
    assert (found.first.during, found.first.numbers.nan) == ("backward", 0)
    assert found.first.path == "mean_squared" and found.first.kind == "cotangent"
    assert "float16" in found.first.why
    train = fp.loss_scale(fp.step(low, SGD), 2.0**15)
    state = fp.skip_nonfinite(fp.ema(train, 0.9)).init(params, KEY)
    assert fp.find_nonfinite_update(fp.skip_nonfinite(train), state, BATCH).first == found.first


# ------------------------------------------------------------------------- anybody's loss function


def squares(params, batch):
    x, y = batch
    with jax.named_scope("head"):
        h = jnp.tanh(x @ params["w"])
        return (jnp.sqrt(jnp.maximum(h, 0)) - y).sum(), len(x)


def logs(params, batch, key):
    x, y = batch
    drawn = jax.random.bernoulli(key, 0.5, x.shape)
    h = jax.lax.scan(lambda h, w: (h @ w, None), jnp.where(drawn, x, 0.0), params["w"][None])[0]
    return (jnp.log(jnp.abs(h) * (h > 1)) - y).sum(), len(x)


def test_of_a_loss_function_the_equation_is_told_and_its_line():
    params = {"w": -jnp.eye(4)}
    for wrap in (lambda g: g, lambda g: fp.microbatch(fp.mixed_precision(g), 2)):
        grad_fn = wrap(fp.from_loss(logs))
        with jax.numpy_dtype_promotion("standard"):
            found = fp.find_nonfinite(grad_fn, params, BATCH, KEY)
        assert (found.first.kind, found.first.during) == ("equation", "forward")
        assert "log(0) in" in found.first.why and "test_nonfinite.py:" in found.first.why
    found = fp.find_nonfinite(fp.from_loss(squares), params, (np.zeros_like(X), BATCH[1]))
    assert found.loss == 0 and list(found.gradients) == ["w"] and not found.gradients["w"].finite
    assert (found.first.during, found.first.path) == ("backward", "head")
    assert "test_nonfinite.py:" in found.first.why
    spoilt = X.copy()
    spoilt[3, 0] = np.inf
    batch = {"x": X, "y": spoilt}
    grad_fn = fp.from_loss(lambda p, b: squares(p, (b["x"], b["y"])))
    first = fp.find_nonfinite(grad_fn, params, batch).first
    assert (first.kind, first.path, first.numbers.at) == ("input", "batch/y", (3, 0))
    first = fp.find_nonfinite(fp.from_loss(squares), {"w": params["w"] * jnp.nan}, BATCH).first
    assert first[:3] == ("parameter", "", "w")


def test_what_the_optimizer_makes_of_a_finite_gradient_is_told():
    grad_fn = fp.from_loss(lambda w, x: ((w * x).sum(), 1))
    train = fp.step(grad_fn, optax.adam(0.1))
    state = train.init(jnp.ones(2), None)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        found = fp.find_nonfinite_update(train, state, jnp.array([1e30, 1.0]))
    assert (found.first.kind, found.first.numbers.at) == ("update", (0,))
    assert "nu" in found.first.path
    assert np.isfinite(state.params).all()  # it is not used up


def test_an_update_is_looked_into_with_its_own_key_and_scale():
    objective, params = objective_of(fp.serial(fp.dropout(0.5), fp.dense(4)))
    train = fp.skip_nonfinite(fp.loss_scale(fp.ema(fp.step(fp.backprop(objective), SGD), 0.9), 4.0))
    state = train.init(params, KEY)
    state, _ = train.update(state, BATCH)
    given = given_by(state)
    assert (given.key == jax.random.fold_in(KEY, 1)).all() and given.dloss == 4
    with pytest.raises(TypeError, match="state must be what init and update of a step give"):
        given_by(params)


# ------------------------------------------------------------------------------------- what is said


def test_a_sentence_is_short_and_a_long_table_keeps_what_matters():
    bad = Numbers(1.0, 3, 0, 10, (2,), "w")
    calls = tuple(
        Call(f"layer_{i}", "forward", 0, Numbers(), bad if i >= 100 else Numbers(), {})
        for i in range(200)
    )
    first = FirstBad("activation", "forward", "layer_100", "", bad, 3.1e38, "a" * 600)
    report = fp.NonfiniteReport(float("nan"), {}, first, calls, ())
    told = report.sentence(1203)
    assert len(told) <= 400
    assert told.startswith(
        "update 1,203: the loss is NaN. First bad: activation of layer_100, forward: 3 NaN of 10; "
        "its input's largest was 3.1e+38 ("
    )
    lines = str(report).splitlines()
    assert len(lines) < 40 and sum("<- first" in line for line in lines) == 1
    assert all(any(f" layer_{i} " in line for line in lines) for i in (0, 99, 100, 101, 199))
    assert len(report.table().splitlines()) == 204


# --------------------------------------------------------------------------------- never applied


def spoilable():
    """Batch statistics, and a gradient of two leaves that a batch may spoil apart."""

    def forward(params, x):
        return x + params["a"][None] + params["b"][None], x

    def backward(params, x, dy):
        spoil = jnp.where(x[0, 0] > 1e3, jnp.nan, 0.0)
        return {"a": dy.sum(0), "b": dy.sum(0).at[1].add(spoil)}, dy

    def init(key, x):
        return {"a": jnp.zeros(4), "b": jnp.zeros(4)}

    odd = fp.layer(init=init, forward=forward, backward=backward, name="odd")
    loss = fp.layer(  # infinite at a target above 1e3, its gradient finite
        forward=lambda p, both: (
            fp.Sum(jnp.where(both[1].max() > 1e3, jnp.inf, (both[0] ** 4).sum()), jnp.float32(8)),
            both[0],
        ),
        backward=lambda p, outputs, dy: ((), (4 * outputs**3 * dy.total, None)),
        name="loss",
    )
    return odd, loss


STEPS = {
    "plain": lambda o: fp.skip_nonfinite(fp.step(fp.backprop(o), optax.adam(0.1))),
    "microbatch": lambda o: fp.skip_nonfinite(
        fp.step(fp.microbatch(fp.backprop(o), 2), optax.lion(0.1))
    ),
    "loss_scale": lambda o: fp.skip_nonfinite(
        fp.loss_scale(fp.step(fp.mixed_precision(fp.backprop(o)), optax.adam(0.1)))
    ),
    "ema": lambda o: fp.skip_nonfinite(fp.ema(fp.step(fp.backprop(o), SGD), 0.9)),
    "ema around": lambda o: fp.ema(fp.skip_nonfinite(fp.step(fp.backprop(o), SGD)), 0.9),
    "fused": lambda o: fp.skip_nonfinite(fp.fused_step(o, optax.lion(0.1))),
    "sharded": lambda o: fp.shard(
        fp.skip_nonfinite(fp.step(fp.backprop(o), optax.adam(0.1))), MESH, fp.fsdp_rules(MESH)
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_update_of_a_bad_loss_or_gradient_changes_no_bit(name, any_ranks):
    odd, loss = spoilable()
    # A part of a batch has other statistics than the whole.
    model = odd if name == "microbatch" else fp.serial(odd, fp.batch_norm())
    objective = fp.objective(model, loss)
    train = STEPS[name](objective)
    x, y = BATCH
    far, above = x.copy(), y.copy()
    far[0, 0], above[3, 1] = 1e4, 1e4
    with jax.numpy_dtype_promotion("standard"):  # for optax
        state = train.init(objective.init(KEY, BATCH), KEY)
        state, metrics = train.update(state, BATCH)
        assert not metrics["skipped"].total
        before = jax.tree.map(jnp.copy, bits_of(state))
        for batch in ((x, above), (far, y), (x * np.inf, y)):  # loss, one leaf, all
            state, metrics = train.update(state, batch)
            chex.assert_trees_all_equal(bits_of(state), before)
            assert metrics["skipped"].mean == 1 and metrics["loss"].weight == 0
        state, metrics = train.update(state, BATCH)
    assert not metrics["skipped"].total
    assert not np.array_equal(*(jax.tree.leaves(s.params)[0] for s in (state, before)))


def bits_of(state):
    """All but how many were left out, and the scale that is found by it."""
    if hasattr(state, "sums"):
        return state._replace(inner=bits_of(state.inner))
    while hasattr(state, "inner") and not hasattr(state, "sums"):
        state = state.inner
    return state


def test_a_loss_that_is_bad_alone_is_named_and_leaves_the_scale():
    odd, loss = spoilable()
    objective = fp.objective(odd, loss)
    above = np.full_like(X, 1e4)
    train = fp.skip_nonfinite(fp.step(fp.backprop(objective), SGD), n=1)
    state, _ = train.update(train.init(objective.init(KEY, BATCH), None), (X, above))
    with pytest.raises(FloatingPointError, match="update 1: the loss is infinite or NaN, 1 in a"):
        train.check(state)
    train = fp.loss_scale(fp.step(fp.backprop(objective), SGD), 4.0)
    state, _ = train.update(train.init(objective.init(KEY, BATCH), None), (X, above))
    assert state.scale == 4 and state.inner.count == 0
