"""The two halves of a backward pass: together the whole, and no product made twice."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import pytest

import funprop as fp
from tests.cases import ALL, OPTIMISED, Case, both, build, labels, normal, quickly

SPREAD = ("serial", "residual", "parallel-sum", "repeat-nested", "reparam", "reparam-repeat", "gpt")
LARGE = [
    Case("mlp", fp.mlp(16, 8), normal(6, 12)),
    Case("cnn", fp.cnn(4, widths=(8, 8), norm=lambda: fp.group_norm(2)), normal(3, 8, 8, 4)),
    Case("wide", fp.serial(fp.parallel(fp.dense(8), fp.dense(8)), fp.add()), normal(6, 12)),
    Case(
        "tied",
        fp.reparam(
            fp.serial(fp.dense(16, bias=False), fp.tanh(), fp.dense(12, bias=False)),
            expand=lambda w: (fp.DenseParams(w, None), (), fp.DenseParams(w.T, None)),
            initial=lambda params: params.dense_0.w,
        ),
        normal(6, 12),
    ),
    Case(
        "gpt",
        fp.language_model(fp.gpt(16, features=16, depth=3, heads=2, longest=8), 16),
        both(labels(2, 8, classes=16), labels(2, 8, classes=16)),
    ),
]


def in_halves(layer, params, residuals, dy):
    dx, kept = fp.backward_inputs(layer)(params, residuals, dy)
    return fp.backward_params(layer)(params, residuals, kept), dx


def ran(case, dtype):
    params, x, key = build(case, dtype)
    y, residuals = quickly(case.layer.forward)(params, x, key)
    dy = jax.tree.map(
        lambda leaf: jnp.cos(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else None, y
    )
    return params, residuals, dy


@pytest.mark.parametrize(
    "case",
    [case if case.id in SPREAD else pytest.param(case, marks=pytest.mark.slow) for case in ALL],
    ids=lambda case: case.id,
)
def test_both_halves_are_the_whole(case, x64):
    point = ran(case, jnp.float64)
    got = quickly(functools.partial(in_halves, case.layer))(*point)
    want = quickly(case.layer.backward)(*point)
    chex.assert_trees_all_close(got, want, rtol=1e-12, atol=1e-14)


def test_a_node_whose_cotangents_are_watched_has_halves_too():
    """What `tap` sees stands around what was kept inside the node."""
    one = fp.residual(fp.dense(3))
    model, watched = fp.repeat(one, 2), fp.repeat(fp.tap(one, backward=jnp.sum), 2)
    params = model.init(jax.random.key(0), jnp.zeros((4, 3)))
    x = jnp.arange(12.0).reshape(4, 3)
    y, residuals = model.forward(params, x)
    got = in_halves(watched, params, watched.forward(params, x)[1], y)
    chex.assert_trees_all_close(got, model.backward(params, residuals, y), rtol=1e-6)
    _, (_, spec) = fp.backward_inputs(model)(params, residuals, y)
    with pytest.raises(TypeError, match="kept must be what backward_inputs of dense gave"):
        fp.backward_params(model)(params, residuals, (jax.tree.map(jnp.zeros_like, params), spec))


def products(function, *args):
    compiled = jax.jit(function).lower(*args).compile(OPTIMISED)
    return len(re.findall(r" (?:dot|convolution|custom-call)\(", compiled.as_text()))


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.id)
def test_no_product_is_made_in_both_halves(case):
    params, residuals, dy = ran(case, jnp.float32)
    inputs, of_params = fp.backward_inputs(case.layer), fp.backward_params(case.layer)
    _, kept = jax.jit(inputs)(params, residuals, dy)
    first = products(inputs, params, residuals, dy)
    second = products(of_params, params, residuals, kept)
    assert first and second
    assert first + second == products(case.layer.backward, params, residuals, dy)


def test_the_second_half_wants_what_the_first_gave():
    line, x = fp.dense(1), jnp.ones((3, 2))
    params = line.init(jax.random.key(0), x)
    y, residuals = line.forward(params, x)
    for given in (None, y):
        with pytest.raises(
            TypeError, match=r"^kept must be what backward_inputs of dense gave, got"
        ):
            fp.backward_params(line)(params, residuals, given)


def test_what_is_not_of_one_forward_pass_is_refused():
    model, x = fp.serial(fp.dense(3), fp.tanh(), fp.dense(2)), jnp.ones((4, 6))
    params = model.init(jax.random.key(0), x)
    y, residuals = model.forward(params, x)
    first, second = fp.backward_inputs(model), fp.backward_params(model)
    _, kept = first(params, residuals, y)
    other = fp.backward_inputs(fp.dense(2))(params.dense_1, residuals[2], y)[1]
    pass_of = "params, residuals and dy must be of one pass of serial, got dy"
    for call, told in (
        (lambda: first(params, residuals, None), "dy must be the cotangent of what serial gave"),
        (lambda: first(params, residuals, "a"), "dy must hold numbers, got 'a'"),
        (lambda: first(params, residuals, 3.0), f"{pass_of} 3.0: "),
        (lambda: first(params, residuals, y[:2]), f"{pass_of} float32[2,2]: dense_1: dot_general"),
        (lambda: first(params, None, y), "residuals must be those of serial, a tuple of 3, got No"),
        (lambda: second(params, residuals[:2], kept), "residuals must be those of serial, a tuple"),
        (lambda: first(params[:2], residuals, y), "params must be a tuple of 3, one a layer, got"),
        (lambda: second(params, residuals, other), "kept must be what backward_inputs of serial"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(told)}") as error:
            call()
        assert len(str(error.value)) < 200
