"""What cannot be verified is refused in one short sentence."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import funprop as fp
from tests.test_bad_input import raises
from tests.test_verify import normal

pytestmark = pytest.mark.usefixtures("any_ranks")

X = normal(3, 4)
COUNT = itertools.count()
ANYTHING: dict[Any, Any] = {3: 3, fp.relu: fp.relu()}  # not what a type checker would take


def square(x):
    return x * x


def two(x, y):
    return x * y


def draws(x):
    return x * next(COUNT)


def speaks(x):
    io_callback(lambda: None, None)
    return 2 * x


def matmul(x, w):
    return x @ w


CASES = {
    "too few arguments": (
        TypeError, lambda: fp.verify(two, X),
        "args do not fit two: missing a required argument: 'y'",
    ),
    "too many arguments": (
        TypeError, lambda: fp.verify(square, X, X), "args do not fit square: too many positional arguments",
    ),
    "shapes that do not fit": (
        TypeError, lambda: fp.verify(matmul, X, X),
        "matmul does not take these arguments: dot_general requires contracting dimensions to have "
        "the same shape, got (4,) and (3,).",
    ),
    "no array": (
        TypeError, lambda: fp.verify(square, "x"), "x must be an array, got str",
    ),
    "no array in a tree": (
        TypeError, lambda: fp.verify(lambda params: params["w"], {"w": object()}),
        "params/w must be an array, got object",
    ),
    "nothing to differentiate": (
        ValueError, lambda: fp.verify(square, jnp.arange(3)),
        "square has no input of floating dtype to differentiate",
    ),
    "nothing that is differentiated": (
        ValueError, lambda: fp.verify(lambda x: x.argmax(), X),
        "<lambda> has no output of floating dtype",
    ),
    "not deterministic": (
        ValueError, lambda: fp.verify(draws, X),
        "draws is not deterministic: called twice, it gives different outputs",
    ),
    "side effects": (
        ValueError, lambda: fp.verify(speaks, X), "speaks has side effects: it calls io_callback",
    ),
    "NaN": (
        ValueError, lambda: fp.verify(jnp.log, -jnp.abs(X)),
        "log gives nan at [0, 0] for these arguments",
    ),
    "complex input": (
        TypeError, lambda: fp.verify(square, jax.lax.complex(X, X)), "x must be real, got complex64[3,4]",
    ),
    "complex output": (
        TypeError, lambda: fp.verify(jnp.fft.fft, X), "fft must give real numbers, got complex64[3,4]",
    ),
    "params of another model": (
        ValueError, lambda: fp.verify(fp.dense(4), fp.dense(5).init(jax.random.key(0), X), normal(3, 6)),
        "params do not belong to this model: at w expected float32[6,4], got float32[4,5]",
    ),
    "a layer with one argument": (
        TypeError, lambda: fp.verify(fp.relu(), X), "a layer is verified with (params, x), got 1 arguments",
    ),
    "a layer with a reference": (
        TypeError, lambda: fp.verify(fp.relu(), (), X, reference=jax.nn.relu),
        "reference must not be given for a layer: its forward pass is it",
    ),
    "a key for a function": (
        TypeError, lambda: fp.verify(square, X, key=jax.random.key(0)),
        "key is for a layer: give a function its keys among its arguments",
    ),
    "a reference of another signature": (
        TypeError, lambda: fp.verify(square, X, reference=two),
        "target and reference do not both take these arguments: two() missing 1 required "
        "positional argument: 'y'",
    ),
    "nothing callable": (TypeError, lambda: fp.verify(ANYTHING[3], X), "target must be a layer or a function, got int"),
    "rules of nothing callable": (
        TypeError, lambda: fp.verify_rules(ANYTHING[fp.relu], X), "function must be callable, got Layer",
    ),
    "rules at what does not fit": (
        TypeError, lambda: fp.verify_rules(matmul, X, X),
        "matmul does not take these arguments: dot_general requires contracting dimensions to have "
        "the same shape, got (4,) and (3,).",
    ),
    "taylor of integers": (
        ValueError, lambda: fp.taylor_test(square, jnp.arange(3)),
        "square has no input of floating dtype to differentiate",
    ),
    "cost of a layer without input": (
        TypeError, lambda: fp.cost(fp.relu(), ()), "a layer's cost is taken at (params, x), got 1 arguments",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_verified_is_refused_in_one_sentence(name):
    kind, call, sentence = CASES[name]
    raises(kind, sentence, call)


def test_a_layer_that_needs_a_key_is_verified_with_one():
    x = jnp.asarray(np.ones((4, 5)), jnp.float32)
    assert fp.verify(fp.dropout(0.5), (), x, key=jax.random.key(0)).ok
