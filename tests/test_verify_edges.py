"""What `verify` says where autodiff has no answer, and of branches, indices and sums that the given
inputs do not show: a wrong rule is found, a right one of the same kind is left in peace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funprop as fp
from funprop.verify.truth.differences import limit, steps
from funprop.verify.truth.thresholds import thresholds
from tests.test_verify import normal, rule

pytestmark = pytest.mark.usefixtures("any_ranks")


def grad_of_x(slope):
    """The backward pass of an elementwise function of one input, of its slope there."""
    return lambda args, y, dy: (dy * slope(args[0]).astype(dy.dtype),)


# --------------------------------------------------------------- where autodiff has no answer


def norm(x):
    return jnp.sqrt((x * x).sum(-1))


def norm_backward(args, y, dy, at_zero=0.0):
    (x,) = args
    direction = x / jnp.where(y == 0, 1, y)[:, None]
    return (dy[:, None] * jnp.where(y[:, None] == 0, at_zero, direction).astype(x.dtype),)


def root(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0)


def entropy(x):
    return jnp.where(x > 0, x * jnp.log(x), 0)


def scaled_sine(x):
    return jnp.where(x == 0, 0, jnp.sin(3 * x))


def safe(x):
    return jnp.where(x > 0, x, 1)


NO_ANSWER = {
    "any unit vector at a row of zeros": (
        norm, lambda s: functools.partial(norm_backward, at_zero=s), (-1.0, 0.0, 0.6), (7.0, jnp.nan),
        normal(4, 3).at[1].set(0),
    ),
    "nothing where the root is not taken": (
        root, lambda s: grad_of_x(lambda x: jnp.where(x > 0, 0.5 / jnp.sqrt(safe(x)), s)),
        (0.0,), (7.0, jnp.inf), jnp.array([-2.0, 1.0, 3.0]),
    ),
    "any number at an infinite slope": (
        entropy, lambda s: grad_of_x(lambda x: jnp.where(x > 0, 1 + jnp.log(safe(x)), s)),
        (0.0, -1e3, -jnp.inf), (jnp.inf,), jnp.array([0.0, 1.5, 3.0]),
    ),
    "a slope that a branch has pinned": (
        scaled_sine, lambda s: grad_of_x(lambda x: jnp.where(x == 0, s, 3 * jnp.cos(3 * x))),
        (3.0,), (0.0, 2.9), jnp.array([0.0, 1.0, 2.0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NO_ANSWER)
def test_values_decide_where_autodiff_is_not_finite_or_pinned(name, dtype):
    forward, backward, right, wrong, x = NO_ANSWER[name]
    x = x.astype(dtype)
    for slope in right:
        report = fp.verify(rule(forward, backward(slope)), x)
        assert report.ok, str(report)
        (check,) = report.checks
        assert "values decide" in check.note
        assert np.isfinite(check.allowed) or "any finite number" in check.note
    for slope in wrong[: None if dtype == jnp.float32 else 1]:
        report = fp.verify(rule(forward, backward(slope)), x)
        assert not report.ok, f"{slope}: {report}"


def test_where_values_do_not_decide_either_it_is_said():
    """A wave that grows ever narrower has no slope at zero."""

    def wave(x):
        return jnp.where(x == 0, 0, x * jnp.sin(1 / x) + jnp.sqrt(x * x))

    slope = jax.grad(lambda x: wave(x))
    backward = grad_of_x(lambda x: jnp.where(x == 0, 7.0, jax.vmap(slope)(x)))
    report = fp.verify(rule(wave, backward), jnp.array([0.5, 0.0, 2.0]))
    assert report.ok, str(report)
    assert "not judged at [1]" in report.checks[0].note


def test_nan_in_16_bits_is_wrong_where_autodiff_overflows_too():
    def backward(args, y, dy):
        e = jnp.exp(-args[0])
        return (dy * e / ((1 + e) * (1 + e)),)

    def sigmoid(x):
        return 1 / (1 + jnp.exp(-x))

    x = jnp.asarray([-12.0, 0.5, 3.0], jnp.float16)
    (finding,) = fp.verify(rule(sigmoid, backward), x).findings
    assert (finding.story, finding.worst) == ("NaN", (0,))
    assert fp.verify(rule(sigmoid, lambda a, y, dy: (dy * y * (1 - y),)), x).ok


def test_what_stop_gradient_says_is_meant():
    forward = lambda x: x * lax.stop_gradient(x)
    x = jnp.float32([0.9, -0.3, 0.2])
    assert fp.verify(rule(forward, grad_of_x(lambda x: x)), x).ok
    (finding,) = fp.verify(rule(forward, grad_of_x(lambda x: 2 * x)), x).findings
    assert finding.story == "factor"
    rounded = lambda x: x + lax.stop_gradient(jnp.round(x) - x)
    assert fp.verify(rule(rounded, grad_of_x(jnp.ones_like)), jnp.array([0.0, 1.0, 0.3])).ok


def test_limits_of_quotients():
    h = steps(1.0)
    functions = [np.sin, lambda t: t**1.5, np.sqrt, lambda t: t * np.log(t), lambda t: 1 + 0 * t]
    values = np.stack([f(h) for f in functions], 1)
    found = limit(np.zeros(5), values, h, 2.2e-16)
    assert np.allclose(found.value[:2], [1, 0], atol=1e-6)
    assert list(found.value[2:]) == [np.inf, -np.inf, np.inf]
    waves = np.abs(h) * np.sin(1 / h)
    assert np.isnan(limit(np.zeros(()), waves, h, 2.2e-16).value)


def of_values(fun):
    """A forward pass in NumPy."""

    def forward(x):
        spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
        run = lambda v: np.asarray(fun(np.asarray(v)), v.dtype)
        return jax.pure_callback(run, spec, x, vmap_method="sequential")

    return forward


def test_one_sided_slopes_and_laws_of_what_only_values_are_known_of():
    power, sine = of_values(lambda v: v**1.5), of_values(np.sin)
    at_zero = lambda s: grad_of_x(lambda x: jnp.where(x == 0, s, 1.5 * jnp.sqrt(x)))
    x = jnp.array([0.0, 1.0, 4.0])
    assert fp.verify(rule(power, at_zero(0.0)), x).ok
    assert not fp.verify(rule(power, at_zero(7.0)), x).ok
    held = lambda x: sine(x) * lax.stop_gradient(x)
    assert fp.verify(rule(held, grad_of_x(lambda x: jnp.cos(x) * x)), x).ok
    function = jax.custom_vjp(sine)
    function.defvjp(lambda x: (1.5 * sine(x), x), lambda x, dy: (jnp.cos(x) * dy,))
    (finding,) = fp.verify(function, x).findings
    assert finding.story == "other output"


# --------------------------------------------------------------------------- ties


def test_what_is_tied_is_shared_out_and_not_given_to_each():
    def backward(args, y, dy, shared=True):
        tied = (args[0] == y[:, None]).astype(y.dtype)
        return ((tied / tied.sum(-1, keepdims=True) if shared else tied) * dy[:, None],)

    def first(args, y, dy):
        return (jax.nn.one_hot(args[0].argmax(-1), args[0].shape[-1]) * dy[:, None],)

    largest = lambda x: x.max(-1)
    to_each = functools.partial(backward, shared=False)
    for x in (jnp.array([[1.0, 1.0, 0.0], [0.0, 3.0, 2.0]]), normal(4, 3)):
        for right in (backward, first):
            report = fp.verify(rule(largest, right), x)
            assert report.ok, str(report)
        assert not fp.verify(rule(largest, to_each), x).ok
    # Tied with a constant each has a slope of its own.
    kept = rule(
        lambda x: jnp.maximum(x, 0).sum(-1),
        lambda a, y, dy: (dy[:, None] * jnp.heaviside(a[0], 1.0),),
    )
    assert fp.verify(kept, jnp.round(normal(5, 6))).ok


def largest_of_two(args, y, dy):
    return jnp.where(args[0].reshape(-1, 2) == y[:, None], dy[:, None], 0).reshape(args[0].shape)


@pytest.mark.parametrize(
    ("forward", "to_each", "args"),
    [
        (jnp.maximum, lambda a, y, dy: tuple(jnp.where(v == y, dy, 0) for v in a), (4, 5)),
        (
            lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID"),
            lambda a, y, dy: (largest_of_two(a, y, dy),),
            (6,),
        ),
    ],
    ids=["two inputs", "windows"],
)
def test_ties_between_inputs_and_within_windows(forward, to_each, args):
    inputs = [normal(*args, seed=i) for i in range(1 + (forward is jnp.maximum))]
    by_jax = lambda a, y, dy: jax.vjp(forward, *a)[1](dy)
    report = fp.verify(rule(forward, by_jax), *inputs)
    assert report.ok, str(report)
    findings = fp.verify(rule(forward, to_each), *inputs).findings
    assert {f.story for f in findings} == {"kink"}
    assert len(findings) == len(inputs)


def test_a_slope_beyond_both_sides_of_a_kink_is_called_so():
    twice_at_zero = lambda a, y, dy: (dy * jnp.where(a[0] == 0, 2.0, jnp.heaviside(a[0], 0.0)),)
    (finding,) = fp.verify(rule(lambda x: jnp.maximum(x, 0), twice_at_zero), normal(4, 5)).findings
    assert finding.story == "kink"
    assert "should be" not in finding.problem  # any of many is right


# --------------------------------------------------------------------------- sums in 16 bits


def added(dys):
    """A sum that is carried in the dtype of its terms."""
    return lax.scan(lambda c, dy: (c + dy, None), jnp.zeros_like(dys[0]), dys)[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_a_sum_carried_in_16_bits(dtype):
    x, w, b = (
        normal(4096, 4, dtype=dtype),
        normal(4, 3, seed=1, dtype=dtype),
        normal(3, dtype=dtype),
    )

    def backward(args, y, dy, bias=jnp.sum, weight=None):
        x, w, _ = args
        return (
            dy @ w.T,
            weight(x, dy) if weight else x.T @ dy,
            bias(dy, 0) if bias is jnp.sum else bias(dy),
        )

    dense = lambda x, w, b: x @ w + b
    slow = lambda x, dy: added(x[:, :, None] * dy[:, None])
    assert fp.verify(rule(dense, backward), x, w, b).ok
    for changed, path in (({"bias": added}, "b"), ({"weight": slow}, "w")):
        report = fp.verify(rule(dense, functools.partial(backward, **changed)), x, w, b)
        if dtype == jnp.float32:
            assert report.ok, str(report)
        else:
            assert {(f.path, f.story) for f in report.findings} == {(path, "precision")}, str(
                report
            )


# ------------------------------------------------------------------- what the inputs do not show


def ignoring(logits, labels):
    use = labels != -100
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, jnp.where(use, labels, 0)[:, None], 1)[:, 0]
    return -jnp.where(use, picked, 0).sum()


def ignoring_backward(args, y, dy, wrong):
    logits, labels = args
    grad = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1])
    return dy * (grad if wrong else jnp.where((labels != -100)[:, None], grad, 0)), None


def lookup(table, ids):
    return table[ids]


def lookup_backward(args, y, dy, left_out):
    table, ids = args
    n = len(table) if left_out is None else left_out % len(table)
    return jnp.zeros_like(table).at[ids].add(jnp.where((ids == n)[:, None], 0, dy)), None


def masked(x, mask):
    return jax.nn.softmax(jnp.where(mask, x, -1e30))


def masked_backward(args, y, dy, wrong):
    dx = y * (dy - (y * dy).sum(-1, keepdims=True))
    return dx if wrong else jnp.where(args[1], dx, 0), None


def product(x, w):
    return x @ w


def product_backward(args, y, dy, wrong):
    x, w = args
    dw = x.T @ dy
    return dy @ w.T, dw.T if wrong and dw.shape[0] == dw.shape[1] else dw


def band(x):
    return jnp.where((x > 5) & (x < 6), x * x, jnp.sin(x))


def band_backward(args, y, dy, wrong):
    (x,) = args
    inside = x if wrong else 2 * x
    return (dy * jnp.where((x > 5) & (x < 6), inside, jnp.cos(x)),)


def above(x, n):
    return lax.cond(n > 3, lambda x: x * x, lambda x: 3 * x, x)


def above_backward(args, y, dy, wrong):
    x, n = args
    return dy * jnp.where(n > 3, x if wrong else 2 * x, 3.0), None


def one_of(x, n):
    return lax.switch(n, [jnp.tanh, lambda x: 3 * x, jnp.sin], x)


def one_of_backward(args, y, dy, wrong):
    x, n = args
    slopes = [1 - jnp.tanh(x) ** 2, 0 * x + 3, (2 if wrong else 1) * jnp.cos(x)]
    return dy * jnp.select([n <= 0, n == 1], slopes[:2], slopes[2]), None


def energetic(x):
    return lax.cond((x * x).sum() > 90, lambda x: x * x, lambda x: 3 * x, x)


def energetic_backward(args, y, dy, wrong):
    (x,) = args
    return (dy * jnp.where((x * x).sum() > 90, x if wrong else 2 * x, 3.0),)


def clipped_labels(logits, labels):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.clip(labels, 0)[:, None], 1)
    return -picked[:, 0]


def clipped_backward(args, y, dy, wrong):
    logits, labels = args
    ones = jax.nn.one_hot(jnp.clip(labels, 0), logits.shape[1])
    ones = ones.at[:, -1].set(0) if wrong else ones
    return (jax.nn.softmax(logits) - ones) * dy[:, None], None


def window(x, start):
    return lax.dynamic_slice(x, (start,), (2,))


def window_backward(args, y, dy, wrong):
    x, start = args
    dx = lax.dynamic_update_slice(jnp.zeros_like(x), dy, (start,))
    return jnp.where(start == 0, 0, dx) if wrong else dx, None


def sums(x, segments):
    return jax.ops.segment_sum(x, segments, 5)


def sums_backward(args, y, dy, wrong):
    return jnp.where((args[1] == 4) & wrong, 0, dy[args[1]]), None


def mean_of_first(x, n):
    first = jnp.arange(x.shape[1]) < n[:, None]
    return jnp.where(first, x, 0).sum(1) / jnp.maximum(n, 1).astype(x.dtype)


def mean_of_first_backward(args, y, dy, wrong):
    x, n = args
    first = jnp.arange(x.shape[1]) < n[:, None]
    share = jnp.where((n == 0) & wrong, jnp.nan, dy / jnp.maximum(n, 1).astype(dy.dtype))
    return jnp.where(first, share[:, None], jnp.where(n == 0, 0 * share, 0)[:, None]), None


def up_to_six(x):
    return jnp.clip(x, 0, 6)


def up_to_six_backward(args, y, dy, wrong):
    return (jnp.where((args[0] > 0) & (wrong | (args[0] < 6)), dy, 0),)


def mean_of_labelled(logits, labels):
    use = labels != -1
    picked = logits[jnp.arange(len(labels)), jnp.where(use, labels, 0)]
    return jnp.where(use, picked, 0).sum() / jnp.maximum(use.sum(), 1).astype(logits.dtype)


def mean_of_labelled_backward(args, y, dy, wrong):
    logits, labels = args
    n = jnp.maximum((labels != -1).sum(), 0 if wrong else 1).astype(dy.dtype)
    return jax.nn.one_hot(labels, logits.shape[1]) * dy / n, None


def warmed_up(x, n):
    return x / (1 - 0.9 ** (n + 1).astype(x.dtype))


def warmed_up_backward(args, y, dy, wrong):
    n = jnp.maximum(args[1], 1) if wrong else args[1]
    return dy / (1 - 0.9 ** (n + 1).astype(dy.dtype)), None


def overwritten_backward(args, y, dy, wrong):
    table, ids = args
    zeros = jnp.zeros_like(table)
    return (zeros.at[ids].set(dy) if wrong else zeros.at[ids].add(dy)), None


MASK = jnp.array([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]], bool)
NOT_SHOWN = {
    "labels -100": (
        ignoring, ignoring_backward, (normal(7, 5), jnp.array([0, 2, 4, 1, 1, 3, 0])), False, True,
    ),
    "ids 0 and 8: the last": (
        lookup, lookup_backward, (normal(9, 3), jnp.array([1, 4, 2])), None, -1,
    ),
    "ids 0 and 8: the first": (
        lookup, lookup_backward, (normal(9, 3), jnp.array([1, 4, 2])), None, 0,
    ),
    "a row of mask": (masked, masked_backward, (normal(3, 4), MASK), False, True),
    "axes of the same size": (
        product, product_backward, (normal(6, 4), normal(4, 3, seed=1)), False, True,
    ),
    "numbers around 5": (band, band_backward, (normal(4, 3),), False, True),
    "n 4": (above, above_backward, (normal(4), jnp.int32(1)), False, True),
    "n 2": (one_of, one_of_backward, (normal(4), jnp.int32(1)), False, True),
    "numbers around 90": (energetic, energetic_backward, (normal(4),), False, True),
    "labels 0 and 4": (
        clipped_labels, clipped_backward, (normal(3, 5), jnp.array([1, 2, 1])), False, True,
    ),
    "start 0": (window, window_backward, (normal(5), jnp.int32(2)), False, True),
    "segments 0 and 4": (
        sums, sums_backward, (normal(4), jnp.array([0, 1, 1, 2])), False, True,
    ),
    "n 0": (
        mean_of_first, mean_of_first_backward, (normal(3, 5), jnp.array([2, 3, 5])), False, True,
    ),
    "labels -1 everywhere": (
        mean_of_labelled, mean_of_labelled_backward, (normal(4, 3), jnp.array([1, 2, 0, 1])), False,
        True,
    ),
    "a count of none": (warmed_up, warmed_up_backward, (normal(4), jnp.int32(3)), False, True),
    "ids that are many in each row": (
        lookup, overwritten_backward, (normal(4, 3), jnp.array([[0, 1], [2, 3]])), False, True,
    ),
    "sorted numbers": (up_to_six, up_to_six_backward, (jnp.linspace(-1, 1, 5),), False, True),
    "whole numbers": (
        up_to_six, up_to_six_backward, (jnp.float32([[2, -1], [3, 4]]),), False, True,
    ),
}  # fmt: skip


# Those that take long, each with a quicker one of its kind.
SLOW = {"a row of mask", "ids 0 and 8: the first", "numbers around 90", "n 2"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NOT_SHOWN]
)
def test_what_the_given_inputs_do_not_show_is_looked_for(name):
    forward, backward, args, right, wrong = NOT_SHOWN[name]
    report = fp.verify(rule(forward, lambda a, y, dy: backward(a, y, dy, right)), *args)
    assert report.ok, str(report)
    findings = fp.verify(rule(forward, lambda a, y, dy: backward(a, y, dy, wrong)), *args).findings
    assert findings
    assert all(finding.point for finding in findings)


def test_what_a_function_compares_is_read_off_its_trace():
    def function(x, ids, n, table):
        x = lax.cond(n >= 7, jnp.sin, lambda x: jnp.clip(x, -0.5, 2.5), x)
        return jnp.where((ids == -1)[:, None], 0, table[ids]) + x

    found = thresholds(jax.make_jaxpr(function)(normal(3), jnp.array([0, 1]), 3, normal(5, 3)))
    assert found.numbers == {-0.5, 2.5}
    assert found.whole == {1: {-1}, 2: {6, 7}}
    assert found.counts == {1: 5}
    assert (found.split, found.split_at_zero) == ({0}, {0})


def test_bounds_stay_apart_and_what_is_clipped_to_be_a_place_is_one():
    between = lambda a, y, dy: (
        jnp.where((a[0] > a[1]) & (a[0] < a[2]), dy, 0),
        jnp.where(a[0] <= a[1], dy, 0).sum(),
        jnp.where(a[0] >= a[2], dy, 0).sum(),
    )
    bounds = jnp.float32(-0.5), jnp.float32(0.5)
    report = fp.verify(rule(jnp.clip, between), normal(4, 6), *bounds)
    assert report.ok, str(report)
    counted = lambda w, i: jnp.bincount(i, w, length=5)
    taken = lambda a, y, dy: (dy[a[1]], None)
    report = fp.verify(rule(counted, taken), normal(3), jnp.array([1, 4, 1]))
    assert report.ok, str(report)


# ---------------------------------------------------------------- indices, loops, factorisations


def test_indices_within_their_arrays_are_not_sent_outside():
    """A table cut to one row, tokens beyond the last offset: no rule follows JAX there."""
    added_to = lambda x, ids, v: x.at[ids].add(v)
    taken = lambda a, y, dy: (dy, None, dy[a[1]])
    offsets = jnp.array([0, 3, 4, 8])

    def rows(n):
        return jnp.searchsorted(offsets, jnp.arange(n), side="right") - 1

    sizes = lambda o, like: jnp.diff(o)[:, None].astype(like.dtype)
    mean = lambda t, o: jax.ops.segment_sum(t, rows(len(t)), 3) / sizes(o, t)
    of_means = lambda a, y, dy: ((dy / sizes(a[1], dy))[rows(len(a[0]))], None)
    added = (normal(6, 2), jnp.array([4, 1, 4]), normal(3, 2, seed=1))
    for forward, right, args in (
        (added_to, taken, added),
        (mean, of_means, (normal(8, 2), offsets)),
    ):
        report = fp.verify(rule(forward, right), *args)
        assert report.ok, str(report)
        halved = lambda a, y, dy, right=right: tuple(
            g if g is None else g / 2 for g in right(a, y, dy)
        )
        assert not fp.verify(rule(forward, halved), *args).ok


@pytest.mark.slow
def test_the_stories_of_factorised_matrices_come_to_an_end():
    """Many batched factorisations in one program: XLA waits for ever on CPUs."""
    a = normal(4, 4) + 3 * jnp.eye(4)
    elementwise = rule(jnp.linalg.inv, lambda args, y, dy: (-dy * y * y,))
    assert not fp.verify(elementwise, a).ok
    right = rule(jnp.linalg.inv, lambda args, y, dy: (-y.T @ dy @ y.T,))
    assert fp.verify(right, a).ok


def test_what_float64_itself_rounds_at_large_inputs_is_no_mistake():
    """Scores in the thousands: `dp - sum(do * o)` cancels to the last bits of `dp`, times `k`."""

    def attend(q, k, v):
        return jax.nn.softmax(q @ k.T, -1) @ v

    def flash(kept, do, times=1.0):
        q, k, v, o = kept
        p = jax.nn.softmax(q @ k.T, -1)
        # The same sum in halves, as blocks of a kernel take it.
        sums = (do * o)[:, ::2].sum(-1, keepdims=True) + (do * o)[:, 1::2].sum(-1, keepdims=True)
        ds = p * (do @ v.T - times * sums)
        return ds @ k, ds.T @ q, p.T @ do

    def rule(times):
        function = jax.custom_vjp(attend)
        function.defvjp(
            lambda *args: (attend(*args), (*args, attend(*args))),
            functools.partial(flash, times=times),
        )
        return function

    args = [jax.random.normal(key, (48, 16)) for key in jax.random.split(jax.random.key(0), 3)]
    fp.verify(rule(1.0), *args).raise_if_wrong()
    assert not fp.verify(rule(1.00001), *args).ok


def test_both_passes_take_the_branch_of_one_platform():
    """Forward holds a rule, so that its choice is looked into; backward does not."""
    double = jax.custom_vjp(lambda x: 2 * x)
    double.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy,))

    def forward(params, x):
        return jax.lax.platform_dependent(
            x, cpu=lambda x: (double(x) * x, x), default=lambda x: (2 * x * x, -x)
        )

    def backward(params, kept, dy):
        return (), jax.lax.platform_dependent(
            kept, dy, cpu=lambda x, dy: 4 * x * dy, default=lambda x, dy: -4 * x * dy
        )

    layer = fp.layer(forward=forward, backward=backward, name="squares")
    fp.verify(layer, (), jnp.float32([1.0, 2.0, -0.5])).raise_if_wrong()
