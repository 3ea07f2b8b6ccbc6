"""Derivatives of any kind and order go through the hand-written backward."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.params.frozen import trained, with_trained
from tests.cases import ALL, Case, build, normal, quickly

SPREAD = ("dense", "conv", "layer_norm", "dropout", "max_pool", "repeat-random")
SPREAD += ("reparam", "remat", "objective", "softmax_cross_entropy")
CASES: list[Any] = [c if c.id in SPREAD else pytest.param(c, marks=pytest.mark.slow) for c in ALL]
WATCHED = fp.tap(fp.serial(fp.dense(3), fp.tanh()), "*", backward=jnp.sum)
CASES += [Case("tap-cotangents", WATCHED, normal(4, 5))]  # what it sees is no part of a derivative


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def of_floats(function, params, x):
    """`function` from the floats of params and input to those of its output, and these."""
    leaves, tree = jax.tree.flatten((trained(params), x))
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def flat(*values):
        new = list(leaves)
        for i, value in zip(places, values, strict=True):
            new[i] = value
        part, x = tree.unflatten(new)
        ys = jax.tree.leaves(function(with_trained(params, part), x))
        return [y for y in ys if is_float(y)]

    return flat, tuple(leaves[i] for i in places)


def derivatives(function, params, x):
    """A tangent, and Hessian-vector products by each of the ways there are."""
    flat, at = of_floats(function, params, x)
    if not at:
        return []
    rng = np.random.default_rng(3)
    v, w = (tuple(jnp.asarray(rng.standard_normal(a.shape)) for a in at) for _ in range(2))

    def scalar(*at):
        return sum((jnp.sin(y).sum() for y in flat(*at)), jnp.zeros(()))

    def tangent(*at):
        return jax.jvp(flat, at, v)[1]

    every = tuple(range(len(at)))
    along = jax.grad(
        lambda *at: sum((jnp.cos(d).sum() for d in tangent(*at)), jnp.zeros(())), every
    )
    return quickly(
        lambda *at: (
            tangent(*at),
            jax.linearize(flat, *at)[1](*v),
            jax.jvp(jax.grad(scalar, every), at, w)[1],
            along(*at),
            jax.jvp(tangent, at, w)[1],
        )
    )(*at)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_way_gives_what_autodiff_gives(case, x64):
    params, x, key = build(case, jnp.float64)
    function = fp.as_function(case.layer)
    if case.id == "offload":  # JAX has no second derivative of a move to the host
        with pytest.raises(ValueError, match="<host>"):
            derivatives(lambda params, x: function(params, x, key), params, x)
        return
    got = derivatives(lambda params, x: function(params, x, key), params, x)
    want = derivatives(lambda params, x: case.layer.forward(params, x, key)[0], params, x)
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_layer_is_right_when_it_is_differentiated_again(case, x64):
    params, x, key = build(case, jnp.float64)
    report = fp.verify_second_order(case.layer, params, x, key=key)
    report.raise_if_wrong()
    # JAX has no second derivative of a move to the host, and says so: not a wrong number.
    assert report.checks or case.id in ("reshape-integers", "offload")


def scaled(backward):
    """A wrong rule, so that it shows where it was used: the derivative is 100 times too large."""
    forward = lambda params, x: (jnp.sin(x), x)
    return fp.as_function(fp.layer(forward=forward, backward=backward, name="scaled"))


def test_the_rule_is_used_at_every_order_and_below_every_transform():
    rule = scaled(lambda params, x, dy: ((), 100 * jnp.cos(x) * dy))
    f = functools.partial(rule, ())
    x = jnp.array(0.3)
    first, second = 100 * jnp.cos(x), -100 * jnp.sin(x)
    for way in (jax.grad, jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(way(f)(x), first, rtol=1e-6)
        for again in (jax.grad, jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(jax.jit(again(way(f)))(x), second, rtol=1e-6)
            # Of a function of `y`, too: the derivative of `y` is the rule's there as well.
            outer = again(way(lambda x: f(x) ** 2))(x)
            np.testing.assert_allclose(outer, 2 * first**2 + 2 * jnp.sin(x) * second, rtol=1e-5)
    xs = jnp.linspace(-1, 1, 4)
    want = 100 * jnp.cos(xs)

    def looped(xs):
        return jax.lax.scan(lambda c, x: (c + f(x), None), 0.0, xs)[0]

    for wrapped in (
        lambda xs: jax.vmap(f)(xs).sum(),
        lambda xs: jax.checkpoint(lambda xs: f(xs).sum())(xs),
        looped,
    ):
        np.testing.assert_allclose(jax.grad(wrapped)(xs), want, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.jacfwd(wrapped))(xs), want, rtol=1e-6)
        np.testing.assert_allclose(
            jnp.diag(jax.hessian(wrapped)(xs)), -100 * jnp.sin(xs), rtol=1e-5
        )
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(xs), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.jacfwd(f))(xs), want, rtol=1e-6)


def test_a_backward_that_cannot_be_transposed_says_so_and_still_gives_gradients():
    def loop(params, x, dy):
        return (), jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * x), (0, dy))[
            1
        ]

    def called(params, x, dy):
        return (), jax.pure_callback(lambda dy: dy, jax.ShapeDtypeStruct((), x.dtype), dy)

    for backward in (loop, called):
        f = functools.partial(scaled(backward), ())
        assert jnp.isfinite(jax.grad(f)(0.5))
        for run in (jax.jacfwd(f), jax.jit(jax.jacfwd(f))):
            with pytest.raises(
                TypeError, match=r"^the backward of scaled cannot be transposed"
            ) as e:
                run(0.5)
            assert "\n" not in str(e.value)


def test_a_cotangent_of_another_shape_or_structure_is_told():
    with pytest.raises(
        TypeError, match=r"backward of scaled must give a cotangent of shape \(3,\)"
    ):
        jax.grad(lambda x: scaled(lambda params, x, dy: ((), dy.sum()))((), x).sum())(jnp.ones(3))
    with pytest.raises(TypeError, match=r"backward of scaled must give \(dparams, dx\)"):
        jax.grad(lambda x: scaled(lambda params, x, dy: ((), (dy,)))((), x).sum())(jnp.ones(3))


def test_a_function_is_given_numbers_and_a_key():
    f = fp.as_function(fp.dropout(0.5))
    with pytest.raises(TypeError, match=r"^x must hold numbers, got 'a'"):
        f((), "a")
    with pytest.raises(TypeError, match=r"^key must be one random key, .*, got 3"):
        f((), jnp.ones(2), 3)
