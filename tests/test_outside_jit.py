"""Outside of `jax.jit` a pass is compiled at its first call, and at no other of the same shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.train.compilation import compiling
from tests.cases import ALL, Case, both, build, labels, normal

SOME = {
    "attention",
    "conv-depthwise",
    "gpt",
    "linear_cross_entropy",
    "linear_cross_entropy-rows",
    "lstm-lengths",
    "repeat-nested",
    "reversible-copies",
}
LARGE = [  # what is taken in parts, as the inputs of tests/cases.py are too small to be
    Case("conv", fp.conv(8, (3, 3)), normal(64, 24, 24, 8)),
    Case("conv_transpose", fp.conv_transpose(8, (3, 3)), normal(64, 24, 24, 8)),
    Case("attention", fp.attention(8), normal(2, 144, 24 * 8)),
    Case("lstm", fp.lstm(4, keep="output"), normal(2, 5, 3)),
    Case("head", fp.linear_cross_entropy(40_000), both(normal(64, 2), labels(64, classes=9))),
]
TWO = jnp.int32(2)
NUMBERS_OF_JAX = [  # which cannot be hashed
    Case("attention", fp.attention(TWO, kv_heads=TWO, window=TWO, block=TWO), normal(2, 5, 24)),
    Case("head", fp.linear_cross_entropy(7, rows=TWO), both(normal(5, 2), labels(5, classes=7))),
    Case("lean", fp.linear_cross_entropy(7, chunk=TWO), both(normal(5, 2), labels(5, classes=7))),
]
OTHERS = {"large": LARGE, "numbers of JAX": NUMBERS_OF_JAX}


def rows():
    for case in ALL:
        yield pytest.param(case, id=case.id, marks=[] if case.id in SOME else pytest.mark.slow)
    for kind, cases in OTHERS.items():
        for case in cases:
            yield pytest.param(case, id=f"{kind}: {case.id}")


def compilations(run, *args):
    """Of a second call, and what it gives."""
    run(*args)
    with compiling() as seconds:
        found = run(*args)
    return len(seconds), found


@pytest.mark.parametrize("case", list(rows()))
def test_a_second_call_compiles_nothing(case):
    params, x, key = build(case)
    of_forward, (y, residuals) = compilations(case.layer.forward, params, x, key)
    dy = jax.tree.map(jnp.ones_like, y)
    of_backward, _ = compilations(case.layer.backward, params, residuals, dy)
    assert (of_forward, of_backward) == (0, 0)


@pytest.mark.parametrize(
    "layer", [fp.gpt(7, features=8, depth=2, heads=1, longest=6), fp.lstm(3)], ids=str
)
def test_nor_token_by_token(layer):
    x = jnp.ones((2, 3), jnp.int32) if layer.name != "lstm" else jnp.ones((2, 3, 4))
    params = layer.init(jax.random.key(0), x)
    of_first, (_, cache) = compilations(layer.decoding.prefill, params, x, 6)
    of_next, _ = compilations(layer.decoding.advance, params, cache, x[:, :1])
    assert (of_first, of_next) == (0, 0)


def test_another_shape_dtype_or_setting_is_another_program():
    layer = fp.repeat(fp.residual(fp.serial(fp.dense(4), fp.tanh())), 2)
    params = layer.init(jax.random.key(0), jnp.ones((3, 4)))
    for rows in (3, 5):
        assert layer.forward(params, jnp.ones((rows, 4)))[0].shape == (rows, 4)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        assert layer.forward(params, jnp.ones((3, 4)))[0].dtype == jnp.float64


def test_in_a_trace_nothing_is_changed():
    """Not even where it sees constants alone; and `jax.disable_jit` shows values, as ever."""
    seen = []

    def looked_at(params, x):
        seen.append(isinstance(x, jax.core.Tracer))
        return x * params, x

    part = fp.layer(
        init=lambda key, x: jnp.ones(()),
        forward=looked_at,
        backward=lambda params, x, dy: ((x * dy).sum(), dy * params),
    )
    layer, x = fp.repeat(part, 3), jnp.ones(2)
    params = layer.init(jax.random.key(0), x)
    traced = str(jax.make_jaxpr(lambda params, x: layer.forward(params, x)[0])(params, x))
    closed = str(jax.make_jaxpr(lambda: layer.forward(params, x)[0])())
    assert "scan[" in closed and "jit" not in traced + closed
    with jax.disable_jit():
        seen.clear()
        layer.forward(params, x)
    assert seen == [False] * 3
