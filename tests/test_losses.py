"""Losses and metrics against a plain reference in float64: integers of every width, 16 bits, empty
batches, infinite, huge and tiny numbers. What makes no sense is refused, or NaN inside jit."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.cases import OPTIMISED

ONE = fp.Sum(jnp.ones(()), jnp.zeros(()))
FLOATS = ["float16", "bfloat16", "float32", "float64"]
INF = np.inf


def run(layer, params, x):
    y, residuals = layer.forward(params, x)
    dy = ONE if isinstance(y, fp.Sum) else jnp.ones_like(y)
    return y, layer.backward(params, residuals, dy)


jitted = jax.jit(run, static_argnums=0)
measured = jax.jit(lambda metric, *x: metric(*x), static_argnums=0)


def cast(values, dtype):
    with warnings.catch_warnings():  # of what overflows
        warnings.simplefilter("ignore")
        return np.asarray(values).astype(jnp.dtype(dtype))


# ------------------------------------------------------------------------------ the plain reference


def cross_entropy(z, q, smoothing=0.0):
    """Term and its derivative, of one row."""
    q = (1 - smoothing) * q + smoothing / len(z)
    top = z.max()
    if top == -INF:
        return INF, -q
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(z == INF, 0.0, z - top)
    log_p = z - np.log(np.exp(z).sum())
    return -sum(a * b for a, b in zip(q, log_p, strict=True) if a), np.exp(log_p) * q.sum() - q


def binary(z, t):
    if np.isinf(z):
        share = 1 - t if z > 0 else t
        return (INF if share else 0.0), (1 - t if z > 0 else -t)
    s = 1 / (1 + np.exp(-z)) if z > 0 else np.exp(z) / (1 + np.exp(z))
    other = np.exp(-z) / (1 + np.exp(-z)) if z > 0 else 1 / (1 + np.exp(z))
    linear = (1 - t) * z if z > 0 else -t * z
    return np.log1p(np.exp(-abs(z))) + linear, (1 - t) * s - t * other


REGRESSIONS = {
    "mean_squared": (fp.mean_squared(), lambda z, t: ((z - t) ** 2, 2 * (z - t))),
    "mean_absolute": (fp.mean_absolute(), lambda z, t: (abs(z - t), np.sign(z - t))),
    "huber": (
        fp.huber(2.0),
        lambda z, t: (
            ((z - t) ** 2 / 2, z - t)
            if abs(z - t) <= 2
            else (2 * (abs(z - t) - 1), 2 * np.sign(z - t))
        ),
    ),
}
ELEMENTWISE = REGRESSIONS | {"binary_cross_entropy": (fp.binary_cross_entropy(), binary)}
numbers = st.sampled_from([0, 1, -1, 0.3, 3.5, -80, 110, 1e-30, -3e-5, 1e4, -2e17, 5e30])
# Of outputs, targets and weights: each is one program, and many values go through it.
DTYPES = [
    ("float32", "float32", "float32"),
    ("bfloat16", "uint8", "bool"),
    ("float16", "int64", "float64"),
    ("float64", "bfloat16", "int8"),
    ("float32", "bool", None),
    ("float16", "uint4", "float16"),
]
ROWS = 6


def rows(values, n=ROWS):
    return st.lists(values, min_size=n, max_size=n)


def weights_of(dtype):
    return st.none() if dtype is None else rows(st.sampled_from([0, 0, 1, 2, 3]))


def close(got, want, eps, size):
    """As close as rounding allows; what overflows float32 is infinite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    want = np.where(abs(want) > np.finfo(np.float32).max, np.copysign(INF, want), want)
    with np.errstate(invalid="ignore"):
        off = abs(got - want)
    assert ((got == want) | (off <= eps * size)).all(), (got, want)


def compare(layer, outputs, targets, weights, one):
    """Value and gradient of the layer against `one(place) -> (term, derivative)` summed."""
    n = len(outputs)
    w = np.ones(n) if weights is None else weights.astype(np.float64)
    x = (outputs, targets) if weights is None else (outputs, targets, weights)
    loss, (_, (doutputs, *_)) = jitted(layer, (), x)
    with np.errstate(all="ignore"):
        terms, slopes = np.zeros(n), np.zeros(outputs.shape)
        for i in range(n):
            terms[i], slopes[i] = one(i) if w[i] else (0.0, 0.0)
        by_row = w.reshape(-1, *(1,) * (outputs.ndim - 1))
        total = (w * terms)[w != 0].sum()
    assert loss.weight == w.sum() and loss.total.dtype == np.float32
    assert doutputs.dtype == jnp.asarray(outputs).dtype
    close(loss.total, total, 1e-6, np.where(np.isfinite(terms), w * (abs(terms) + 1), 0).sum() + 1)
    eps = float(jnp.finfo(doutputs.dtype).eps) + 1e-6
    most = float(jnp.finfo(doutputs.dtype).max)
    slopes = by_row * slopes
    inside = abs(slopes) < most / 4  # beyond, 16 bits overflow
    close(
        np.where(inside, np.asarray(doutputs).astype(np.float64), 0),
        np.where(inside, slopes, 0),
        eps,
        abs(np.where(inside, slopes, 0)) + by_row,
    )


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: "-".join(map(str, dtypes)))
@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_elementwise_losses(name, dtypes, data):
    layer, one = ELEMENTWISE[name]
    shares, whole = name == "binary_cross_entropy", dtypes[1] not in FLOATS
    drawn = st.sampled_from([0, 1] if whole else [0, 1, 0.25, 0.99]) if shares else numbers
    if whole and not shares:
        drawn = st.integers(0, 1 if dtypes[1] == "bool" else 15)
    outputs = cast(data.draw(rows(numbers)), dtypes[0])
    targets = cast(data.draw(rows(drawn)), dtypes[1])
    weights = data.draw(weights_of(dtypes[2]))
    if weights is not None:
        weights = cast(weights, dtypes[2])
        outputs[weights == 0] = data.draw(st.sampled_from([np.nan, INF, 1e4]))
        if not whole:
            targets[weights == 0] = data.draw(st.sampled_from([np.nan, -INF, 7.0]))
    z, t = (cast(part, "float32").astype(np.float64) for part in (outputs, targets))
    compare(layer, outputs, targets, weights, lambda i: one(z[i], t[i]))
    metric = fp.binary_accuracy if shares else fp.absolute_error
    got = measured(metric, outputs, targets, weights)
    w = np.ones(ROWS) if weights is None else weights.astype(np.float64)
    z, t, w = z[w != 0], t[w != 0], w[w != 0]
    want = (w * ((z > 0) == (t > 0.5) if shares else abs(z - t))).sum()
    close(got.total, want, 1e-6, want)


CLASSES = 5


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: "-".join(map(str, dtypes)))
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_losses_on_classes(dtypes, data):
    smoothing, whole = 0.1 if dtypes[0] == "float16" else 0.0, dtypes[1] not in FLOATS
    any_logit = st.one_of(numbers, st.just(-INF), st.just(INF))
    outputs = cast(data.draw(rows(rows(any_logit, CLASSES))), dtypes[0])
    labels = np.array(data.draw(rows(st.integers(0, 1 if dtypes[1] == "bool" else 4))))
    q = np.eye(CLASSES)[labels] if whole else cast(0.7 * np.eye(CLASSES)[labels] + 0.06, dtypes[1])
    targets = cast(labels, dtypes[1]) if whole else q.copy()
    weights = data.draw(weights_of(dtypes[2]))
    if weights is not None:
        weights = cast(weights, dtypes[2])
        outputs[weights == 0] = data.draw(st.sampled_from([np.nan, INF, 1e4]))
        if dtypes[1] != "bool":
            targets[weights == 0] = 9 if whole else np.nan
    z, q = cast(outputs, "float32").astype(np.float64), q.astype(np.float64)
    loss = SOFTMAX[smoothing]
    compare(loss, outputs, targets, weights, lambda i: cross_entropy(z[i], q[i], smoothing))
    got = measured(fp.accuracy, outputs, targets, weights)
    w = np.ones(ROWS) if weights is None else weights.astype(np.float64)
    assert got.total == sum(w[i] for i in range(ROWS) if w[i] and z[i].argmax() == labels[i])
    if whole:
        x = cast(np.clip(np.nan_to_num(z), -9, 9), "float32")
        params = fp.LinearParams(np.eye(CLASSES, dtype=np.float32), None)
        rest = (targets,) if weights is None else (targets, weights)
        a, (dw, (dx, *_)) = jitted(HEADS[smoothing], params, (x, *rest))
        b, (_, (dz, *_)) = jitted(loss, (), (x, *rest))
        np.testing.assert_allclose(a, b, rtol=1e-5)
        np.testing.assert_allclose(dx, dz, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(dw.w, dz.T @ x, rtol=1e-4, atol=1e-3)


ALL = [*(layer for layer, _ in ELEMENTWISE.values()), fp.softmax_cross_entropy(0.1)]


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_an_empty_batch_sums_to_nothing(loss):
    softmax = loss.name == "softmax_cross_entropy"
    x = np.zeros((0, 3), np.float32), np.zeros(0, int) if softmax else np.zeros((0, 3))
    for more in ((), (np.zeros(0),)):
        y, (_, (d, *_)) = run(loss, (), (*x, *more))
        assert (y.total, y.weight, d.shape) == (0, 0, (0, 3))


SOFTMAX = {smoothing: fp.softmax_cross_entropy(smoothing) for smoothing in (0.0, 0.1)}
HEADS = {s: fp.linear_cross_entropy(5, chunk=2, smoothing=s) for s in SOFTMAX}


# ------------------------------------------------------------------------- integers of any width


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [("uint8", 256), ("int8", 128), ("uint8", 300), ("int16", 40_000), ("uint16", 70_000)],
)
def test_labels_and_ids_that_are_narrower_than_the_number_of_classes(dtype, classes):
    """As with int32: not wrapped by the comparison with the classes, nor taken for another."""
    rng = np.random.default_rng(0)
    numbers = np.array([0, 5, 10, 43, 127])
    logits = rng.standard_normal((5, classes)).astype(np.float32)
    want = None
    for width in (np.int32, dtype):
        given = numbers.astype(width)
        params = fp.LinearParams(jnp.asarray(logits.T[:, :3]), None)
        found = [
            jitted(fp.softmax_cross_entropy(), (), (logits, given)),
            jitted(fp.linear_cross_entropy(classes), params, (jnp.ones((5, 3)), given)),
            fp.accuracy(logits, given),
            jitted(fp.embedding(classes, 3), fp.EmbeddingParams(params.w), given),
        ]
        if width is np.int32:
            want = found
    jax.tree.map(np.testing.assert_array_equal, found, want)
    if classes > 261:
        assert not fp.accuracy(np.eye(300, dtype=np.float32)[[261]], np.array([5], dtype)).total


FAR = np.array([2**32 + 1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: fp.softmax_cross_entropy().forward((), (jnp.ones((1, 3)), FAR)),
            "labels must be from 0 to 2, got 4294967297",
        ),
        (
            lambda: fp.accuracy(jnp.ones((1, 3)), FAR),
            "labels must be from 0 to 2, got 4294967297",
        ),
        (
            lambda: fp.embedding(3, 1).forward(jnp.ones((3, 1)), FAR),
            "x must be from 0 to 2, got 4294967297",
        ),
        (
            lambda: fp.accuracy(jnp.ones((3, 1)), jnp.array([0, 1, 1])),
            "outputs must have a column for each of two classes or more, got shape (3, 1): of one, "
            "use binary_accuracy",
        ),
        (
            lambda: fp.accuracy(jnp.ones((3, 2)), jnp.zeros((3, 1), int)),
            "labels must have the shape (3,), got (3, 1)",
        ),
        (
            lambda: fp.binary_accuracy(jnp.ones((3, 1)), jnp.zeros(3)),
            "targets must have the shape (3, 1), got (3,)",
        ),
        (
            lambda: fp.absolute_error(jnp.ones((3, 1)), jnp.zeros(3)),
            "targets must have the shape (3, 1), got (3,)",
        ),
        (
            lambda: fp.mean_squared().forward((), (jnp.ones(2), ["a", "b"])),
            "targets must be real numbers, got <U1",
        ),
        (
            lambda: fp.mean_squared().forward((), (jnp.ones(2), jnp.ones(2, complex))),
            "targets must be real numbers, got complex64",
        ),
        (
            lambda: fp.softmax_cross_entropy().forward((), (jnp.ones((2, 0)), jnp.zeros(2, int))),
            "outputs must have a last axis of classes, got shape (2, 0)",
        ),
    ],
)
def test_refused(call, sentence):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert str(error.value) == sentence


def test_numbers_beyond_32_bits_are_numbers():
    """JAX would cut them to 1."""
    loss, _ = fp.mean_absolute().forward((), (jnp.zeros(1), FAR))
    assert loss.total == 2.0**32


# ----------------------------------------------------------------------------- what makes no sense

ROW = np.zeros((2, 3), np.float32)
SENSELESS = {
    "label": (SOFTMAX[0.0], ROW, [0, 3], "labels must be from 0 to 2, got 3"),
    "label below": (SOFTMAX[0.1], ROW, [0, -1], "labels must be from 0 to 2, got -1"),
    "sum": (
        SOFTMAX[0.0],
        ROW,
        [[1.0, 0, 0], [10, 5, 5]],
        "targets must be labels, or shares that sum to 1, got a sum of 20.0",
    ),
    "negative share": (
        SOFTMAX[0.0],
        ROW,
        [[1.0, 0, 0], [-1, 2, 0]],
        "targets must be labels, or shares of at least 0, got -1.0",
    ),
    "sign": (
        fp.binary_cross_entropy(),
        ROW[:, 0],
        [1, -1],
        "targets must be from 0 to 1, got -1",
    ),
    "pixels": (
        fp.binary_cross_entropy(),
        ROW[:, 0],
        np.array([1, 255], np.uint8),
        "targets must be from 0 to 1, got 255",
    ),
    "weight": (
        fp.mean_squared(),
        ROW[:, 0],
        [1.0, 1.0],
        "weights must be finite and at least 0, got -1.0",
    ),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_targets_that_make_no_sense(name):
    """Refused where they are known; else NaN in the value, and in the gradient of that row, so that
    the update is left out. Not where they have no say."""
    loss, outputs, targets, sentence = SENSELESS[name]
    x = (outputs, np.asarray(targets))
    x = (*x, np.array([1.0, -1.0])) if name == "weight" else x
    with pytest.raises(ValueError) as error:
        loss.forward((), x)
    assert str(error.value) == sentence
    value, (_, (d, *_)) = jitted(loss, (), x)
    assert np.isnan(value.total)
    assert np.isfinite(d[0]).all() and np.isnan(d[1]).all()
    by_jax = jax.jit(jax.grad(lambda z, *rest: loss.forward((), (z, *rest))[0].total))(*x)
    assert np.isnan(by_jax[1]).all()
    if name != "weight":
        value, _ = loss.forward((), (*x, np.array([1, 0])))
        assert np.isfinite(value.total)


def test_a_label_out_of_range_is_nan_in_every_gradient_of_the_linear_form():
    params, x = (
        fp.LinearParams(jnp.ones((3, 2)), jnp.ones(3)),
        (jnp.ones((2, 2)), jnp.array([0, 3])),
    )
    (dw, db), (dx, _) = jitted(fp.linear_cross_entropy(3, chunk=2, bias=True), params, x)[1]
    assert np.isnan(dw).all() and np.isnan(db).all() and np.isnan(dx).any(-1).tolist() == [0, 1]


def test_an_output_of_nan_is_never_right():
    nan = jnp.array([[jnp.nan, 0.0], [0.0, 1.0]])
    assert fp.accuracy(nan, jnp.array([0, 1])).total == 1
    assert fp.binary_accuracy(nan[:, 0], jnp.array([0, 0])).total == 1


# ------------------------------------------------------------------------- infinite and far logits


def test_a_target_that_makes_no_sense_is_nan_in_metrics_inside_jit():
    # All outputs are finite: a product with the boolean "right" is folded by XLA to a choice.
    logits = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    accuracy, binary = jax.jit(fp.accuracy), jax.jit(fp.binary_accuracy)
    for bad in (7, -1):
        assert jnp.isnan(accuracy(logits, jnp.array([0, bad])).total)
    for bad in (jnp.nan, 2.0):
        assert jnp.isnan(binary(logits[:, 0], jnp.array([1.0, bad])).total)
    assert accuracy(logits, jnp.array([0, 7]), jnp.array([2.0, 0.0])) == (2.0, 2.0)
    assert binary(logits[:, 0], jnp.array([1.0, 0.0])) == (1.0, 2.0)


def test_the_linear_form_by_rows_holds_the_logits_of_one_chunk_once():
    head, (n, inputs, classes) = fp.linear_cross_entropy(32000, rows=128), (512, 64, 32000)
    batch = jax.ShapeDtypeStruct((n, inputs), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    params = jax.eval_shape(head.init, jax.random.key(0), batch)
    lowered = jax.jit(head.forward).lower(params, batch)
    held = lowered.compile(OPTIMISED).memory_analysis().temp_size_in_bytes
    assert held < 1.5 * 128 * classes * 4  # beside them a part of their gradient and of dw


def test_linear_form_of_masked_classes_and_far_logits():
    """Chunks that are masked whole, and logits with an offset in common."""
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 2), (3, 2)))
    labels = np.array([6, 7, 8])
    for b, smoothing in (([-INF] * 6 + [0, 1, 2], 0.0), ([1e6] * 9, 0.1), ([-1e6] * 9, 0.1)):
        params = fp.LinearParams(w, np.array(b, np.float32))
        head = fp.linear_cross_entropy(9, chunk=2, smoothing=smoothing, bias=True)
        loss, ((_, db), _) = jitted(head, params, (x, labels))
        logits = (x @ w.T).astype(np.float32) + params.b
        want, (_, (dz, _)) = jitted(fp.softmax_cross_entropy(smoothing), (), (logits, labels))
        np.testing.assert_allclose(loss.total, want.total, rtol=1e-6)
        np.testing.assert_allclose(db, dz.sum(0), atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "value"),
    [
        ([-INF, -INF, -INF], INF),
        ([INF, 0, -INF], 0),
        ([0, INF, 0], INF),
        ([INF, INF, 0], np.log(2)),
        ([-INF, 0, 0], INF),
    ],
)
def test_infinite_logits_have_a_value_and_a_gradient(logits, value):
    z = np.array([logits], np.float32)
    p = np.exp(np.where(z == z.max(), 0, -INF)) * (z.max() > -INF)
    q = np.array([[1.0, 0, 0]], np.float32)
    params = fp.LinearParams(np.zeros((3, 1), np.float32), z[0])
    head = fp.linear_cross_entropy(3, chunk=2, bias=True)
    by_head, ((_, db), _) = jitted(head, params, (np.ones((1, 1), np.float32), np.array([0])))
    for targets in (np.array([0]), q):
        loss, (_, (dz, *_)) = jitted(fp.softmax_cross_entropy(), (), (z, targets))
        np.testing.assert_allclose((loss.total, by_head.total), value, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(dz, p / max(p.sum(), 1) - q, atol=1e-7)
        np.testing.assert_allclose(db, dz[0], atol=1e-7)


def test_a_mean_beside_a_weight_is_found():
    x, w = jnp.arange(8.0).reshape(4, 2), jnp.ones(2)

    def mean(w, x):
        return ((x @ w) ** 2).mean(), len(x)

    def total(w, x):
        return ((x @ w) ** 2).sum(), len(x)

    assert not fp.verify(fp.from_loss(total), w, x, reference=total).findings
    with pytest.raises(ValueError, match=r"return \(mean \* n, n\)"):
        fp.verify(fp.from_loss(mean), w, x, reference=mean)
