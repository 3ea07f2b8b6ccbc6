"""Clipping by norms alone is the definition: each example's gradient, scaled, and summed."""

import functools
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.losses.linear_cross_entropy import LinearParams
from funprop.params.frozen import trained, with_trained
from funprop.quantities.book import squares_of, sum_of
from funprop.quantities.booked import booked, booking
from funprop.quantities.closed_form import outer_squares, sum_squares
from funprop.quantities.squared_norms import squared_norms, total
from funprop.transforms.clip_per_example import by_norms
from tests.benchmarks.harness import temporary
from tests.cases import (
    ALL,
    Case,
    both,
    build,
    labels,
    normal,
    positive,
    quickly,
    tied,
)
from tests.test_bad_input import raises


def each_gradient(objective: fp.Layer, params: Any, batch: Any, key: Any) -> Any:
    """By the definition: `jax.grad` of the loss with all weights zero but one, the same noise."""
    x, targets, *weights = batch
    n = len(jax.tree.leaves(x)[0])

    def loss(p: Any, one: Any) -> Any:
        w = one.reshape(n, *(1,) * (weights[0].ndim - 1)) * weights[0] if weights else one
        return objective.forward(with_trained(params, p), (x, targets, w), key)[0].total

    return jax.vmap(jax.grad(loss), (None, 0))(trained(params), jnp.eye(n))


def norms_of(grads: Any) -> Any:
    return jnp.sqrt(sum_squares(grads))


def clipped_sum(grads: Any, norm: Any) -> Any:
    norms = norms_of(grads)
    return jax.tree.map(
        lambda g: jnp.tensordot(jnp.minimum(1, norm / jnp.where(norms == 0, 1, norms)), g, 1), grads
    )


def check(objective: fp.Layer, params: Any, batch: Any, key: Any = None) -> None:
    """Some are clipped and some are not; both grads and count are those of the definition, by
    book-keeping and by two passes."""

    def all_of_it(params: Any, batch: Any, key: Any) -> Any:
        grads = each_gradient(objective, params, batch, key)
        norms = norms_of(grads)
        norm = jnp.sort(norms)[len(norms) // 2] * 0.999
        got = [clip(norm, budget)(params, batch, key) for budget in (0, 2**40)]
        return got, fp.backprop(objective)(params, batch, key), grads, norms, norm

    def clip(norm: Any, budget: int) -> Any:
        return functools.partial(by_norms, objective, norm, dloss=None, budget=budget)

    both_ways, plain, grads, norms, norm = quickly(all_of_it)(params, batch, key)
    for got in both_ways:
        check_one(got, plain, grads, norms, norm, batch)


def check_one(got: Any, plain: Any, grads: Any, norms: Any, norm: Any, batch: Any) -> None:
    got_grads, _ = fp.untap(got.grads)
    chex.assert_trees_all_close(got_grads, clipped_sum(grads, norm), rtol=1e-10, atol=1e-12)
    clipped = got.metrics.pop("clipped")
    n = len(norms)
    counted = int((np.asarray(batch[2]).reshape(n, -1) != 0).any(1).sum()) if batch[2:] else n
    assert clipped == (int((norms > norm).sum()), counted)  # padding, of weight zero, is no example
    assert clipped.total > 0 and (norms <= norm).any()
    chex.assert_trees_all_close(got[1:4], plain[1:4], rtol=1e-6)
    chex.assert_trees_all_close(*(jax.tree.leaves(g.recorded) for g in (got, plain)), rtol=1e-12)


# Layers that have params and treat each row of their first axis alone.
TRAINED = [
    case
    for case in ALL
    if case.id != "dense-one-axis"
    and not case.layer.mixes
    and jax.tree.leaves(
        jax.eval_shape(case.layer.init, jax.random.key(0), case.x(np.random.default_rng(0)))
    )
]
OBJECTIVES = {"objective", "gpt", "llama", "own-loss", "two-losses"}
OBJECTIVES |= {"tied", "tied-cast", "tied-frozen", "tied-low-rank"}


def own_loss() -> fp.Layer:
    """A user's loss, with params: no closed form knows of it."""
    return fp.from_function(
        lambda key, x: jnp.ones((), x[0].dtype),
        lambda a, x: fp.Sum((x[2] * (a * x[0][:, 0] - x[1]) ** 2).sum(), x[2].sum()),
    )


def draws() -> fp.Layer:
    """A user's layer that has params and draws from its key for the whole batch at once."""
    return fp.from_function(
        lambda key, x: jnp.ones(x.shape[-1:], x.dtype),
        lambda a, x, key: (
            a[None] * x if key is None else a[None] * x * jax.random.normal(key, x.shape, x.dtype)
        ),
    )


def words(*between: fp.Layer) -> fp.Layer:
    """A model of words with next to nothing between the two uses of the table."""
    return fp.language_model(fp.serial(fp.embedding(6, 3), *between, fp.rms_norm()), 6)


def two_losses() -> fp.Layer:
    """A user's objective, of two losses on two dense layers, the second one first."""
    parts = fp.objective(fp.dense(1), fp.mean_squared()), fp.objective(fp.dense(1), fp.huber(0.1))

    def over(*parts: fp.Layer) -> fp.Layer:
        def forward(params: Any, x: Any, key: Any = None) -> Any:
            both = [part.forward(p, x, key) for part, p in zip(parts, params, strict=True)]
            return fp.Sum(both[0][0].total + both[1][0].total, both[0][0].weight), tuple(
                kept for _, kept in both
            )

        def backward(params: Any, residuals: Any, dy: Any) -> Any:
            zipped = zip(parts, params, residuals, strict=True)
            return tuple(part.backward(p, kept, dy)[0] for part, p, kept in zipped), None

        def init(key: Any, x: Any) -> Any:
            return tuple(part.init(key, x) for part in parts)

        return fp.Layer(init, forward, backward, "two", parts, over)

    return over(*parts)


def kept() -> fp.Layer:
    inside = fp.serial(fp.dense(5), fp.tanh(), fp.dense(5), fp.layer_norm())
    return fp.residual(fp.remat(fp.named("inside", inside), keep=("dense_1", "layer_norm")))


EXTRA = [
    Case("two-losses", two_losses(), both(normal(4, 3), normal(4, 1), positive(4))),
    Case("dense-long", fp.dense(3), normal(3, 5, 2)),  # the gradient is made
    Case("dense-gram", fp.dense(9), normal(3, 2, 8)),  # it is not
    Case("freeze", fp.freeze(fp.serial(fp.dense(4), fp.layer_norm()), "dense"), normal(3, 4)),
    Case(
        "random",
        fp.serial(fp.dense(5), fp.dropout(0.5), draws(), fp.tap(fp.dense(2), backward=jnp.sum)),
        normal(4, 3),
        key=True,
    ),
    Case(
        "reparam-random",
        fp.serial(tied(), fp.dropout(0.3), fp.remat(tied()), fp.remat(fp.dense(3))),
        normal(4, 5),
        key=True,
    ),
    Case(
        "reparam-inside-reparam",
        fp.reparam(
            fp.serial(fp.repeat(tied(), 2), fp.layer_norm(bias=False)),
            expand=lambda p: (p.repeat, fp.NormParams(p.repeat[0, :, 0], None)),
        ),
        normal(4, 5),
    ),
    Case("tied", words(), both(labels(3, 5, classes=6), labels(3, 5, classes=6), positive(3, 5))),
    Case(  # what is trained of a tied model is a part of it
        "tied-frozen",
        fp.freeze(words(fp.dense(3), fp.dense(3)), "dense_0"),
        both(labels(3, 5, classes=6), labels(3, 5, classes=6), positive(3, 5)),
    ),
    Case(
        "tied-low-rank",
        fp.low_rank(words(fp.dense(3), fp.dense(3)), "dense_1", 2, train="rms_norm"),
        both(labels(3, 5, classes=6), labels(3, 5, classes=6), positive(3, 5)),
    ),
    Case(
        "tied-cast",
        fp.cast(words(), float),
        both(labels(3, 5, classes=6), labels(3, 5, classes=6), positive(3, 5)),
    ),
    Case(  # what is kept in the copies is found in its place, also where two keep it
        "kept",
        fp.repeat(fp.remat(fp.serial(kept(), fp.dense(5)), keep=("*/dense_1", "dense")), 2),
        normal(4, 5),
    ),
    Case(
        "own-loss",
        fp.objective(fp.dense(1), own_loss()),
        both(normal(4, 3), normal(4), positive(4)),
    ),
]
FAST = {
    *("dense-gram", "embedding", "linear_cross_entropy-tokens", "random"),
    *("freeze", "kept", "tied", "tied-frozen", "tied-low-rank"),
}


def as_objective(case: Case) -> Any:
    """`(objective, params, batch, key)`: with a loss after it where it is none yet."""
    params, x, key = build(case, jnp.float64)
    if case.id in OBJECTIVES:
        return case.layer, params, x, key
    y = jax.eval_shape(case.layer.forward, params, x, key)[0]
    if isinstance(y, fp.Sum):
        objective = fp.objective(fp.serial(), case.layer)
        return objective, _params_of(objective, x, params), x, key
    if isinstance(y, tuple):  # a sequence and its lengths
        targets = jnp.ones(y[0].shape), y[1]
        own = fp.objective(fp.serial(case.layer, fp.last_step()), fp.mean_squared())
        batch = x, jnp.ones((len(targets[0]), y[0].shape[-1]))
        return own, _params_of(own, batch, params), batch, key
    targets = jax.random.normal(jax.random.key(5), y.shape, y.dtype)
    weights = jnp.linspace(0, 2, len(targets))  # of the first example zero, as padding has
    return fp.objective(case.layer, fp.mean_squared()), params, (x, targets, weights), key


def _params_of(objective: fp.Layer, batch: Any, params: Any) -> Any:
    """The objective's params, with the leaves of those of the one part in it that has any."""
    tree = jax.tree.structure(jax.eval_shape(objective.init, jax.random.key(0), batch))
    return tree.unflatten(jax.tree.leaves(params))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case.id in FAST else [pytest.mark.slow])
        for case in TRAINED + EXTRA
    ],
    ids=lambda case: case.id,
)
def test_equals_the_definition(case, x64):
    check(*as_objective(case))


LINE = fp.objective(
    fp.serial(fp.dense(4), fp.tanh(), fp.dense(3)), fp.softmax_cross_entropy(), right=fp.accuracy
)


CLIPPED = quickly(functools.partial(by_norms, LINE))  # of any norm


def line(n: int = 7, dtype: Any = jnp.float64) -> Any:
    """`(params, batch)` of `LINE`."""
    batch = both(normal(n, 5), labels(n, classes=3), positive(n))(np.random.default_rng(0))
    batch = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, batch)
    return LINE.init(jax.random.key(0), batch), batch


def test_parts_of_a_batch_add_up(x64):
    """Clipped as it is split: `microbatch` outside is exact, the count of the clipped too."""
    params, batch = line()
    clip = fp.clip_per_example(LINE, 0.3)
    got, want = quickly(lambda *a: (fp.microbatch(clip, 3)(*a), clip(*a)))(params, batch)
    chex.assert_trees_all_close(got.grads, want.grads, rtol=1e-12)
    chex.assert_trees_all_close(got.metrics, want.metrics, rtol=1e-6)


def test_any_grad_fn_is_clipped_by_rows(x64):
    """A loss of JAX, and an objective that is one leaf, give what the norms alone give."""
    params, batch = line()
    loss = fp.from_loss(lambda p, b: LINE.forward(p, b)[0])

    def all_of_it(params: Any, batch: Any) -> Any:
        forms = LINE, loss, fp.autodiff(LINE), fp.backprop(LINE)
        return [fp.clip_per_example(form, 0.3)(params, batch) for form in forms]

    want, *others = quickly(all_of_it)(params, batch)
    for got in others:
        chex.assert_trees_all_close(got[:3], want[:3], rtol=1e-10)
        chex.assert_trees_all_close(got.metrics["clipped"], want.metrics["clipped"])


def test_a_huge_norm_clips_nothing_and_padding_adds_nothing(x64):
    params, (x, t, w) = line()
    plain = quickly(fp.backprop(LINE))(params, (x, t, w))
    got = CLIPPED(1e9, params, (x, t, w), None, None)
    chex.assert_trees_all_close(got.grads, plain.grads, rtol=1e-12)
    assert got.metrics["clipped"].total == 0
    padded = CLIPPED(0.3, params, (x, t, w.at[3:].set(0)), None, None)
    fewer = CLIPPED(0.3, params, (x[:3], t[:3], w[:3]), None, None)
    chex.assert_trees_all_close(padded.grads, fewer.grads, rtol=1e-12)


@pytest.mark.parametrize("form", [LINE, fp.backprop(LINE)], ids=["norms", "rows"])
def test_the_cotangent_of_the_loss_scales_what_was_clipped(form, x64):
    """And in 16 bits the gradients do not vanish before they are scaled."""
    params, batch = line()
    clip = quickly(fp.clip_per_example(form, 0.3, noise=0.5))
    key = jax.random.key(1)
    one, scaled = clip(params, batch, key), clip(params, batch, key, 1024.0)
    chex.assert_trees_all_close(
        scaled.grads, jax.tree.map(lambda g: 1024 * g, one.grads), rtol=1e-10
    )
    assert scaled.metrics["clipped"] == one.metrics["clipped"] and scaled.loss == one.loss


def test_in_16_bits_tiny_gradients_are_clipped_under_a_scaled_loss():
    model = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
    params = fp.DenseParams(jnp.ones((1, 1), jnp.float16), None)
    batch = jnp.full((2, 1), 1e-4, jnp.float16), jnp.zeros((2, 1), jnp.float16)
    clip = fp.clip_per_example(model, 1e-8)  # of 2e-8, less than the least number there is
    assert (clip(params, batch).grads.w == 0).all()
    scaled = clip(params, batch, None, 2.0**15).grads.w
    assert abs(float(scaled[0, 0]) / 2**15 / 2e-8 - 1) < 0.01


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9)
)
def test_both_forms_of_a_weight_are_its_norm(b, t, i, o, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x, dy = (jnp.asarray(rng.standard_normal((b, t, size))) for size in (i, o))
        want = ((x.swapaxes(1, 2) @ dy) ** 2).sum((1, 2))
        np.testing.assert_allclose(outer_squares(x, dy), want, rtol=1e-12, atol=1e-14)


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0, 9))
def test_no_example_moves_the_sum_by_more_than_the_norm(norm, size):
    with jax.enable_x64(True):
        params, batch = line()
        params = jax.tree.map(lambda p: p * size, params)
        whole = CLIPPED(norm, params, batch, None, None).grads
        less = CLIPPED(norm, params, (*batch[:2], batch[2].at[0].set(0)), None, None).grads
        moved = jax.tree.map(lambda a, b: a - b, whole, less)
        assert sum(float((d**2).sum()) for d in jax.tree.leaves(moved)) ** 0.5 <= norm * (1 + 1e-9)


def test_noise_is_normal_of_its_deviation_drawn_once_from_the_key():
    model = fp.objective(fp.dense(300, bias=False), fp.mean_squared())
    batch = jnp.ones((2, 300)), jnp.zeros((2, 300))
    params = model.init(jax.random.key(0), batch)
    clean = fp.clip_per_example(model, 2.0)(params, batch)
    noisy = fp.clip_per_example(model, 2.0, noise=1.5)
    a, again, b = (noisy(params, batch, jax.random.key(i)) for i in (0, 0, 1))
    noise = a.grads.w - clean.grads.w
    assert abs(float(noise.std()) / 3.0 - 1) < 0.02 and abs(float(noise.mean())) < 0.05
    assert abs(float((noise**4).mean()) / 3.0**4 - 3) < 0.2  # as the normal's
    chex.assert_trees_all_equal(a, again)
    assert abs(float(jnp.corrcoef(noise.ravel(), (b.grads.w - clean.grads.w).ravel())[0, 1])) < 0.02
    assert repr(noisy) == "noise(clip_per_example(grad_fn))"


def test_a_step_trains_on_it():
    train = fp.step(fp.clip_per_example(LINE, 0.3, noise=0.01), optax.sgd(0.5))
    params, batch = line(30, jnp.float32)
    state = train.init(params, jax.random.key(0))
    metrics = {}
    for _ in range(20):
        state, metrics = train.update(state, batch)
    assert 0 <= metrics["clipped"].mean <= 1 and jnp.isfinite(metrics["loss"].mean)


def test_the_budget_is_for_what_is_kept_and_taps_see_the_clipped_cotangents():
    """With room for it `booking` is a layer, else there are two passes; so where `remat` keeps
    less than the sum is made of, and where a `tap` watches what book-keeping has not."""
    params, batch = line(dtype=jnp.float32)
    kept = 4 * 7 * (4 + 3 + 2)  # `dy` of both layers, and their squares
    assert booking(LINE, kept, params, batch, None) is not None
    assert booking(LINE, kept - 1, params, batch, None) is None
    model = fp.repeat(fp.serial(fp.dense(5), fp.tanh(), fp.dense(5), fp.tanh()), 8)
    for rewrite, once in ((lambda layer: layer, True), (fp.remat, False)):
        deep = fp.objective(fp.map_layers(lambda leaf: leaf, rewrite(model)), fp.mean_squared())
        data = batch[0], batch[0]
        own = deep.init(jax.random.key(0), data)
        assert (booking(deep, None, own, data, None) is not None) == once
    ids = jax.ShapeDtypeStruct((32, 64), jnp.int32)
    gpt = fp.language_model(fp.gpt(8192, features=256, depth=6, heads=8, longest=64), 8192)
    own = jax.eval_shape(gpt.init, jax.random.key(0), (ids, ids))
    assert booking(gpt, None, own, (ids, ids), None) is not None  # its blocks run norms again
    watched = fp.tap(LINE, "*dense_0", backward=lambda dy: (dy**2).sum())
    assert booking(watched, 2**40, params, batch, None) is None
    got, wide = (fp.clip_per_example(watched, n)(params, batch) for n in (0.1, 1e9))
    a, b = (fp.untap(g.grads)[1] for g in (got, wide))
    assert 0 < jax.tree.leaves(a)[0] < jax.tree.leaves(b)[0]


@pytest.mark.parametrize("budget", [0, 2**40])
@pytest.mark.parametrize("t", [1, 9])  # places an example: the gradients are kept, or `dy`
def test_an_example_of_infinite_norm_adds_nothing(budget, t):
    model = fp.objective(fp.dense(3, bias=False), fp.mean_squared())
    x = jnp.ones((3, t, 3)).at[1].set(1e25)
    params = model.init(jax.random.key(0), (x, x))
    clip = jax.jit(fp.clip_per_example(model, 1.0, budget=budget))
    some = x[jnp.array([0, 2])]
    got, want = clip(params, (x, 0 * x)), clip(params, (some, 0 * some))
    chex.assert_trees_all_close(got.grads, want.grads, rtol=1e-6)


@pytest.mark.parametrize("how", [{}, {"chunk": 4}, {"rows": 2}], ids=str)
@pytest.mark.parametrize("t", [2, 6])
def test_every_form_of_the_head_has_the_sum_of_the_definition(how, t, x64):
    """Logits kept, each example's gradient, and neither; with biases, weights and smoothing."""
    head = fp.linear_cross_entropy(9, bias=True, smoothing=0.1, z_loss=0.01, **how)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, t, 4)))
    batch = x, jnp.asarray(rng.integers(0, 9, (4, t))), jnp.asarray(rng.random((4, t)))
    params = LinearParams(*(jnp.asarray(rng.normal(size=s)) for s in ((9, 4), (9,))))
    factors = jnp.asarray([0.0, 0.5, 1.0, 2.0])

    def both_rooms(params: Any, batch: Any) -> Any:
        def once(room: int) -> Any:
            layer = booked(head, room)
            loss, kept = layer.forward(params, batch)
            found, dx = layer.backward(params, kept, fp.Sum(3.0 * jnp.ones_like(loss.total), 0.0))
            return squares_of(found), sum_of(head, params, kept, found, factors), dx[0]

        def loss(params: Any, one: Any) -> Any:
            return 3 * head.forward(params, (*batch[:2], one[:, None] * batch[2]))[0].total

        each = jax.vmap(jax.grad(loss), (None, 0))(params, jnp.eye(4))
        plain = head.backward(params, head.forward(params, batch)[1], fp.Sum(jnp.array(3.0), 0.0))
        return [once(0), once(2**40)], each, plain[1][0]

    booked_ways, each, dx = quickly(both_rooms)(params, batch)
    want = jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), each)
    for got in booked_ways:
        chex.assert_trees_all_close(got, (sum_squares(each), want, dx), rtol=1e-10, atol=1e-13)


def test_no_gradient_of_an_example_is_in_memory():
    """64 examples of a gradient of 256 KiB; what is held is less than three of them."""
    model = fp.objective(fp.serial(fp.dense(256), fp.tanh(), fp.dense(1)), fp.mean_squared())
    batch = jnp.ones((64, 256)), jnp.ones((64, 1))
    params = model.init(jax.random.key(0), batch)
    assert temporary(jax.jit(fp.clip_per_example(model, 1.0)), params, batch) < 3 * 4 * 256 * 256


def test_squared_norms_is_a_rewrite_like_any_other(x64):
    """Through a scan its squares come stacked, the examples first."""
    model = fp.repeat(fp.residual(fp.serial(fp.dense(3), fp.tanh())), 4)
    x = normal(5, 3)(np.random.default_rng(0)).astype(jnp.float64)
    params = model.init(jax.random.key(0), x)
    y, kept = squared_norms(model).forward(params, x)
    found, dx = squared_norms(model).backward(params, kept, jnp.ones_like(y))
    assert found.dense.shape == (5, 4) and total(found).shape == (5,)
    chex.assert_trees_all_close(
        dx, model.backward(params, model.forward(params, x)[1], y * 0 + 1)[1]
    )


@pytest.mark.parametrize("form", [LINE, fp.backprop(LINE)], ids=["norms", "rows"])
def test_an_empty_batch_has_a_gradient_of_zero(form):
    params, batch = line(dtype=jnp.float32)
    found = fp.clip_per_example(form, 1.0)(params, jax.tree.map(lambda leaf: leaf[:0], batch))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(found[:4]))


def test_refusals():
    clip, batch = fp.clip_per_example, line(4, jnp.float32)[1]
    params = line(4, jnp.float32)[0]
    for norm in (0, -1.0, float("inf"), float("nan")):
        raises(
            ValueError,
            f"norm must be positive and finite, got {norm}",
            lambda norm=norm: clip(LINE, norm),
        )
    raises(
        ValueError,
        "noise must be at least 0 and finite, got -1.0",
        lambda: clip(LINE, 1.0, noise=-1.0),
    )
    raises(
        TypeError,
        "objective must be a layer or a grad_fn, got int",
        lambda: clip(cast(Any, 3), 1.0),
    )
    raises(
        ValueError,
        "microbatch must be outside clip_per_example, microbatch(clip_per_example(...)): it must "
        "be clipped example by example, before they are summed",
        lambda: clip(fp.microbatch(fp.backprop(LINE), 2), 1.0),
    )
    with pytest.raises(ValueError, match="noise must be outside microbatch"):
        fp.microbatch(clip(LINE, 1.0, noise=1.0), 2)
    raises(
        ValueError,
        "key must be given to draw the noise from, got none",
        lambda: clip(LINE, 1.0, noise=1.0)(params, batch),
    )
    raises(
        ValueError,
        "batch must have leaves of one length, got shapes [(4, 5), (3,), (4,)]",
        lambda: clip(LINE, 1.0)(params, (batch[0], batch[1][:3], batch[2])),
    )


def test_batch_statistics_are_refused_by_the_name_of_the_layer():
    model = fp.serial(fp.dense(3), fp.residual(fp.serial(fp.batch_norm(), fp.relu())))
    objective = fp.objective(model, fp.mean_squared())
    batch = jnp.ones((4, 2)), jnp.ones((4, 3))
    params = objective.init(jax.random.key(0), batch)
    clip = fp.clip_per_example(objective, 1.0)
    assert jnp.isfinite(clip(params, batch).loss)  # without a key it is a function of each alone
    raises(
        ValueError,
        "residual/batch_norm mixes the examples of a batch in training, which "
        "clip_per_example takes apart: use group_norm or layer_norm",
        lambda: clip(params, batch, jax.random.key(1)),
    )
    fixed = fp.freeze(objective, "*batch_norm")  # takes the statistics that it has
    own = fp.frozen(objective, "*batch_norm", params)
    assert jnp.isfinite(fp.clip_per_example(fixed, 1.0)(own, batch, jax.random.key(1)).loss)
