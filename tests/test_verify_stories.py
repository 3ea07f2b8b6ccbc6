"""A story is true or not told: what holds by chance at the given inputs is not, and what a Jacobian
shows is told whatever the forward pass is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import funprop as fp
from funprop.verify.stories import case
from funprop.verify.stories.places import same_columns
from funprop.verify.stories.regions import by_chance
from tests.test_verify import normal, rule

pytestmark = pytest.mark.usefixtures("any_ranks")

IDS = jnp.array([0, 0, 2, 0, 1, 1, 2, 2])

COUNT = jnp.array([3.0, 2.0, 3.0])


def largest(x):
    return jax.ops.segment_max(x, IDS, 3)


def to_the_least(args, y, dy):
    (x,) = args
    return (jnp.where(x == jax.ops.segment_min(x, IDS, 3)[IDS], dy[IDS], 0),)


def running(x):
    return jax.lax.cummax(x, 0)


def overwritten(args, y, dy):
    (x,) = args
    at = jax.lax.cummax(jnp.where(x == y, jnp.arange(len(x))[:, None], 0), 0)
    return (jnp.zeros_like(x).at[at, jnp.arange(x.shape[1])].set(dy),)


def between(x):
    low, high = jnp.sort(x)[jnp.array([2, 3])]
    return 0.9 * low + 0.1 * high


def other_shares(args, y, dy):
    order = jnp.argsort(args[0])
    return (jnp.zeros_like(args[0]).at[order[2:4]].set(dy * jnp.array([0.7, 0.3])),)


def circular(x, k):
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(k), len(x))


def not_turned_round(args, y, dy):
    x, k = args
    right = jnp.fft.irfft(jnp.fft.rfft(dy) * jnp.conj(jnp.fft.rfft(x)), len(x))
    return circular(dy, k), right


def moments(x):
    return x.mean(1), ((x - x.mean(1, keepdims=True)) ** 2).mean(1)


def moments_backward(mean, variance):
    def backward(args, y, dy):
        (x,) = args
        centred = 2 * (x - x.mean(1, keepdims=True))
        return ((mean(*dy)[:, None] + variance(*dy)[:, None] * centred) / x.shape[1],)

    return backward


def kernel(rows, x):
    """So many rows at a time."""

    def body(x_ref, y_ref):
        y_ref[...] = jnp.tanh(x_ref[...])

    block = pl.BlockSpec((rows, x.shape[1]), lambda i: (i, 0))
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    grid = (x.shape[0] // rows,)
    call = pl.pallas_call(
        body, out_shape=out, grid=grid, in_specs=[block], out_specs=block, interpret=True
    )
    return call(x)


def called_back(x):
    """Of which only values are known, so that no story may look inside."""
    return jax.pure_callback(np.tanh, x, x, vmap_method="broadcast_all")


def resting(x, w):
    """Z = tanh(w z + x), by 80 rounds."""
    return jax.lax.fori_loop(0, 80, lambda _, z: jnp.tanh(w @ z + x), jnp.zeros_like(x))


def until_at_rest(x, w):
    """The same until two rounds are alike."""
    end = lambda s: abs(s[0] - s[1]).max() > 1e-6
    return jax.lax.while_loop(end, lambda s: (jnp.tanh(w @ s[0] + x), s[0]), (x, x + 1))[0]


def looking_back(solve):
    def backward(args, y, dy):
        _, w = args
        slope = 1 - y * y
        u = solve(slope, w, dy)
        return slope * u, jnp.outer(slope * u, y)

    return backward


def implicit(slope, w, dy):
    return jnp.linalg.solve((jnp.eye(len(dy)) - slope[:, None] * w).T, dy)


def three_turns(slope, w, dy):
    u = dy
    for _ in range(2):
        u = dy + w.T @ (slope * u)
    return u


SMALL = jnp.array([0.3, -0.2, 0.4]), 0.5 * jnp.linalg.qr(normal(3, 3))[0]


FIRST, SECOND, NONE = lambda a, b: a, lambda a, b: b, lambda a, b: 0 * a

WRONG = {
    "to the least": (largest, (normal(8, 2),), to_the_least, "region", "takes nothing"),
    "duplicates": (running, (normal(7, 2),), overwritten, "overwritten", "only one is counted"),
    "two numbers fit any two": (between, (normal(8),), other_shares, "", "no way that is known"),
    "rows alike": (
        lambda x: x.sum(0), (normal(6, 4),),
        lambda a, y, dy: (jnp.broadcast_to(dy, a[0].shape).at[-1].set(0),), "region", "zero at the last",
    ),
    "not transposed": (circular, (normal(6), normal(6, seed=1)), not_turned_round, "transposed", "multiplied"),
    "a count by row": (
        lambda x, ids: jax.ops.segment_sum(x, ids, 3), (normal(8, 2), IDS),
        lambda a, y, dy: ((dy / COUNT[:, None])[a[1]], None),
        "factor", "0.3333, 0.5, 0.3333 times as large",
    ),
    "reshaped only": (
        lambda x: x.reshape(2, 3, 4).transpose(2, 0, 1) ** 2, (normal(24),),
        lambda a, y, dy: (2 * dy.reshape(24) * a[0],), "permuted", "cotangent at",
    ),
    "outputs": (moments, (normal(3, 5),), moments_backward(SECOND, FIRST), "swapped", "outputs 0 and 1"),
    "an output": (moments, (normal(3, 5),), moments_backward(FIRST, NONE), "missing term", "is missing"),
    "in a kernel": (
        lambda x: kernel(4, x), (normal(4, 6),), lambda a, y, dy: (dy * (1 - a[0] ** 2),),
        "stale", "the derivative of `tanh` at test_verify_stories.py",
    ),
    "in a kernel's blocks": (
        lambda x: kernel(2, x), (normal(4, 6),), lambda a, y, dy: (dy,),
        "missing factor", "`tanh` at test_verify_stories.py",
    ),
    "called back": (
        called_back, (normal(4, 6),), lambda a, y, dy: (dy * a[0] ** 2,), "", "no way that is known",
    ),
    "the last turn": (
        resting, SMALL, looking_back(lambda slope, w, dy: dy), "missing term", "only the last turn of the loop",
    ),
    "a turn's slope": (
        resting, SMALL, looking_back(lambda slope, w, dy: implicit(1.0 + 0 * slope, w, dy)),
        "missing factor", "depends on its turn before, the derivative of `tanh`",
    ),
    "odd turns": (
        resting, SMALL, looking_back(lambda slope, w, dy: implicit(slope**1.3, w, dy)), "", "no way that is known",
    ),
    "few turns": (
        until_at_rest, SMALL, looking_back(three_turns), "missing term", "only the last 3 turns of the loop",
    ),
    "by sign of the largest": (
        lambda x: jnp.sort(abs(x)), (normal(6),),
        lambda a, y, dy: (jnp.zeros(6).at[jnp.argsort(abs(a[0]))].set(dy),), "stale", "`abs`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_holds_by_chance_is_not_told(name):
    forward, args, backward, story, words = WRONG[name]
    report = fp.verify(rule(forward, backward), *args)
    finding = report.findings[0]
    assert finding.story == story and words in finding.problem, str(report)


def test_how_likely_a_region_holds_all_that_is_wrong():
    some = np.arange(20) < 4
    assert by_chance(np.ones(20, bool), some, np.arange(20) < 10) == pytest.approx(210 / 4845)
    assert by_chance(np.ones(20, bool), some, np.arange(20) > 17) == 1.0


def test_columns_in_another_order_are_found():
    values = np.random.default_rng(0).standard_normal((3, 5))
    values[:, 3] = 0
    order = np.array([4, 2, 0, 1, 3])
    np.testing.assert_array_equal(same_columns(values[:, order], values), order)
    assert same_columns(values + 1, values) is None


# ------------------------------------------------------------------------------ no false alarms


def orthonormal(a):
    q, r = jnp.linalg.qr(a)
    return q * jnp.sign(jnp.diag(r))


def orthonormal_backward(args, q, dy):
    r, m = q.T @ args[0], -dy.T @ q
    low = jnp.tril(m, -1)
    right = dy + q @ (low + low.T + jnp.diag(jnp.diag(m)))
    return (jax.scipy.linalg.solve_triangular(r, right.T).T,)


def test_where_the_forward_pass_makes_a_step_no_number_is_asked_for():
    report = fp.verify(rule(orthonormal, orthonormal_backward), normal(5, 3))
    assert report.ok, str(report)
    assert any("a of zeros: not judged at" in note for note in report.notes), report.notes


def fixed(x, w):
    return jax.lax.fori_loop(0, 40, lambda _, z: jnp.tanh(w @ z + x), jnp.zeros_like(x))


def fixed_backward(args, y, dy):
    _, w = args
    slope = 1 - y * y
    u = jnp.linalg.solve((jnp.eye(len(y)) - slope[:, None] * w).T, dy)
    return slope * u, jnp.outer(slope * u, y)


def test_a_loop_is_at_rest_when_its_derivative_is():
    """At zeros the loop has ended before it began; its derivative takes as long as any."""
    w = 0.75 * jnp.linalg.qr(normal(3, 3))[0]
    assert fp.verify(rule(fixed, fixed_backward), jnp.array([2.0, -2.0, 1.5]), w).ok


def test_a_wide_leaf_beside_a_narrow_one_keeps_its_digits():
    def forward(x, w):
        return jnp.tanh(x @ w.astype(jnp.float32))

    def backward(cast):
        def pullback(args, y, dy):
            x, w = args
            dz = dy * (1 - y * y)
            return cast(dz @ w.astype(jnp.float32).T), (x.T @ dz).astype(w.dtype)

        return pullback

    args = normal(4, 6), normal(6, 3, seed=1).astype(jnp.bfloat16)
    assert fp.verify(rule(forward, backward(lambda g: g)), *args).ok
    rounded = backward(lambda g: g.astype(jnp.bfloat16).astype(g.dtype))
    (finding,) = fp.verify(rule(forward, rounded), *args).findings
    assert (finding.path.rpartition("/")[2], finding.story) == ("x", "precision")


def test_steps_are_looked_at_for_the_first_of_many_wrong_leaves(monkeypatch):
    """Else a search takes a minute; and what was cut is said."""
    forward = lambda x, w: jnp.tanh(x @ w) * jnp.sum(jnp.cos(x @ w))

    def backward(args, y, dy):
        wave = lambda g: jnp.sin(7 * jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape)
        return (g + g.ravel()[0] * wave(g) for g in jax.vjp(forward, *args)[1](dy))

    def cut():
        found = fp.verify(rule(forward, backward), normal(3, 2), normal(2, 2, seed=1)).findings
        return ["looked at for other leaves alone" in f.problem for f in found]

    assert cut() == [False, False]
    monkeypatch.setattr(case, "TOGETHER", 1)
    assert cut() == [False, True]
