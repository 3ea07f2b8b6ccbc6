"""A weight of exactly zero removes its term from value and gradient, whatever the term holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from tests.cases import LOSSES, Case, both, labels, normal, positive
from tests.test_backward import SLOW

ONE = fp.Sum(jnp.ones(()), jnp.zeros(()))
BAD = {"nan": np.nan, "inf": np.inf, "minus inf": -np.inf}
WITH_PARAMS = Case(
    "linear_cross_entropy-plain",
    fp.linear_cross_entropy(6, chunk=4),
    both(normal(3, 4), labels(3, classes=6), positive(3)),
)


def gradients(layer, params, x):
    """Value and all cotangents, by hand and by JAX's derivative of forward alone."""
    loss, residuals = layer.forward(params, x)
    by_hand = layer.backward(params, residuals, ONE)
    moving, rest = [(p if np.issubdtype(p.dtype, np.floating) else None) for p in x], x

    def total(params, moving):
        whole = tuple(r if m is None else m for m, r in zip(moving, rest, strict=True))
        return layer.forward(params, whole)[0].total

    return loss, by_hand, jax.grad(total, argnums=(0, 1))(params, moving)


def weighted(case):
    """Params, and an input whose first term alone has no say."""
    outputs, targets, *weights = case.x(np.random.default_rng(0))
    params = case.layer.init(jax.random.key(0), (outputs, targets))
    lead = weights[0].shape if weights else targets.shape[:1]
    w = np.linspace(0.5, 2, int(np.prod(lead)), dtype=np.float32).reshape(lead)
    w[(0,) * w.ndim] = 0
    return params, (np.array(outputs), np.array(targets), w)


@pytest.mark.parametrize("case", [*LOSSES, WITH_PARAMS], ids=lambda case: case.id)
def test_what_a_term_without_a_say_holds_changes_nothing(case):
    params, (outputs, targets, w) = weighted(case)
    run = jax.jit(lambda params, x: gradients(case.layer, params, x))
    want = run(params, (outputs, targets, w))
    at = (0,) * w.ndim
    for value in BAD.values():
        for what in ("outputs", "targets", "both"):
            x, t = outputs.copy(), targets.copy()
            if what != "targets":
                x[at] = value
            if what != "outputs":
                t[at] = value if np.issubdtype(t.dtype, np.floating) else -100
            loss, by_hand, by_jax = run(params, (x, t, w))
            np.testing.assert_array_equal(loss, want[0])
            for got, other, same in (
                (by_hand[0], by_jax[0], want[1][0]),
                (by_hand[1][:2], by_jax[1][:2], want[1][1][:2]),
            ):
                jax.tree.map(np.testing.assert_array_equal, got, same)
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(other), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            dw = by_hand[1][2]
            assert np.isfinite(dw).all()
            dw, same = (np.delete(np.ravel(d), 0) for d in (dw, want[1][1][2]))
            np.testing.assert_array_equal(dw, same)


def test_the_cotangent_of_a_weight_of_zero_is_the_term_where_there_is_one():
    """So that weights may be learned from zero."""
    w = jnp.zeros(3)
    x = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 0.0, jnp.nan]), w
    _, by_hand, by_jax = gradients(fp.mean_squared(), (), x)
    assert by_hand[1][2].tolist() == by_jax[1][2].tolist() == [1.0, 4.0, 0.0]


@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_an_example_without_a_say_leaves_a_step_as_it_is(where):
    line = fp.objective(fp.dense(1, bias=False), fp.mean_squared(), off=fp.absolute_error)
    x, y, w = np.ones((3, 1), np.float32), np.zeros((3, 1), np.float32), np.array([1.0, 1, 0])
    params = jax.tree.map(jnp.ones_like, line.init(jax.random.key(0), (x, y)))
    {"inputs": x, "targets": y}[where][2] = np.nan
    batch = jax.tree.map(jnp.asarray, (x, y, w.astype(np.float32)))
    for grad_fn in (
        fp.backprop(line),
        fp.from_loss(lambda p, b: line.forward(p, b)[0]),
        fp.microbatch(fp.backprop(line), 3),
        fp.clip_per_example(line, 2.0),
        fp.clip_per_example(fp.backprop(line), 2.0),
    ):
        train = fp.step(grad_fn, optax.sgd(0.1))
        state, metrics = train.update(train.init(params, None), batch)
        (left,) = jax.tree.leaves(state.params)
        np.testing.assert_allclose(left, [[0.8]], rtol=1e-6)
        assert metrics["loss"].mean == 1 and metrics.get("off", fp.Sum(1, 1)).mean == 1


def test_an_infinite_gradient_is_clipped_to_nothing_but_seen_where_losses_are_scaled():
    line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
    batch = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[0.0], [0.0], [jnp.inf]])
    params = jax.tree.map(jnp.ones_like, line.init(jax.random.key(0), batch))
    for grad_fn in (fp.clip_per_example(line, 3.0), fp.clip_per_example(fp.backprop(line), 3.0)):
        gradient = jax.jit(grad_fn)(params, batch)
        assert jax.tree.leaves(gradient.grads)[0].tolist() == [[5.0]]  # 2, and 8 cut to 3
        assert gradient.metrics["clipped"].total == 2 and gradient.loss == jnp.inf
        scaled = grad_fn(params, batch, None, jnp.float32(8.0))
        assert jnp.isnan(jax.tree.leaves(scaled.grads)[0]).all()
        wrong = grad_fn(params, (batch[0], batch[1] * jnp.nan))
        assert jnp.isnan(jax.tree.leaves(wrong.grads)[0]).all()


@pytest.mark.parametrize("metric", [fp.accuracy, fp.binary_accuracy, fp.absolute_error])
def test_metrics_leave_out_what_has_no_say(metric):
    outputs = np.array([[0.2, 0.9], [0.4, -0.1], [np.nan, np.inf]], np.float32)
    targets = np.array([[0, 1], [0, 1], [-7, np.nan]], np.float32)
    if metric is fp.accuracy:
        targets = np.array([1, 1, -100])
    got = metric(outputs, targets, np.array([1, 3, 0]))
    want = metric(outputs[:2], targets[:2], np.array([1, 3]))
    assert got == want and np.isfinite(got.total)


@SLOW
@pytest.mark.parametrize("case", [c for c in LOSSES if "linear" in c.id], ids=lambda case: case.id)
def test_norms_of_examples_without_a_say(case):
    """The closed forms see the same rows as the backward pass."""
    _, (outputs, targets, w) = weighted(case)
    w = np.where(np.arange(len(w)).reshape(-1, *(1,) * (w.ndim - 1)) == 0, 0, 1 + w)
    objective = fp.objective(fp.serial(), case.layer)
    run = jax.jit(fp.clip_per_example(objective, 0.1))
    params = objective.init(jax.random.key(0), (outputs, targets, w))
    want = run(params, (outputs, targets, w))
    outputs[0, ..., 0] = np.nan
    got = run(params, (outputs, targets, w))
    jax.tree.map(np.testing.assert_array_equal, got.grads, want.grads)
