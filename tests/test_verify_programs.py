"""How much `verify` compiles, which is what takes its time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.verify.truth.programs import MANY, OPTIONS, jit_of
from funprop.verify.truth.same import surely_same
from funprop.verify.truth.ties import may_have_kinks

rng = np.random.default_rng(0)
X = jnp.asarray(rng.standard_normal((6, 5)), jnp.float32)
W = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)


def swish(factor):
    @jax.custom_vjp
    def product(x, w):
        h = x @ w
        return h * jax.nn.sigmoid(h)

    def backward(kept, dy):
        x, w = kept
        h = x @ w
        s = jax.nn.sigmoid(h)
        dh = dy * (s + factor * h * s * (1 - s))
        return dh @ w.T, x.T @ dh

    product.defvjp(lambda x, w: (product(x, w), (x, w)), backward)
    return product


@pytest.fixture
def compiled():
    """The programs that were compiled, by the seconds that it took."""
    seconds = []

    def listener(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seconds
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize(("factor", "story", "programs"), [(1.0, "", 1), (0.5, "factor", 1)])
def test_few_programs_are_compiled(factor, story, programs, compiled):
    fp.verify(swish(factor), X, W)  # what JAX itself compiles once
    compiled.clear()
    report = fp.verify(swish(factor), X, W)
    assert all(
        story in check.story and bool(check.problem) == bool(story) for check in report.checks
    )
    assert 0 < len(compiled) <= programs


@pytest.mark.parametrize(
    ("lost", "ok", "programs"), [(0, True, 1), (16, True, 2), (1000, False, 2)]
)
def test_what_rounds_otherwise_is_judged_as_a_users_program_rounds(lost, ok, programs, compiled):
    def lossy(dx):
        size = lost * jnp.max(jnp.abs(dx)) + 0 * dx
        return jnp.stack([dx, size, -size]).sum(0)

    square = jax.custom_vjp(jnp.square)
    square.defvjp(lambda x: (x * x, x), lambda x, dy: (lossy(2 * x * dy),))
    for _ in range(2):
        compiled.clear()
        assert fp.verify(square, X).ok is ok
    assert len(compiled) == programs


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: jnp.tanh(x @ x.T).sum() / (1 + x * x), False),
        (lambda x: jax.lax.scan(lambda c, row: (c * jnp.sin(row), c), x[0], x)[1], False),
        (lambda x: jnp.where(jnp.arange(3) > 1, x, 2 * x), False),  # by place, not by value
        (jax.nn.relu, True),
        (jnp.abs, True),
        (lambda x: jnp.where(x > 0, x, 0.5 * x), True),
        (lambda x: x * x.astype(int).astype(x.dtype), True),
        (lambda x: jax.lax.scan(lambda c, row: (jnp.maximum(c, row), c), x[0], x)[1], True),
        (lambda x: jax.nn.softmax(x), True),
    ],
)
def test_kinks_are_looked_for_where_there_may_be_one(function, expected):
    assert may_have_kinks(jax.make_jaxpr(function)(jnp.ones((3, 3)))) == expected


def test_options_that_this_version_does_not_have_are_left_out(monkeypatch):
    from funprop.verify.truth import programs

    unknown = {"xla_no_such_option": True, "xla_backend_optimization_level": 0}
    monkeypatch.setattr(programs, "OPTIONS", unknown)
    programs.quick_options.cache_clear()
    try:
        assert programs.quick_options() == {"xla_backend_optimization_level": 0}
        assert jit_of(3)(jnp.sin)(0.0) == 0
    finally:
        programs.quick_options.cache_clear()
    assert jit_of(MANY + 1) is jax.jit
    assert "xla_backend_optimization_level" in OPTIONS


def test_traces_are_the_same_where_nothing_can_differ():
    draws = np.random.default_rng(0)

    def trace(function):
        return jax.make_jaxpr(lambda x: function(x))(jnp.ones(3))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (jax.nn.relu(c) * 2, None), x, length=3)[0]

    masked = lambda x: jnp.where(x > 0, x, np.arange(3.0))
    for function, args in ((scanned, [jnp.ones(3)]), (masked, [jnp.ones(3)]), (swish(1.0), [X, W])):
        one, two = (jax.make_jaxpr(lambda *v, f=function: f(*v))(*args) for _ in range(2))
        assert surely_same(one, two)
    assert not surely_same(trace(jnp.sin), trace(jnp.cos))
    assert not surely_same(trace(lambda x: x - 2 * x), trace(lambda x: 2 * x - x))
    for function in (
        lambda x: x + draws.standard_normal(3),
        lambda x: x * float(draws.standard_normal()),
        lambda x: jax.pure_callback(np.sin, x, x),
        lambda x: jax.lax.rng_uniform(0.0, 1.0, (3,)) + x,
    ):
        assert not surely_same(trace(function), trace(function))
