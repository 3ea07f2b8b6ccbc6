"""What `verify` says: of right rules, of wrong ones, which part, which leaf, and in what way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl

import funprop as fp
from funprop.verify.judging import examine, large
from funprop.verify.truth import instruments

pytestmark = pytest.mark.usefixtures("any_ranks")


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def rule(forward, backward):
    """`forward` with a custom rule: `backward(args, y, dy)`."""
    function = jax.custom_vjp(forward)

    def fwd(*args):
        y = forward(*args)
        return y, (args, y)

    function.defvjp(fwd, lambda kept, dy: tuple(backward(*kept, dy)))
    return function


# ------------------------------------------------------------------------------------- stories


def dense(x, w, b):
    return x @ w + b


def dense_backward(args, y, dy):
    x, w, _ = args
    return dy @ w.T, x.T @ dy, dy.sum(0)


def changed(place, change):
    def backward(args, y, dy):
        grads = list(dense_backward(args, y, dy))
        grads[place] = change(grads[place])
        return grads

    return backward


def centred(x):
    return x - x.mean(-1, keepdims=True)


def layer_norm(x, gamma, beta):
    c = centred(x)
    return c * jax.lax.rsqrt((c * c).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def layer_norm_backward(args, y, dy, mean=1.0, projection=1.0):
    x, gamma, _ = args
    c = centred(x)
    inverse = jax.lax.rsqrt((c * c).mean(-1, keepdims=True) + 1e-5)
    n, g = c * inverse, dy * gamma
    inner = n * (g * n).mean(-1, keepdims=True)
    dx = inverse * (g - mean * g.mean(-1, keepdims=True) - projection * inner)
    return dx, (dy * n).sum(0), dy.sum(0)


def embedding(table, ids):
    return table[ids]


def softmax(x):
    return jax.nn.softmax(x)


def two_layers(x, w, v):
    return jnp.tanh(x @ w) @ v


def two_layers_backward(args, y, dy, slope):
    x, w, v = args
    z = x @ w
    dz = dy @ v.T * slope(z, jnp.tanh(z))
    return dz @ w.T, x.T @ dz, jnp.tanh(z).T @ dy


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def cross_entropy_backward(args, y, dy, axis=-1, rows=slice(None), roll=0):
    logits, labels = args
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    wrong = jax.nn.softmax(logits, axis) - jnp.roll(onehot, roll, 1)
    return dy * jnp.zeros_like(logits).at[rows].set(wrong[rows]) / len(labels), None


def network_loss(w, x, labels):
    return cross_entropy(jnp.tanh(x @ w), labels)


def network_loss_backward(args, y, dy, rows=slice(None)):
    w, x, labels = args
    h = jnp.tanh(x @ w)
    slope = 1 - h * h
    some, _ = cross_entropy_backward((h, labels), y, dy, rows=rows)
    every, _ = cross_entropy_backward((h, labels), y, dy)
    return x.T @ (some * slope), (every * slope) @ w.T, None


def chain(a, b, c):
    return a @ b @ c


def tanh_backward(slope):
    return lambda args, y, dy: (dy * slope(args[0], y),)


def clipped(x):
    return jnp.clip(x, -0.5, 0.5)


def recurrence(x, w):
    def step(h, x):
        h = jnp.tanh(x + h @ w)
        return h, h

    return jax.lax.scan(step, jnp.zeros_like(x[0]), x)[1]


def recurrence_backward(args, y, dy, through_time=1.0, stale=False):
    w = args[1]
    before = y if stale else jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])

    def step(carry, inputs):
        dh, dw = carry
        h, h_before, dy = inputs
        dz = (dh + dy) * (1 - h * h)
        return (through_time * dz @ w.T, dw + jnp.outer(h_before, dz)), dz

    start = jnp.zeros_like(y[0]), jnp.zeros_like(w)
    (_, dw), dx = jax.lax.scan(step, start, (y, before, dy), reverse=True)
    return dx, dw


def gated(x):
    a, b = jnp.split(x, 2, -1)
    return a * jax.nn.sigmoid(b)


def gated_backward(args, y, dy):
    a, b = jnp.split(args[0], 2, -1)
    s = jax.nn.sigmoid(b)
    return (jnp.concatenate([dy * a * s * (1 - s), dy * s], -1),)


def rotated(x, cos, sin):
    return x * cos + jnp.roll(x, 1, 1) * sin


def outer(x, z):
    return x[:, :, None] * z[:, None]


def gained(x, gain):
    return gain * jnp.tanh(x)


DENSE = (dense, (normal(6, 5), normal(5, 4, seed=1), normal(4, seed=2)))
NORM = (layer_norm, (normal(4, 6), 1 + normal(6, seed=1), normal(6, seed=2)))
NET = (two_layers, (normal(4, 5), normal(5, 6, seed=1), normal(6, 3, seed=2)))
TABLE = (embedding, (normal(7, 5), jnp.array([[1, 0, 3], [3, 3, 6]])))
SQUARE = (lambda x, w: x @ w, (normal(4, 4), normal(4, 4, seed=1)))
RELU = (jax.nn.relu, (normal(5, 6),))
SOFTMAX = (softmax, (normal(4, 6),))
LABELS = (cross_entropy, (normal(7, 5), jnp.array([0, 2, 4, 1, 1, 3, 0])))
CHAIN = (chain, tuple(normal(4, 4, seed=i) for i in range(3)))
TANH = (jnp.tanh, (normal(5, 6),))
SCAN = (recurrence, (normal(5, 4), normal(4, 4, seed=1)))
BF16 = lambda g: g.astype(jnp.bfloat16).astype(g.dtype)

WRONG = {
    "a mean for a sum": (*DENSE, changed(2, lambda g: g / 6), {"b"}, "factor", "1/6 (6 is"),
    "one percent": (*DENSE, changed(2, lambda g: 1.01 * g), {"b"}, "factor", "1.01 times"),
    "sign": (*DENSE, changed(0, lambda g: -g), {"x"}, "sign", "the sign is turned"),
    "zero": (*DENSE, changed(2, lambda g: 0 * g), {"b"}, "zero", "zero, and should not be"),
    "digits lost": (*DENSE, changed(1, BF16), {"w"}, "precision", "16 bits"),
    "last column": (
        *DENSE, changed(1, lambda g: g.at[:, -1].set(0)), {"w"}, "region", "last place along axis 1",
    ),
    "two columns": (
        *DENSE, changed(1, lambda g: g.at[:, 1:3].set(0)), {"w"}, "region", "places 1, 2 along",
    ),
    "shifted": (*DENSE, changed(1, lambda g: jnp.roll(g, 1, 0)), {"w"}, "shifted", "along axis 0"),
    "not linear": (*DENSE, changed(0, lambda g: jnp.clip(g, -1, 1)), {"x"}, "not linear", "linear"),
    "transposed": (
        *SQUARE, lambda a, y, dy: (dy @ a[1], a[0].T @ dy), {"x"}, "transposed", "transposed",
    ),
    "swapped": (
        *SQUARE, lambda a, y, dy: (a[0].T @ dy, dy @ a[1].T), {"x", "w"}, "swapped", "gradient of",
    ),
    "negatives": (*RELU, lambda a, y, dy: (dy,), {"x"}, "region", "where x is negative"),
    "overwritten": (
        *TABLE,
        lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].set(dy), None),
        {"table"}, "overwritten", "more than once",
    ),
    "missing term": (
        *NORM, functools.partial(layer_norm_backward, mean=0), {"x"}, "missing term", "is missing",
    ),
    "a fifth of a term": (
        *NORM, functools.partial(layer_norm_backward, projection=0.2),
        {"x"}, "factor of a term", "0.2 times",
    ),
    "sign of a term": (
        *NORM, functools.partial(layer_norm_backward, projection=-1.0),
        {"x"}, "sign of a term", "is turned",
    ),
    "twice": (
        *NORM, functools.partial(layer_norm_backward, projection=2.0),
        {"x"}, "counted twice", "counted twice",
    ),
    "gamma from the output": (
        *NORM, lambda a, y, dy: (layer_norm_backward(a, y, dy)[0], (dy * y).sum(0), dy.sum(0)),
        {"gamma"}, "stale", "`mul` at",
    ),
    "slope at the pre-activation": (
        *NET, functools.partial(two_layers_backward, slope=lambda z, h: 1 - jnp.tanh(h) ** 2),
        {"x", "w"}, "stale", "`tanh` at",
    ),
    "slope forgotten": (
        *NET, functools.partial(two_layers_backward, slope=lambda z, h: 1.0),
        {"x", "w"}, "missing factor", "the derivative of `tanh`",
    ),
    "over the batch": (
        *SOFTMAX, lambda a, y, dy: (y * (dy - (y * dy).sum(0)),), {"x"}, "wrong axis", "axis 0",
    ),
    "over everything": (
        *SOFTMAX, lambda a, y, dy: (y * (dy - (y * dy).sum()),), {"x"}, "leak", "leak",
    ),
    "softmax over the batch": (
        *LABELS, functools.partial(cross_entropy_backward, axis=0), {"logits"}, "wrong axis", "axis 0",
    ),
    "labels off by one": (
        *LABELS, functools.partial(cross_entropy_backward, roll=1), {"logits"}, "shifted", "axis 1",
    ),
    "examples left out of a loss": (
        network_loss, (normal(3, 5), normal(7, 3, seed=1), LABELS[1][1]),
        functools.partial(network_loss_backward, rows=slice(1, None)),
        {"w"}, "missing term", "first place along axis 0",
    ),
    "factors out of order": (
        *CHAIN, lambda a, y, dy: (dy @ a[1].T @ a[2].T, a[0].T @ dy @ a[2].T, (a[0] @ a[1]).T @ dy),
        {"a"}, "swapped", "`dot` at",
    ),
    "a factor not transposed": (
        *CHAIN, lambda a, y, dy: (dy @ a[2].T @ a[1], a[0].T @ dy @ a[2].T, (a[0] @ a[1]).T @ dy),
        {"a"}, "transposed", "b transposed",
    ),
    "only the upper bound": (
        clipped, RELU[1], lambda a, y, dy: (jnp.where(a[0] < 0.5, dy, 0),), {"x"}, "region", "not stopped by",
    ),
    "slope not squared": (*TANH, tanh_backward(lambda x, y: 1 - y), {"x"}, "factor", "1 - y, and"),
    "slope of the input": (
        *TANH, tanh_backward(lambda x, y: 1 - x * x), {"x"}, "stale", "1 - x^2, and should be 1 - y^2",
    ),
    "slope with a plus": (*TANH, tanh_backward(lambda x, y: 1 + y * y), {"x"}, "sign of a term", "1 + y^2"),
    "not normalised": (
        lambda x: jax.nn.logsumexp(x, -1), SOFTMAX[1], lambda a, y, dy: (dy[:, None] * jnp.exp(a[0]),),
        {"x"}, "factor", "once too often",
    ),
    "a factor of the product rule": (
        lambda x: jnp.sin(x) * jnp.exp(-x), RELU[1],
        lambda a, y, dy: (dy * (jnp.cos(a[0]) - y),), {"x"}, "factor of a term", "lacks the factor",
    ),
    "to the smallest": (
        lambda x: x.max(-1), SOFTMAX[1],
        lambda a, y, dy: (jnp.where(a[0] == a[0].min(-1, keepdims=True), dy[:, None], 0),),
        {"x"}, "stale", "the opposite",
    ),
    "only the diagonal": (
        *SOFTMAX, lambda a, y, dy: (dy * y * (1 - y),), {"x"}, "missing term", "in other places",
    ),
    "not through time": (
        *SCAN, functools.partial(recurrence_backward, through_time=0.0),
        {"x", "w"}, "missing term", "is missing",
    ),
    "the state after a step": (
        *SCAN, functools.partial(recurrence_backward, stale=True), {"w"}, "stale", "`tanh` at",
    ),
    "halves": (gated, (normal(4, 6),), gated_backward, {"x"}, "swapped", "halves along axis 1"),
    "cosines and sines": (
        rotated, tuple(normal(4, 5, seed=i) for i in range(3)),
        lambda a, y, dy: (
            dy * a[2] + jnp.roll(dy * a[1], -1, 1), dy * a[0], dy * jnp.roll(a[0], 1, 1)
        ),
        {"x"}, "swapped", "at that of",
    ),
    "summed over the batch": (
        outer, (normal(4, 5), normal(4, 3, seed=1)),
        lambda a, y, dy: (dy @ a[1].sum(0), jnp.einsum("bij,bi->bj", dy, a[0])),
        {"x"}, "leak", "summed over axis 0",
    ),
    "a gain forgotten": (
        gained, (normal(4, 5), normal(5, seed=1)),
        lambda a, y, dy: (dy * (1 - jnp.tanh(a[0]) ** 2), (dy * jnp.tanh(a[0])).sum(0)),
        {"x"}, "factor", "gain",
    ),
    "only what skips": (
        lambda x: x + jnp.tanh(x) ** 2, RELU[1], lambda a, y, dy: (dy,), {"x"}, "missing term", "tanh",
    ),
    "cotangent ignored": (
        lambda x: jnp.tanh(x), (normal(3, 4),), lambda a, y, dy: (1 - y * y,),
        {"x"}, "ignores the cotangent", "whatever the cotangent",
    ),
}  # fmt: skip


# Those that take long, each with a quicker one of its story.
SLOW = {
    *("examples left out of a loss", "not normalised", "softmax over the batch", "over everything"),
    *("labels off by one", "gamma from the output", "only the diagonal"),
    *("slope at the pre-activation", "not through time", "cosines and sines"),
    *("one percent", "two columns", "a fifth of a term", "sign of a term", "factors out of order"),
    *("only the upper bound", "a factor not transposed", "the state after a step"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in WRONG],
)
def test_a_wrong_rule_is_found_named_and_explained(name):
    forward, args, backward, leaves, story, words = WRONG[name]
    report = fp.verify(rule(forward, backward), *args)
    assert {finding.path for finding in report.findings} == leaves
    assert {finding.story for finding in report.findings} == {story}, str(report)
    assert all(words in finding.problem for finding in report.findings), str(report)
    (example,) = report.examples or [None]
    assert example is None or not np.allclose(example.got, example.expected)


RIGHT = {
    "dense": (dense, dense_backward, DENSE[1]),
    "layer norm": (layer_norm, layer_norm_backward, NORM[1]),
    "embedding": (
        embedding,
        lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].add(dy), None),
        TABLE[1],
    ),
}


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        pytest.param(
            *(dtype, scale),
            marks=[] if dtype == jnp.float32 or scale == 1 else pytest.mark.slow,
            id=f"{dtype.__name__}-{scale}",
        )
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16)
        for scale in (1e-4, 1, 1e4)
    ],
)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule_is_right_in_every_precision_and_scale(name, dtype, scale):
    forward, backward, (first, *rest) = RIGHT[name]
    with jax.enable_x64(dtype is jnp.float64):
        args = [
            jnp.asarray(np.asarray(a), dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
            for a in (scale * first, *rest)
        ]
        report = fp.verify(rule(forward, backward), *args)
    assert report.ok, str(report)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16))
def test_right_and_wrong_at_shapes_that_hypothesis_draws(rows, inputs, outputs, seed):
    args = normal(rows, inputs, seed=seed), normal(inputs, outputs, seed=seed + 1), normal(outputs)
    assert fp.verify(rule(dense, dense_backward), *args).ok
    wrong = fp.verify(rule(dense, changed(1, lambda g: 1.01 * g)), *args)
    assert {finding.path for finding in wrong.findings} == {"w"}


@pytest.mark.parametrize("at_zero", [0.0, 0.3, 1.0])
def test_any_slope_between_the_one_sided_ones_is_right_at_a_kink(at_zero):
    def backward(args, y, dy):
        (x,) = args
        return (dy * jnp.where(x == 0, at_zero, (x > 0).astype(x.dtype)),)

    report = fp.verify(rule(lambda x: jnp.maximum(x, 0), backward), jnp.round(normal(5, 6)))
    assert report.ok, str(report)
    assert at_zero == 0.5 or "kink" in str(report)


def test_a_slope_outside_the_one_sided_ones_is_wrong_at_a_kink():
    def backward(args, y, dy):
        (x,) = args
        return (dy * jnp.where(x == 0, 2.0, (x > 0).astype(x.dtype)),)

    report = fp.verify(rule(lambda x: jnp.maximum(x, 0), backward), jnp.round(normal(5, 6)))
    assert not report.ok


# ----------------------------------------------------------------------------- beyond the input


def mean_square(x):
    return (x * x).mean(0)


def product(x):
    return x.prod(-1)


def tanh(x):
    return jnp.tanh(x)


def masked_sine(x, keep):
    return jnp.sin(jnp.where(keep, x, 0.0))


ELSEWHERE = {
    "x of zeros": (
        product, lambda a, y, dy: (dy[:, None] * y[:, None] / a[0],), (normal(3, 4),),
    ),
    "repeated indices": (
        embedding,
        lambda a, y, dy: (jnp.zeros_like(a[0]).at[a[1]].set(dy), None),
        (normal(7, 5), jnp.array([1, 4, 2])),
    ),
    "a batch of one": (
        mean_square,
        lambda a, y, dy: (2 * a[0] * dy / max(a[0].shape[0], 2),),
        (normal(6, 4),),
    ),
    "axes of different sizes": (
        mean_square, lambda a, y, dy: (2 * a[0] * dy / (a[0].shape[0] if a[0].shape[0] == 1 else a[0].shape[1]),),
        (normal(4, 4),),
    ),
    "large x": (
        tanh, lambda a, y, dy: (dy * (1 - y * y) + dy * (jnp.abs(a[0]) > 40).astype(dy.dtype),),
        (normal(4, 4),),
    ),
    "NaN where forward does not look at x": (
        masked_sine,
        lambda a, y, dy: (dy * jnp.cos(a[0]) * jnp.where(a[1], 1, 0 * a[0]), None),
        (normal(4, 3), jnp.array([[1, 0, 1]] * 4, bool)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("point", ELSEWHERE)
def test_a_mistake_that_the_given_inputs_hide_is_found_at_others(point):
    forward, backward, args = ELSEWHERE[point]
    (finding,) = fp.verify(rule(forward, backward), *args).findings
    assert finding.point == point
    assert finding.problem.endswith(f"with {point}")


def test_a_rule_for_one_shape_only_is_not_wrong():
    backward = lambda a, y, dy: (2 * a[0] * dy / 6 * jnp.ones((6, 4), dy.dtype),)
    report = fp.verify(rule(mean_square, backward), normal(6, 4))
    assert report.ok
    assert "does not take a batch of one" in " ".join(report.notes)


def test_the_smallest_example_is_small():
    wrong = rule(dense, changed(1, lambda g: 1.5 * g))
    (example,) = fp.verify(wrong, *DENSE[1]).examples
    assert [v.size for v in example.inputs.values()] == [1, 1, 1]
    assert example.got.item() == 1.5 * example.expected.item() != 0


def test_promises_of_the_given_inputs_are_kept():
    """The right backward of these is right only for cosines with sines, for sorted numbers."""
    angles = np.random.default_rng(0).uniform(0, 3, (5, 2))
    angles = np.concatenate([angles, angles], -1)

    def rotate(x, cos, sin):
        a, b = jnp.split(x, 2, -1)
        return x * cos + jnp.concatenate([-b, a], -1) * sin

    def backward(args, y, dy):
        x, cos, sin = args
        a, b = jnp.split(x, 2, -1)
        return rotate(dy, cos, -sin), dy * x, dy * jnp.concatenate([-b, a], -1)

    cos, sin = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
    report = fp.verify(rule(rotate, backward), normal(5, 4), cos, sin)
    assert report.ok, str(report)


# -------------------------------------------------------------------------- beyond the numbers


def test_a_leaf_of_another_shape_or_dtype_or_structure():
    narrow = fp.layer(forward=lambda p, x: (x, ()), backward=lambda p, r, dy: ((), dy[0]))
    (finding,) = fp.verify(narrow, (), normal(3, 4)).findings
    assert finding.problem == "backward must give float32[3,4], got float32[4]"
    missing = fp.layer(forward=lambda p, x: (x, ()), backward=lambda p, r, dy: ((), (dy, dy)))
    (finding,) = fp.verify(missing, (), normal(3, 4)).findings
    assert "backward must give (dparams, dx) like" in finding.problem


@pytest.mark.parametrize(
    ("forward", "backward", "told"),
    [
        (None, lambda _, dy: (jnp.zeros(5),), "gradient [0] is float32[5], and its input float32[3]"),
        (None, lambda _, dy: dy, "it gives *, and the arguments are (*,)"),
        (None, lambda _, dy: (dy, None), "it gives (*, None), and the arguments are (*,)"),
        (lambda x: x * 2, lambda _, dy: (dy,), "the rule's forward pass must give a pair"),
        (lambda x: (x[:2], None), lambda _, dy: (dy,), "gives float32[2], and the function float32[3]"),
    ],
    ids=["shape", "no tuple", "too many", "no pair", "another output"],
)  # fmt: skip
def test_what_jax_says_of_a_rule_that_does_not_fit_is_said_in_short(forward, backward, told):
    twice = jax.custom_vjp(lambda x: x * 2)
    twice.defvjp(forward or (lambda x: (x * 2, None)), backward)
    (finding,) = fp.verify(twice, jnp.ones(3)).findings
    assert finding.problem.startswith("backward fails: ") and told in finding.problem
    assert "VJP" not in finding.problem


def test_a_function_without_its_rule_is_refused():
    for judge in (fp.verify, fp.verify_rules):
        with pytest.raises(ValueError, match="it has no rule yet: its defvjp was not called"):
            judge(jax.custom_vjp(lambda x: x * 2), jnp.ones(3))


def test_a_rule_that_cannot_run_under_vmap():
    def backward(args, y, dy):
        (x,) = args
        scale = jax.pure_callback(lambda v: np.float32(2) * v, x, x)  # takes no vmap
        return (scale * dy,)

    (finding,) = fp.verify(rule(lambda x: x * x, backward), normal(3)).findings
    assert finding.story == "fails under vmap"


def test_a_rule_whose_forward_gives_something_else():
    function = jax.custom_vjp(lambda x: x * x)
    function.defvjp(lambda x: (x * x + 1, x), lambda x, dy: (2 * x * dy,))
    (finding,) = fp.verify(function, normal(3, 4)).findings
    assert finding.story == "other output"


def test_nothing_for_a_zero_cotangent():
    wrong = rule(lambda x: jnp.sin(x), lambda a, y, dy: (dy * jnp.cos(a[0]) + 1e-3,))
    assert not fp.verify(wrong, normal(4)).ok


# ------------------------------------------------------------------------------- other targets


def squared(factor=2.0, name="square"):
    backward = lambda params, x, dy: ((), factor * x * dy)
    return fp.layer(forward=lambda params, x: (x * x, x), backward=backward, name=name)


def test_the_deepest_wrong_part_is_blamed():
    inner = fp.serial(fp.dense(4), fp.residual(fp.serial(fp.tanh(), squared(1.0))))
    model = fp.serial(fp.dense(4), fp.repeat(inner, 2), fp.dense(1))
    x = normal(3, 5)
    report = fp.verify(model, model.init(jax.random.key(0), x), x)
    assert {f.path for f in report.findings} == {f"repeat[{i}]/residual/square/dx" for i in (0, 1)}
    assert {f.story for f in report.findings} == {"factor"}


def test_a_wrong_combinator_is_blamed_when_its_parts_are_right():
    def twice(layer):
        """Two calls of one layer, whose gradients are overwritten, not added."""

        def forward(params, x, key=None):
            h, first = layer.forward(params, x, key)
            y, second = layer.forward(params, h, key)
            return y, (first, second)

        def backward(params, residuals, dy):
            _, dh = layer.backward(params, residuals[1], dy)
            return layer.backward(params, residuals[0], dh)

        return fp.Layer(layer.init, forward, backward, "twice", (layer,), twice)

    part = fp.named("part", fp.serial(fp.dense(4), fp.tanh()))
    model = fp.serial(twice(part), fp.dense(2))
    x = normal(3, 4)
    report = fp.verify(model, model.init(jax.random.key(0), x), x)
    assert {f.path for f in report.findings} == {"part (twice): dense/w", "part (twice): dense/b"}
    assert {f.story for f in report.findings} == {"overwritten"}


def test_a_hand_written_gradient_of_a_loss():
    def loss(params, batch):
        x, y = batch
        return jnp.square(jnp.tanh(x @ params["w"]) - y).sum()

    def gradient(params, batch, factor=1.0):
        x, y = batch
        h = jnp.tanh(x @ params["w"])
        return {"w": factor * x.T @ (2 * (h - y) * (1 - h * h))}

    params, batch = {"w": normal(5, 3)}, (normal(6, 5, seed=1), normal(6, 3, seed=2))
    assert fp.verify(gradient, params, batch, reference=loss).ok
    wrong = functools.partial(gradient, factor=1 / 6)
    (finding,) = fp.verify(wrong, params, batch, reference=loss).findings
    assert (finding.path, finding.story) == ("w", "factor")
    model = fp.serial(fp.dense(4), fp.tanh(), fp.dense(3))
    objective = fp.objective(model, fp.mean_squared())
    whole = objective.init(jax.random.key(0), batch)
    total = lambda params, batch: objective.forward(params, batch)[0]
    assert fp.verify(fp.backprop(objective), whole, batch, reference=total).ok


def test_a_function_against_another_that_computes_the_same():
    fast = rule(lambda x: x / (1 + jnp.exp(-x)), lambda a, y, dy: (dy * jax.nn.sigmoid(a[0]),))
    assert not fp.verify(fast, normal(3, 4), reference=jax.nn.silu).ok


def opaque(scale):
    """A forward pass in NumPy, that nothing differentiates."""

    def forward(x, w):
        spec = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
        run = lambda x, w: np.tanh(np.asarray(x) @ np.asarray(w))
        return jax.pure_callback(run, spec, x, w, vmap_method="sequential")

    def backward(args, y, dy):
        x, w = args
        dz = dy * (1 - y * y)
        return dz @ w.T, scale * x.T @ dz

    return rule(forward, backward)


def test_what_goes_through_bits_is_judged_by_differences():
    def mantissa(factor):
        def backward(args, y, dy):
            return (dy * factor * jnp.ldexp(1.0, -jnp.frexp(args[0])[1]),)

        return rule(lambda x: jnp.frexp(x)[0], backward)

    x = jnp.asarray([0.3, 1.7, 5.0])
    assert fp.verify(mantissa(1.0), x).ok
    (finding,) = fp.verify(mantissa(1.01), x).findings
    assert finding.story == "factor"


def test_an_opaque_forward_is_judged_by_differences():
    args = normal(4, 5), normal(5, 3)
    report = fp.verify(opaque(1.0), *args)
    assert report.ok, str(report)
    assert "judged by differences" in " ".join(report.notes)
    (finding,) = fp.verify(opaque(1.01), *args).findings
    assert (finding.path, finding.story) == ("w", "factor")


def test_a_pallas_kernel_is_judged():
    def kernel(x_ref, o_ref):
        o_ref[...] = jnp.sin(x_ref[...]) * x_ref[...]

    def forward(x):
        spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=spec, interpret=True)(x)

    right = rule(forward, lambda a, y, dy: (dy * (jnp.cos(a[0]) * a[0] + jnp.sin(a[0])),))
    wrong = rule(forward, lambda a, y, dy: (dy * jnp.cos(a[0]) * a[0],))
    assert fp.verify(right, normal(4, 5)).ok
    assert not fp.verify(wrong, normal(4, 5)).ok


def test_one_percent_in_one_small_leaf_of_a_large_tree():
    def network(params, x):
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return x

    def backward(args, y, dy, factor=1.0):
        params, x = args
        inputs = [x]
        for w, b in params:
            inputs.append(jnp.tanh(inputs[-1] @ w + b))
        grads = []
        for i in reversed(range(len(params))):
            dz = dy * (1 - inputs[i + 1] ** 2)
            scale = factor if i == 3 else 1.0
            grads.append((inputs[i].T @ dz, scale * dz.sum(0)))
            dy = dz @ params[i][0].T
        return grads[::-1], dy

    params = [(normal(32, 32, seed=i) / 6, normal(32, seed=9 + i)) for i in range(6)]
    assert fp.verify(rule(network, backward), params, normal(8, 32)).ok
    wrong = rule(network, functools.partial(backward, factor=1.01))
    (finding,) = fp.verify(wrong, params, normal(8, 32)).findings
    assert (finding.path, finding.story) == ("params/3/1", "factor")


@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, *(pytest.param(d, marks=pytest.mark.slow) for d in (jnp.float64, jnp.bfloat16))],
)
@pytest.mark.parametrize("name", RIGHT)
def test_of_a_large_part_only_a_few_numbers_are_looked_at(name, dtype, monkeypatch):
    monkeypatch.setattr(instruments, "MANY", 0)
    monkeypatch.setattr(examine, "_measured", None)  # the examination element by element
    forward, backward, args = RIGHT[name]
    with jax.enable_x64(dtype is jnp.float64):
        args = [a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in args]
        report = fp.verify(rule(forward, backward), *args)
    assert report.ok, str(report)
    assert all(check.error <= check.allowed < 10 for check in report.checks)


@pytest.mark.parametrize(
    "name",
    ["sign", "one percent", "zero", "shifted", "digits lost", "not linear", "swapped"],
)
def test_what_is_wrong_in_a_large_part_is_explained_as_in_a_small_one(name, monkeypatch):
    monkeypatch.setattr(instruments, "MANY", 0)
    monkeypatch.setattr(large, "_programs", None)  # neither of the closer looks
    monkeypatch.setattr(examine, "_measured", None)
    forward, args, backward, leaves, story, _ = WRONG[name]
    report = fp.verify(rule(forward, backward), *args)
    assert {(f.path, f.story) for f in report.findings} == {(path, story) for path in leaves}


def scaled(x, scale):
    return jnp.tanh(x) * scale


@pytest.mark.parametrize(
    ("backward", "story"),
    [
        (lambda x, s, dy: (dy * s * (1 - jnp.tanh(x) ** 2), (dy * jnp.tanh(x)).sum(0)), None),
        (lambda x, s, dy: (dy * s * (1 - jnp.tanh(x) ** 2), 1.001 * (dy * jnp.tanh(x)).sum(0)), "factor"),
        # Of a scale of ones, as a norm's is at first, nothing is seen where it was given.
        (lambda x, s, dy: (dy * (1 - jnp.tanh(x) ** 2), (dy * jnp.tanh(x)).sum(0)), "missing factor"),
        (lambda x, s, dy: (dy * s * (1 - jnp.tanh(x) ** 2), (dy * jnp.tanh(x)).sum(0) + jnp.where(x.size > 99, jnp.nan, 0.0)), "NaN"),
        (lambda x, s, dy: (dy * s * (1 - jnp.tanh(x) ** 2), jnp.where(dy == 0, 1.0, dy * jnp.tanh(x)).sum(0)), "not linear"),
    ],
    ids=["right", "a thousandth", "at ones", "NaN where large", "not linear"],
)  # fmt: skip
def test_a_large_part_is_judged_where_it_is_and_at_a_corner(backward, story, monkeypatch):
    monkeypatch.setattr(instruments, "MANY", 99)
    if story is None:
        monkeypatch.setattr(large, "_programs", None)  # neither of the closer looks
        monkeypatch.setattr(examine, "_measured", None)
    function = rule(scaled, lambda a, y, dy: backward(*a, dy))
    report = fp.verify(function, normal(24, 32), jnp.ones(32))
    assert bool(report.findings) == bool(story), str(report)
    if story in ("factor", "NaN", "not linear"):
        assert {f.story for f in report.findings} == {story}


def test_a_large_gradient_of_a_loss_is_judged_so_too(monkeypatch):
    monkeypatch.setattr(instruments, "MANY", 99)
    monkeypatch.setattr(large, "_programs", None)
    monkeypatch.setattr(examine, "_measured", None)

    def loss(w, batch):
        x, label = batch
        return jnp.sum(jax.nn.logsumexp(x @ w, -1) - (x @ w)[jnp.arange(len(x)), label])

    def grad(w, batch):
        x, label = batch
        return x.T @ (jax.nn.softmax(x @ w) - jax.nn.one_hot(label, w.shape[1]))

    batch = normal(24, 20), jnp.arange(24) % 32
    assert fp.verify(grad, normal(20, 32, seed=1), batch, reference=loss).ok


def test_laws_hold_for_large_parts_too(monkeypatch):
    monkeypatch.setattr(instruments, "MANY", 0)
    nothing = rule(jnp.sin, lambda a, y, dy: (jnp.where(dy == 0, 1.0, dy * jnp.cos(a[0])),))
    (finding,) = fp.verify(nothing, normal(4, 5)).findings
    assert finding.story == "not linear"


# ------------------------------------------------------------------------------- what is shown


def test_gradients_so_small_that_their_squares_vanish(x64):
    def layer(factor):
        return fp.layer(
            forward=lambda params, x: (1e-90 * (1e-90 * x), ()),
            backward=lambda params, _, dy: ((), factor * (1e-90 * (1e-90 * dy))),
        )

    x = normal(3, dtype=jnp.float64)
    assert fp.verify(layer(1 + 2e-16), (), x).ok
    assert not fp.verify(layer(1.001), (), x).ok


def test_the_table_and_the_assertion():
    wrong = rule(dense, changed(2, lambda g: g / 6))
    report = fp.verify(wrong, *DENSE[1])
    lines = report.plain().splitlines()
    assert lines[0].split() == ["gradient", "of", "error", "allowed"]
    assert lines[1].startswith("b ")  # what is wrong comes first
    assert lines[2].startswith("x ") and lines[2].endswith("ok")
    unit = "error and allowed: of each gradient's largest element"
    assert lines[4] == f"1 of 3 gradients wrong ({unit})"
    assert lines[5] == "usual causes and remedies: docs/stories.md#factor"
    assert repr(report) == "Report(1 of 3 wrong: b)"
    assert str(report) == report.plain()  # no terminal here
    finding = report.findings[0]
    assert finding.error > finding.allowed
    assert len(finding.worst) == 1
    with pytest.raises(AssertionError, match="1 gradient is wrong\ngradient of"):
        report.raise_if_wrong()


def test_the_same_seed_gives_the_same_report():
    wrong = rule(dense, changed(1, lambda g: 1.01 * g))
    reports = [str(fp.verify(wrong, *DENSE[1], seed=3)) for _ in range(2)]
    assert reports[0] == reports[1]


# ------------------------------------------------------------------- taylor, second order, cost


def test_the_taylor_remainder_is_of_second_order_where_the_gradient_is_right():
    right, wrong = (rule(two_layers, functools.partial(two_layers_backward, slope=s)) for s in (
        lambda z, h: 1 - h * h, lambda z, h: 1.0,
    ))  # fmt: skip
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(a), jnp.float64) for a in NET[1]]
        report = fp.taylor_test(right, *args)
        assert report.ok
        assert [round(row.order, 1) for row in report.rows] == [2.0, 2.0, np.inf]  # linear in v
        assert [row.ok for row in fp.taylor_test(wrong, *args).rows] == [False, False, True]


def test_second_order_through_a_rule():
    right = rule(lambda x: jnp.sin(x), lambda a, y, dy: (jnp.cos(a[0]) * dy,))
    assert fp.verify_second_order(right, normal(3, 4)).ok
    frozen = rule(
        lambda x: jnp.sin(x), lambda a, y, dy: (jax.lax.stop_gradient(jnp.cos(a[0])) * dy,)
    )
    assert fp.verify(frozen, normal(3, 4)).ok
    assert not fp.verify_second_order(frozen, normal(3, 4)).ok
    assert fp.verify_second_order(fp.serial(fp.dense(3), fp.tanh()), (
        fp.dense(3).init(jax.random.key(0), normal(3, 4)), (),
    ), normal(3, 4)).ok  # fmt: skip
    once = fp.verify_second_order(opaque(1.0), normal(4, 5), normal(5, 3))
    assert once.checks == ()
    assert "cannot be differentiated again" in once.notes[0]


def test_cost_of_a_rule_that_pays():
    found = fp.cost(fp.gelu(), (), normal(64, 64))
    assert found.hand_written.residual_bytes < found.autodiff.residual_bytes
    assert found.time_ratio > 0
    assert "residual bytes" in str(found)
    by_rule = fp.cost(rule(dense, dense_backward), *DENSE[1])
    assert by_rule.hand_written.flops > 0
