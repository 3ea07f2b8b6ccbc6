"""What `watch` sees is what brute force counts, and training has the same bits with and without."""

import chex
import jax
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.flow.picture import gradient_flow
from funprop.flow.spread import DECADES, spread, sums
from funprop.nonfinite.watch import watched_run

KEY = jax.random.key(0)
draw = np.random.default_rng(0)
X = draw.normal(size=(24, 6)).astype(np.float32)
Y = draw.integers(0, 3, 24)
block = fp.remat(fp.residual(fp.serial(fp.layer_norm(), fp.dense(6), fp.relu())))
shared = fp.reparam(
    fp.serial(fp.dense(2, bias=False), fp.named("back", fp.dense(6, bias=False))),
    expand=lambda w: (fp.DenseParams(w, None), fp.DenseParams(w.T, None)),
    initial=lambda params: params[0].w,
)
model = fp.serial(
    fp.named("blocks", fp.repeat(block, 3)), fp.dropout(0.3), fp.named("tied", shared), fp.dense(3)
)
objective = fp.objective(model, fp.softmax_cross_entropy())
step = fp.ema(fp.step(fp.microbatch(fp.backprop(objective), 2), optax.sgd(0.1)), 0.9)


def counted(array):
    """By NumPy, of what a `Spread` tells."""
    x = np.asarray(array, np.float64).ravel()
    bins = np.histogram(np.abs(x[x != 0]), [0, *10.0**DECADES, np.inf])[0]
    return [x.size, (x == 0).mean(), x.mean(), x.std(), *bins]


def told(found):
    return [*found[:4], *found.bins]


def fitted(watch=None):
    state = step.init(objective.init(KEY, (X, Y)), KEY)
    options = {"epochs": 4, "batch_size": 8, "progress": None, "measure_every": 2}
    return fp.fit(step, state, (X, Y), watch=watch, **options)


def test_a_look_is_what_brute_force_counts():
    params = objective.init(KEY, (X, Y))
    state = step.init(params, KEY)
    seen = fp.watch(examples=16)
    look = seen.look(step, state, (X, Y), 0.5, 7)
    assert (look.epoch, look.update) == (0.5, 7)
    calls = []
    key = jax.random.fold_in(KEY, 0)
    some = X[:16], Y[:16]
    grad_fn = fp.backprop(objective)

    def noted(call, params, given, gives, gradients):
        calls.append((call, given, gives))

    watched_run(grad_fn, objective, params, some, key, None, noted)
    arrays = {
        (call.path, call.during): (given, gives)
        for call, given, gives in calls
        if not call.layer.children
    }
    for path, flow in look.layers.items():
        y = arrays[path, "forward"][1]
        dy = arrays[path, "backward"][0]
        for found, want in ((flow.activation, y), (flow.cotangent, dy)):
            np.testing.assert_allclose(told(found), counted(want), rtol=1e-4, atol=2e-6)
        if "relu" in path:
            assert flow.dead == (np.asarray(y) == 0).all(0).mean()
    assert len(look.layers) == 3 * 3 + 1 + 2 + 1  # and no loss
    assert step.propose is not None
    after = step.propose(state, (X, Y))[0].inner.params
    new, old = after.blocks.dense, params.blocks.dense
    added = [
        jax.tree.leaves(jax.tree.map(lambda a, b, i=i: a[i] - b[i], new, old)) for i in range(3)
    ]
    for i, leaves in enumerate(added):
        flow = look.layers[f"blocks[{i}]/dense"]
        want = np.concatenate([leaf.ravel() for leaf in leaves])
        np.testing.assert_allclose(told(flow.update), counted(want), rtol=1e-3, atol=1e-6)
        weights = np.concatenate([leaf[i].ravel() for leaf in old])
        np.testing.assert_allclose(flow.ratio, np.linalg.norm(want) / np.linalg.norm(weights), 1e-3)


def test_training_has_the_same_bits_and_looks_are_where_rows_are_due():
    seen = fp.watch(every=4)
    with_it, without = fitted(seen), fitted()
    chex.assert_trees_all_equal(with_it.state, without.state)
    assert [row["loss"] for row in with_it.history] == [row["loss"] for row in without.history]
    assert [(look.epoch, look.update) for look in seen.looks] == [
        (0, 0),
        (4 / 3, 4),
        (8 / 3, 8),
        (4, 12),
    ]
    first = seen.looks[0].layers["dense"].activation
    assert first != seen.looks[-1].layers["dense"].activation


def test_a_spread_says_where_the_numbers_lie():
    x = np.exp(draw.normal(size=4000)).astype(np.float32)
    found = spread(sums(x))
    for q in (0.1, 0.5, 0.9):
        assert abs(np.log10(found.quantile(q) / np.quantile(x, q))) < 0.15
    holed = spread(sums(np.array([np.nan, np.inf, 0, 1e-30, 1e9], np.float32)))
    assert sum(holed.bins) == 2 and holed.bins[0] == holed.bins[-1] == 1


def test_the_picture_has_a_column_a_layer(tmp_path):
    seen = fp.watch(every=1)
    fitted(seen)
    figure = gradient_flow(seen, tmp_path / "flow.png", where="blocks*")
    assert len(figure.axes) == 3 * 9
    assert (tmp_path / "flow.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="where must match a layer, as blocks"):
        gradient_flow(seen, where="nothing")
    with pytest.raises(ValueError, match="at least one look, got none"):
        gradient_flow(fp.watch())


def test_what_cannot_be_watched_is_refused():
    loss = fp.from_loss(lambda w, batch: ((w * batch[0]).sum(), 1))
    plain = fp.step(loss, optax.sgd(0.1))
    state = plain.init(np.ones(6, np.float32), None)
    with pytest.raises(ValueError, match="watch needs a step of backprop"):
        fp.fit(plain, state, (X, Y), epochs=1, batch_size=8, watch=fp.watch())
    with pytest.raises(TypeError, match="watch must be a watch"):
        fp.fit(plain, state, (X, Y), epochs=1, batch_size=8, watch=True)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        fp.watch(every=0)


def looks_of(*widths):
    """A watch that looked once at each of these models."""
    seen = fp.watch()
    for width in widths:
        line = fp.objective(fp.mlp(*width), fp.softmax_cross_entropy())
        train = fp.step(fp.backprop(line), optax.sgd(0.1))
        seen.look(train, train.init(line.init(KEY, (X, Y)), None), (X, Y), 0, 0)
    return seen


def test_what_is_no_look_has_no_picture():
    for given in (3, None, [1], looks_of((3,)).looks[0]):
        with pytest.raises(
            TypeError, match=r"seen must be a watch\(\) or a list of its looks, got"
        ):
            gradient_flow(given)
    with pytest.raises(ValueError, match="seen must hold looks of one model, got layers dense and"):
        gradient_flow(looks_of((3,), (4, 3)))
    seen = looks_of((3,))
    for name, given in (("where", 3), ("title", 3), ("file", 3)):
        with pytest.raises(TypeError, match=f"{name} must be a (string|path), got 3"):
            gradient_flow(seen, **{name: given})


def test_a_look_wants_numbers():
    line = fp.objective(fp.mlp(3), fp.softmax_cross_entropy())
    train = fp.step(fp.backprop(line), optax.sgd(0.1))
    state, seen = train.init(line.init(KEY, (X, Y)), None), fp.watch()
    for batch, epoch, update, said in (
        ((X, "a"), 0, 0, "batch/1 must hold numbers, got 'a'"),
        ((X, Y), "a", 0, "epoch must be a number, got 'a'"),
        ((X, Y), 0, "a", "update must be an integer, got 'a'"),
    ):
        with pytest.raises(TypeError, match=said):
            seen.look(train, state, batch, epoch, update)
    assert not seen.looks
    empty = seen.look(train, state, (X[:0], Y[:0]), 0, 0)
    assert all(flow.dead == 0 for flow in empty.layers.values())


def test_updates_of_adapters_are_those_of_their_layer():
    line = fp.low_rank(fp.serial(fp.dense(4), fp.tanh(), fp.dense(3)), "*dense*", 1)
    whole = fp.objective(line, fp.softmax_cross_entropy())
    train = fp.step(fp.backprop(whole), optax.sgd(0.1))
    state = train.init(whole.init(KEY, (X, Y)), None)
    look = fp.watch().look(train, state, (X, Y), 0, 0)
    sizes = [flow.update and flow.update.size for flow in look.layers.values()]
    assert sizes == [X.shape[1] + 4, None, 4 + 3]  # both factors of each, and nothing frozen
