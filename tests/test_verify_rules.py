"""`verify_rules` finds every custom rule that a function reaches, wherever it is called."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funprop as fp
from tests.test_verify import normal, rule

pytestmark = pytest.mark.usefixtures("any_ranks")


def cube(x):
    return x * x * x


right = rule(cube, lambda a, y, dy: (3 * a[0] ** 2 * dy,))
wrong = rule(cube, lambda a, y, dy: (2 * a[0] ** 2 * dy,))


@jax.custom_jvp
def by_jvp(x):
    return jnp.sin(x)


by_jvp.defjvp(lambda primals, tangents: (by_jvp(*primals), 1.01 * jnp.cos(*primals) * tangents[0]))


def under_scan(f, x):
    return lax.scan(lambda c, v: (c + f(v).sum(), f(v)), jnp.zeros(()), x)[0]


def under_shard_map(f, x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=jax.P("i"), out_specs=jax.P("i"))(x).sum()


def under_a_train_step(f, x):
    w = jnp.ones((x.shape[1], 2), x.dtype)
    return w - 0.1 * jax.grad(lambda w: f(x @ w).sum())(w)


PLACES = {
    "called": lambda f, x: f(x).sum(),
    "jit": lambda f, x: jax.jit(f)(x).sum(),
    "scan": under_scan,
    "cond": lambda f, x: lax.cond(x[0, 0] < 9, f, lambda x: x, x).sum(),
    "while": lambda f, x: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, f(s[1])), (0, x))[1],
    "remat": lambda f, x: jax.checkpoint(f)(x).sum(),
    "vmap": lambda f, x: jax.vmap(f)(x).sum(),
    "shard_map": under_shard_map,
    "grad": under_a_train_step,
    "grad under jit": lambda f, x: jax.jit(functools.partial(under_a_train_step, f))(x),
    "another rule": lambda f, x: rule(lambda x: f(x) + 1, lambda a, y, dy: (3 * a[0] ** 2 * dy,))(x),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_rule_is_found_wherever_it_is_called(place):
    run = functools.partial(PLACES[place])
    report = fp.verify_rules(functools.partial(run, wrong), normal(3, 4))
    found = [f for f in report.findings if f.layer == "cube"]
    assert found, str(report)
    assert found[0].story == "factor"
    assert "test_verify_rules.py" in " ".join(report.notes)
    assert fp.verify_rules(functools.partial(run, right), normal(3, 4)).ok


def test_a_custom_jvp_is_judged_too():
    (finding,) = fp.verify_rules(lambda x: by_jvp(x).sum(), normal(3)).findings
    assert finding.path.startswith("by_jvp/")
    assert finding.story == "factor"


def test_a_rule_is_judged_on_the_inputs_that_it_gets():
    """Right for positive numbers only; below an exponential it gets nothing else."""
    positive = rule(lambda x: jnp.abs(x), lambda a, y, dy: (dy,))
    assert fp.verify_rules(lambda x: positive(jnp.exp(x)).sum(), normal(3, 4)).ok
    assert not fp.verify_rules(lambda x: positive(x).sum(), normal(3, 4)).ok


def test_the_rules_of_a_flax_and_an_equinox_model():
    import equinox as eqx
    from flax import linen

    model: Any = linen.Sequential([linen.Dense(4), linen.relu, linen.LayerNorm(), linen.gelu])
    x = normal(3, 5)
    params = model.init(jax.random.key(0), x)
    report = fp.verify_rules(lambda params: jnp.sum(model.apply(params, x)), params)
    assert report.ok, str(report)
    assert any(check.layer == "relu" for check in report.checks)
    mlp = eqx.nn.MLP(5, 2, 8, 1, key=jax.random.key(0))
    weights, static = eqx.partition(mlp, eqx.is_array)
    loss = lambda weights: jax.vmap(eqx.combine(weights, static))(x).sum()
    report = fp.verify_rules(loss, weights)
    assert report.ok, str(report)
    assert report.checks


def wrapped_by_equinox_vjp(x):
    import equinox as eqx

    square = eqx.filter_custom_vjp(lambda x: x * x)
    square.def_fwd(lambda perturbed, x: (x * x, x))
    square.def_bwd(lambda x, dy, perturbed, _: 1.5 * x * dy)
    return square(x)


def wrapped_by_equinox_jvp(x):
    import equinox as eqx

    square = eqx.filter_custom_jvp(lambda x: x * x)
    square.def_jvp(lambda p, t: (p[0] * p[0], 1.5 * p[0] * t[0]))
    return square(x)


def wrapped_by_jax(x):
    return jax.custom_gradient(lambda x: (x * x, lambda dy: (1.5 * x * dy,)))(x)


def given_to_a_function_of_jax(x):
    tanh = jax.custom_vjp(jnp.tanh)
    tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, dy: (dy * jnp.cos(x),))
    return tanh(x)


@pytest.mark.parametrize(
    "function",
    [
        wrapped_by_equinox_vjp,
        wrapped_by_equinox_jvp,
        wrapped_by_jax,
        given_to_a_function_of_jax,
    ],
)
def test_a_rule_that_a_library_wraps_stands_where_people_wrote_it(function):
    (finding,) = fp.verify_rules(function, normal(3)).findings
    assert finding.source.rpartition(":")[0].endswith("test_verify_rules.py"), finding.source
    assert not any(inside in finding.path for inside in ("fn_wrap", "dynamic", "wrapped_fun"))


def made_by_jvp(factor, by_default=None):
    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda p, t, f=by_default: (p[0] * p[0], (f or factor) * p[0] * t[0]))
    return square


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return rule(lambda x: x * x, lambda a, y, dy: (self.factor * a[0] * dy,))(x)

    def backward(self, args, y, dy):
        return (self.factor * args[0] * dy,)


@pytest.mark.parametrize(
    "made",
    [
        lambda f: rule(lambda x: x * x, lambda a, y, dy: (f * a[0] * dy,)),
        made_by_jvp,
        lambda f: made_by_jvp(2.0, f),
        Scaled,
        lambda f: rule(lambda x: x * x, Scaled(f).backward),
    ],
    ids=["custom_vjp", "custom_jvp", "a default", "an object", "a method"],
)
def test_rules_of_one_name_on_the_same_inputs_are_told_apart(made):
    among = [made(2.0), made(2.0), made(2.5), *(made(2.0) for _ in range(5))]
    report = fp.verify_rules(lambda x: sum(f(x) for f in among), normal(3))
    assert [f.story for f in report.findings] == ["factor"], str(report)
    assert sum("calls" in note for note in report.notes) == 1, str(report)  # the right ones are one


@pytest.mark.parametrize(
    ("function", "args", "point"),
    [
        (lambda x: lax.cond(x.sum() > 50, wrong, right, x), (normal(3),), "numbers"),
        (lambda x, i: lax.switch(i, [jnp.sin, right, wrong], x), (normal(3), jnp.int32(0)), "i 2"),
        (
            lambda x: lax.cond(x[0] > 0, jnp.sin, wrong, x),
            (jnp.float32([1, -1, 2.5]),),
            "x of zeros",
        ),
    ],
    ids=["cond", "switch", "zeros first"],
)
def test_a_rule_in_a_branch_that_the_arguments_do_not_take(function, args, point):
    (finding,) = (report := fp.verify_rules(function, *args)).findings
    assert finding.story == "factor"
    assert f"reached only with {point}" in str(report)


def test_a_rule_that_no_arguments_reach_is_said_not_to_be_judged():
    never = lambda x: lax.fori_loop(0, 2, lambda i, v: lax.cond(i > 5, wrong, jnp.sin, v), x)
    report = fp.verify_rules(never, normal(3))
    assert report.ok and "no arguments that were tried reach it" in str(report)


def test_no_rule_is_said_to_be_none():
    report = fp.verify_rules(lambda x: (x * x).sum(), normal(3))
    assert report.ok
    assert report.notes == ("no custom rule is reached",)


def test_looking_for_rules_leaves_jax_as_it_was():
    before = jax.custom_vjp.__call__, jax.custom_jvp.__call__
    fp.verify_rules(lambda x: right(x).sum(), normal(3))
    assert (jax.custom_vjp.__call__, jax.custom_jvp.__call__) == before
    np.testing.assert_allclose(jax.grad(lambda x: right(x))(2.0), 12.0)
