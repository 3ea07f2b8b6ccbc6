"""Backward passes that are meant to be other than the gradient: each is what its paper says, is
judged by that and not by its forward pass, and trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from tests.cases import both, labels, normal, quickly

KEY = jax.random.key(0)
SLOW = pytest.mark.slow


def hidden(n=4):
    return fp.serial(fp.dense(n), fp.tanh())


def small():
    return fp.serial(fp.dense(4), fp.tanh(), fp.dense(3))


def image():
    return fp.serial(fp.conv(3, (3, 3)), fp.relu(), fp.flatten(), fp.dense(2))


# By name: what is swapped, and an input.
SWAPPED = {
    "feedback_alignment": (fp.feedback_alignment(small()), normal(5, 6)),
    "feedback_alignment-conv": (fp.feedback_alignment(image()), normal(2, 4, 4, 2)),
    "feedback_alignment-repeat": (
        fp.feedback_alignment(fp.repeat(fp.residual(hidden(6)), 2)),
        normal(5, 6),
    ),
    "sign_symmetric": (fp.sign_symmetric(small()), normal(5, 6)),
    "direct_feedback": (fp.direct_feedback(hidden(), hidden(5), fp.dense(3)), normal(5, 6)),
    "direct_feedback-time": (fp.direct_feedback(hidden(), fp.dense(3)), normal(2, 3, 4)),
    "direct_feedback-conv": (
        fp.direct_feedback(fp.conv(2, (3, 3)), fp.flatten(), fp.dense(3)),
        normal(2, 4, 4, 1),
    ),
    "binary": (fp.quantised(small(), "binary", inputs="binary"), normal(5, 6)),
    "ternary": (fp.quantised(small(), "ternary", inputs="int8"), normal(5, 6)),
    "int8": (fp.quantised(small(), "int8"), normal(5, 6)),
    "fp8": (fp.quantised(small(), "fp8", inputs="fp8"), normal(5, 6)),
    "ternary-lstm": (
        fp.quantised(fp.lstm(2), "ternary", inputs="binary"),
        both(normal(2, 3, 2), labels(2, classes=4)),
    ),
    "fast_sigmoid": (fp.lif(), normal(2, 6, 3)),
    "arctan": (fp.lif(0.5, surrogate="arctan"), both(normal(2, 5, 3), labels(2, classes=6))),
}


def built(name, dtype=jnp.float32):
    layer, x = SWAPPED[name]
    x = x(np.random.default_rng(0))
    draw = np.random.default_rng(1)
    params = jax.tree.map(
        # Some weights are beyond one, where a clipped estimator passes nothing.
        lambda leaf: leaf + 0.5 * draw.standard_normal(leaf.shape).astype(np.float32),
        quickly(layer.init)(KEY, x),
    )

    def to(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return layer, *jax.tree.map(to, (params, x))


QUICK = {"feedback_alignment", "fast_sigmoid"}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if name in QUICK and dtype == "float32" else [SLOW])
        for name in SWAPPED
        for dtype in ("float32", "bfloat16", "float64")
    ],
)
def test_each_is_what_it_says_it_is(name, dtype, x64):
    layer, params, x = built(name, jnp.dtype(dtype))
    report = fp.verify(layer, params, x)
    report.raise_if_wrong()
    assert any("is intended" in note for note in report.notes)


def leaf_changed(layer, change, **more):
    """`layer` with `change` of what its backward gives."""

    def backward(params, residuals, dy):
        return change(*layer.backward(params, residuals, dy))

    return dataclasses.replace(layer, backward=backward, **more)


MISTAKES = {
    "dw": (
        fp.feedback_alignment(fp.dense(3)),
        lambda d, dx: (d._replace(forward=d.forward._replace(w=1.01 * d.forward.w)), dx),
    ),
    "dx": (fp.sign_symmetric(fp.dense(3)), lambda d, dx: (d, 0.99 * dx)),
    "estimator": (fp.quantised(fp.dense(3), "int8"), lambda d, dx: (d._replace(w=d.w**2), dx)),
    "surrogate": (fp.lif(), lambda d, dx: (d, 1.01 * dx)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "dx" else [SLOW]) for n in MISTAKES]
)
def test_mistakes_in_what_is_intended_are_seen(name):
    layer, change = MISTAKES[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5)), jnp.float32)
    params = layer.init(KEY, x)
    assert not fp.verify(leaf_changed(layer, change), params, x).ok


@pytest.mark.parametrize("name", ["feedback_alignment", pytest.param("fast_sigmoid", marks=SLOW)])
def test_none_is_the_gradient_of_its_forward_pass(name):
    layer, params, x = built(name)
    bare = fp.map_layers(lambda leaf: dataclasses.replace(leaf, intended=None), layer)
    assert not fp.verify(bare, params, x).ok


# ------------------------------------------------------------------------------------- feedback


def test_feedback_alignment_by_hand():
    layer, params, x = built("feedback_alignment")
    y, kept = layer.forward(params, x)
    dparams, dx = layer.backward(params, kept, y)
    first, last, x = *jax.tree.map(np.asarray, (params.dense_0, params.dense_1)), np.asarray(x)
    h = np.tanh(x @ first.forward.w + first.forward.b)
    dh = (y @ last.feedback.w.T) * (1 - h**2)
    np.testing.assert_allclose(dparams.dense_1.forward.w, h.T @ y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dparams.dense_0.forward.w, x.T @ dh, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, dh @ first.feedback.w.T, rtol=1e-5, atol=1e-5)
    plain = small().init(KEY, x)
    started = layer.init(KEY, x)  # from the same weights
    np.testing.assert_array_equal(started.dense_0.forward.w, plain.dense_0.w)


def test_direct_feedback_by_hand():
    layer, params, x = built("direct_feedback")
    e, kept = layer.forward(params, x)
    dparams, _ = layer.backward(params, kept, e)
    first, b, second = jax.tree.map(np.asarray, tuple(params[:3]))
    x = np.asarray(x)
    h = np.tanh(x @ first.dense.w + first.dense.b)
    k = np.tanh(h @ second.dense.w + second.dense.b)
    want = x.T @ ((e @ b.frozen) * (1 - h**2)), k.T @ e
    np.testing.assert_allclose(dparams[0].dense.w, want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dparams[-1].w, want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["feedback_alignment-repeat", "direct_feedback"])
def test_training_leaves_feedback_alone_and_files_keep_it(name, tmp_path):
    layer, params, x = built(name)
    batch = x, jnp.zeros_like(jax.eval_shape(layer.forward, params, x)[0])
    step = fp.step(fp.backprop(fp.objective(layer, fp.mean_squared())), optax.sgd(0.01))
    before = jax.tree.map(np.array, params)
    after = step.update(step.init(params, None), batch)[0].params
    moved = {
        path: bool((a != b).any())
        for (path, a), b in zip(fp.by_name(after).items(), fp.by_name(before).values(), strict=True)
    }
    still = {path for path in moved if "feedback" in path}
    assert still and still == {path for path, did in moved.items() if not did}
    fp.save(tmp_path / "params", after)
    loaded = fp.load(tmp_path / "params", like=after)
    jax.tree.map(np.testing.assert_array_equal, loaded, after)
    if "repeat" in name:  # each copy has feedback of its own
        b = before.dense.feedback.w
        assert b.shape == (2, 6, 6) and abs(b[0] - b[1]).max() > 0.1


def angle(a, b):
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (a, b))
    return np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


@pytest.mark.parametrize("how", ["feedback_alignment", pytest.param("direct_feedback", marks=SLOW)])
def test_weights_come_to_align_with_their_feedback(how):
    """As Lillicrap et al. show on a linear map: what hidden weights are told of turns towards what
    the gradient tells."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((200, 20)), jnp.float32)
    batch = x, x @ jnp.asarray(rng.standard_normal((20, 10)) / 4, jnp.float32)
    few = {"bias": False, "w_init": jax.nn.initializers.normal(0.05)}
    first, last = fp.dense(15, **few), fp.dense(10, **few)
    model = {
        "feedback_alignment": lambda: fp.feedback_alignment(fp.serial(first, last)),
        "direct_feedback": lambda: fp.direct_feedback(first, last),
    }[how]()
    objective = fp.objective(model, fp.mean_squared())
    true = jax.jit(fp.backprop(fp.autodiff(objective)))
    own = jax.jit(fp.backprop(objective))
    step = fp.step(fp.backprop(objective), optax.sgd(0.3))
    state, angles, losses = step.init(objective.init(KEY, batch), None), [], []
    for i in range(301):
        if i % 300 == 0:
            got, want = (run(state.params, batch).grads[0] for run in (own, true))
            angles.append(angle(got, want))
        state, metrics = step.update(state, batch)
        losses.append(float(metrics["loss"].mean))
    assert losses[-1] < 0.1 * losses[0]
    assert angles[0] > 80 > 60 > angles[1]


@pytest.mark.parametrize("layer", [fp.lstm(3), fp.gru(3)], ids=lambda layer: layer.name)
def test_a_layer_whose_gradient_needs_its_weights_is_refused(layer):
    model = fp.serial(fp.dense(4), layer)
    with pytest.raises(ValueError, match=f"{layer.name}: a layer must need its weights for dx"):
        fp.feedback_alignment(model).init(KEY, jnp.ones((2, 3, 5)))
    chosen = fp.feedback_alignment(model, "dense").init(KEY, jnp.ones((2, 3, 5)))
    assert isinstance(chosen.dense, fp.Feedback) and not isinstance(chosen[1], fp.Feedback)


def test_attention_s_projections_are_covered_and_what_is_tied_is_left():
    model = fp.language_model(fp.gpt(7, features=8, depth=2, heads=1, longest=5), 7)
    tokens = jnp.zeros((2, 5), int)
    params = jax.eval_shape(fp.feedback_alignment(model).init, KEY, (tokens, tokens))
    paths = {path for path in fp.by_name(params) if "feedback" in path}
    assert paths == {
        f"blocks/{part}/feedback/w"
        for part in ("attention/qkv", "attention/output", "network/hidden", "network/output")
    }


# ------------------------------------------------------------------------------------ quantised

W = np.array([[0.5, -0.1], [-1.5, 0.02], [0.25, 0.0], [0.75, 3.0]], np.float32)


@pytest.mark.parametrize("to", ["binary", "ternary", "int8", "fp8"])
def test_weights_are_those_of_the_format(to):
    layer = fp.quantised(fp.dense(2, bias=False), to)
    params = fp.DenseParams(jnp.asarray(W), None)
    q, kept = layer.forward(params, jnp.eye(4))
    mean, most = np.abs(W).mean(0), np.abs(W).max(0)
    want = {
        "binary": np.where(W < 0, -1, 1) * mean,
        "ternary": np.clip(np.round(W / mean), -1, 1) * mean,
        "int8": np.round(W / most * 127) * most / 127,
        "fp8": (W / most * 448).astype(jnp.float8_e4m3fn).astype(np.float32) * most / 448,
    }[to]
    np.testing.assert_allclose(q, want, rtol=1e-6)
    few = {"binary": 2, "ternary": 3}.get(to, 255)
    assert max(len(np.unique(column)) for column in np.asarray(q).T) <= few
    passed = layer.backward(params, kept, jnp.ones((4, 2)))[0].w
    clipped = (np.abs(W) <= 1) if to in ("binary", "ternary") else np.ones_like(W)
    np.testing.assert_array_equal(passed, clipped)


@pytest.mark.parametrize("to", ["binary", "ternary", "int8", "fp8"])
def test_zeros_alone_stay_zeros(to):
    """As the mean and the largest of their sizes say, of an output's weights and of a row."""
    layer = fp.quantised(fp.dense(2, bias=False), to, inputs=to)
    weights, x = jnp.array([[0.0, 0.5], [0.0, 0.5]]), jnp.array([[0.0, 0.0], [1.0, 1.0]])
    y, _ = layer.forward(fp.DenseParams(weights, None), x)
    np.testing.assert_allclose(y, [[0, 0], [0, 1]], rtol=1e-6)


def test_a_row_of_inputs_has_a_scale_of_its_own():
    """So no example has an effect on another; and zeros stay zeros."""
    layer = fp.quantised(fp.dense(3), "int8", inputs="int8")
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    x[1] = 0
    params = layer.init(KEY, x)
    whole = layer.forward(params, jnp.asarray(x))[0]
    alone = layer.forward(params, jnp.asarray(x[2:3]))[0]
    np.testing.assert_allclose(whole[2:3], alone, rtol=1e-6)
    np.testing.assert_array_equal(whole[1], params.b)


def test_it_trains_in_bits_the_params_of_the_model_itself():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((60, 6)), jnp.float32)
    batch = x, (x[:, 0] + x[:, 1] > 0).astype(int)
    model = fp.serial(fp.dense(16), fp.tanh(), fp.layer_norm(), fp.dense(2))
    binary = fp.quantised(model, "binary", "dense_0")
    assert jax.tree.structure(binary.init(KEY, x)) == jax.tree.structure(model.init(KEY, x))
    objective = fp.objective(binary, fp.softmax_cross_entropy())
    step = fp.step(fp.backprop(objective), optax.sgd(0.3))
    state, losses = step.init(objective.init(KEY, batch), None), []
    for _ in range(60):
        state, metrics = step.update(state, batch)
        losses.append(float(metrics["loss"].mean))
    assert losses[-1] < 0.5 * losses[0]


# -------------------------------------------------------------------------------------- spiking


@pytest.mark.parametrize("surrogate", ["fast_sigmoid", "arctan"])
def test_spikes_and_their_surrogate_by_hand(surrogate):
    k, decay, threshold = 5.0, 0.8, 1.5
    layer = fp.lif(decay, threshold, surrogate=surrogate, steepness=k)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((2, 7, 3)).astype(np.float32) + 0.5 for _ in range(2))
    y, kept = layer.forward((), jnp.asarray(x))
    dx = layer.backward((), kept, jnp.asarray(dy))[1]
    v, s, u = np.zeros((2, 3)), np.zeros((2, 3)), []
    for t in range(7):
        v = decay * v + x[:, t] - threshold * s
        s = (v > threshold).astype(float)
        u.append(v - threshold)
        np.testing.assert_array_equal(y[:, t], s)
    assert 0.1 < np.mean(y) < 0.9
    slope = {
        "fast_sigmoid": lambda u: 1 / (1 + k * abs(u)) ** 2,
        "arctan": lambda u: 1 / (1 + (np.pi * k * u / 2) ** 2),
    }[surrogate]
    after = np.zeros((2, 3))
    for t in reversed(range(7)):
        after = slope(u[t]) * dy[:, t] + decay * after
        np.testing.assert_allclose(dx[:, t], after, rtol=1e-4, atol=1e-6)
    first, state = layer.decoding.prefill((), jnp.asarray(x[:, :4]), 7)
    np.testing.assert_array_equal(first, y[:, :4])
    for t in range(4, 7):
        one, state = layer.decoding.advance((), state, jnp.asarray(x[:, t : t + 1]))
        np.testing.assert_array_equal(one, y[:, t : t + 1])


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("use", "error", "sentence"),
    [
        (lambda: fp.direct_feedback(fp.dense(3)), ValueError, "at least two layers, got 1"),
        (
            lambda: fp.direct_feedback(fp.parallel(fp.dense(3)), fp.dense(2)).init(
                KEY, jnp.ones((4, 5))
            ),
            TypeError,
            "feedback: x must be an array, got tuple",
        ),
        (
            lambda: fp.quantised(small(), "int4"),
            ValueError,
            "to must be one of binary, ternary, int8, fp8, got 'int4'",
        ),
        (
            lambda: fp.quantised(small(), "int8", inputs=8),
            TypeError,
            "inputs must be one of binary, ternary, int8, fp8, got",
        ),
        (
            lambda: fp.quantised(small(), "int8", "dens"),
            ValueError,
            "'dens' must match a name, the nearest are dense_1, dense_0",
        ),
        (
            lambda: fp.sign_symmetric(fp.feedback_alignment(fp.dense(2))).init(KEY, jnp.ones(3)),
            ValueError,
            "dense must get its way back once, got one that has its own",
        ),
        (lambda: fp.lif(1.5), ValueError, "decay must be from 0 to 1, got 1.5"),
        (lambda: fp.lif(surrogate="relu"), ValueError, "one of fast_sigmoid, arctan, got 'relu'"),
        (
            lambda: fp.verify(
                fp.layer(
                    forward=lambda p, x: (x, ()),
                    backward=lambda p, r, dy: ((), dy),
                    intended=lambda p, x: x[1:],
                ),
                (),
                jnp.ones(3),
            ),
            ValueError,
            "intended must give float32\\[3\\], as the function does, got float32\\[2\\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(use, error, sentence):
    with pytest.raises(error, match=sentence):
        use()


@pytest.mark.parametrize("layer", [fp.lif(), fp.lstm(2)], ids=str)
def test_what_is_no_array_over_time_is_refused(layer):
    with pytest.raises(TypeError, match="x must be an array, got NoneType"):
        layer.init(jax.random.key(0), None)
