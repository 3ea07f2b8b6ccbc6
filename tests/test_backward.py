"""Every hand-written backward is right: by funprop's own verifier, and by jax.grad of the whole."""

import functools
import importlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.cases import (
    ALL,
    COMBINATORS,
    CONVOLUTIONS,
    LAYERS,
    LOSSES,
    MODELS,
    NORMALISATIONS,
    OPTIMISED,
    RECURRENT,
    REWRITES,
    SEQUENCES,
    Case,
    both,
    build,
    labels,
    normal,
    quickly,
)

FLOAT = [case for case in ALL if case.id != "reshape-integers"]  # has no cotangent


def cotangent(y, seed=7):
    """A random cotangent like `y`; `None` for integers."""
    draw = np.random.default_rng(seed)  # not JAX's, which takes longer to compile than a layer
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(draw.standard_normal(leaf.shape), leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else None
        ),
        y,
    )


def gradient(layer, params, x, key):
    y, residuals = layer.forward(params, x, key)
    return layer.backward(params, residuals, cotangent(y))


def compiled(layer):
    return quickly(functools.partial(gradient, layer))


# What compiles for long is slow: combinators compute nothing of their own, and are compared with
# autodiff below; all others are verified in float32, a few in bfloat16, and in the other precisions
# when asked for.
LARGE = CONVOLUTIONS + NORMALISATIONS + RECURRENT + SEQUENCES
HEADS = [case for case in LOSSES if case.id.startswith(("linear_", "objective"))]
COMPOSED = LARGE + COMBINATORS + REWRITES + MODELS
BFLOAT16 = {"dense", "softmax", "gelu", "huber"}
# Than the one beside it; than its parts.
EASIER = [
    case
    for case in ALL
    if case.id
    in {
        *("lstm", "attention", "attention-grouped-window", "linear_cross_entropy", "objective"),
        *("softmax_cross_entropy", "softmax_cross_entropy-smooth"),
    }
]
SLOW = pytest.mark.slow


def marked(cases: Any, slow: Any) -> list[Any]:
    return [pytest.param(case, marks=[SLOW] if case in slow else []) for case in cases]


# Variants, of which the plain form is quick.
VARIANTS = (
    *("attention-masked", "gru", "lstm-lengths", "layer_norm-bare", "softmax_cross_entropy-tokens"),
    *("linear_cross_entropy-tokens", "linear_cross_entropy-rows"),
)
VERIFIED = [
    pytest.param(
        case,
        dtype,
        marks=[SLOW]
        if case in COMBINATORS + EASIER
        or case.id in VARIANTS
        or dtype == jnp.float64
        or (dtype == jnp.bfloat16 and case.id not in BFLOAT16)
        else [],
    )
    for case in ALL
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64)
]


@pytest.mark.parametrize(
    ("case", "dtype"), VERIFIED, ids=lambda v: v.id if hasattr(v, "id") else v.__name__
)
def test_verified(case, dtype, x64):
    params, x, key = build(case, dtype)
    if case.id == "reshape-integers":
        with pytest.raises(ValueError, match="no input of floating dtype"):
            fp.verify(case.layer, params, x)
        return
    report = fp.verify(case.layer, params, x, key=key)
    assert report.checks
    report.raise_if_wrong()


# Of sizes b, t, f, n from 1 to 4: a layer and its input.
DRAWN = {
    "dense": lambda b, t, f, n: (fp.dense(n), normal(b, t, f)),
    "softmax": lambda b, t, f, n: (fp.softmax(), normal(b, t, f, n)),
    "gelu": lambda b, t, f, n: (fp.gelu(), normal(b, t, f, n)),
    "gated": lambda b, t, f, n: (fp.gated(fp.silu()), normal(b, t, 2 * f)),
    "layer_norm": lambda b, t, f, n: (fp.layer_norm(), normal(b, t, f + 1)),
    "group_norm": lambda b, t, f, n: (fp.group_norm(n), normal(b, t, n * (f + 1))),
    "conv": lambda b, t, f, n: (fp.conv(n, (2, t), stride=(1, t)), normal(b, n + 1, t + 2, f)),
    "conv_transpose": lambda b, t, f, n: (fp.conv_transpose(n, (2,), stride=(f,)), normal(b, t, f)),
    "max_pool": lambda b, t, f, n: (fp.max_pool((2,), stride=(n,)), normal(b, t + 1, f)),
    "average_pool": lambda b, t, f, n: (fp.average_pool((2,), stride=(n,)), normal(b, t + 1, f)),
    "upsample": lambda b, t, f, n: (fp.upsample((n,)), normal(b, t, f)),
    "embedding": lambda b, t, f, n: (fp.embedding(n, f), labels(b, t, classes=n)),
    "attention": lambda b, t, f, n: (
        fp.attention(2 * n, kv_heads=n, block=2, window=b),
        normal(b, t, 4 * n * 2 * f),
    ),
    "lstm": lambda b, t, f, n: (fp.lstm(n), normal(b, t, f)),
    "gru": lambda b, t, f, n: (fp.gru(n), normal(b, t, f)),
    "linear_cross_entropy": lambda b, t, f, n: (
        fp.linear_cross_entropy(n + 1, chunk=t, smoothing=0.1, z_loss=0.01),
        both(normal(b, t, f), labels(b, t, classes=n + 1)),
    ),
}


@SLOW
@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=4, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 4)] * 4), dtype=st.sampled_from(["float32", "float64"]))
def test_verified_at_shapes_that_hypothesis_draws(name, sizes, dtype):
    with jax.enable_x64(True):
        layer, x = DRAWN[name](*sizes)
        params, x, _ = build(Case(name, layer, x), jnp.dtype(dtype))
        fp.verify(layer, params, x).raise_if_wrong()


@pytest.mark.parametrize("case", marked(ALL, MODELS[1:-1]), ids=lambda case: case.id)
def test_whole_equals_map_of_autodiff(case, x64):
    params, x, key = build(case, jnp.float64)
    reference = fp.map_layers(fp.autodiff, case.layer)
    chex.assert_trees_all_close(
        compiled(case.layer)(params, x, key),
        compiled(reference)(params, x, key),
        rtol=1e-10,
        atol=1e-12,
    )


@SLOW  # a law of `verify`, as is the next
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_jit_gives_the_same(case, x64):
    params, x, key = build(case, jnp.float64)
    run = functools.partial(gradient, case.layer)
    chex.assert_trees_all_close(
        jax.jit(run)(params, x, key), run(params, x, key), rtol=1e-10, atol=1e-12
    )


@SLOW
@pytest.mark.parametrize("case", FLOAT, ids=lambda case: case.id)
def test_vmap_over_forward_and_then_backward(case, x64):
    """Residuals pass through the borders of vmap and jit, one example of a stack as alone."""
    points = [build(case, jnp.float64, seed) for seed in (0, 10)]
    key = points[0][2]
    params, x = jax.tree.map(lambda *leaves: np.stack(leaves), *[p[:2] for p in points])
    _, residuals = quickly(jax.vmap(lambda p, x: case.layer.forward(p, x, key)))(params, x)
    y, _ = jax.eval_shape(case.layer.forward, *points[0])
    dy = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), cotangent(y))
    dparams, dx = quickly(jax.vmap(case.layer.backward))(params, residuals, dy)
    alone = compiled(case.layer)
    for i, (p, one, _) in enumerate(points):
        want = alone(p, one, key)
        got = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], (dparams, dx))
        chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", marked(ALL, COMPOSED + LOSSES), ids=lambda case: case.id)
def test_as_function_is_differentiated_by_the_hand_written_backward(case, x64):
    params, x, key = build(case, jnp.float64)
    function = fp.as_function(case.layer)

    def outer(params, x):
        y = jax.jit(function)(params, x, key)
        return sum(
            (jnp.sin(leaf) * 2).sum() for leaf in jax.tree.leaves(y) if leaf.dtype == jnp.float64
        ) + jnp.zeros(())

    def plain(params, x):
        y = case.layer.forward(params, x, key)[0]
        return sum(
            (jnp.sin(leaf) * 2).sum() for leaf in jax.tree.leaves(y) if leaf.dtype == jnp.float64
        ) + jnp.zeros(())

    got, want = (
        quickly(jax.grad(f, argnums=(0, 1), allow_int=True))(params, x) for f in (outer, plain)
    )
    chex.assert_trees_all_close(
        *(
            # A statistic has no gradient, though JAX finds one.
            [leaf for leaf in jax.tree.leaves((fp.trained(p), x)) if leaf.dtype == jnp.float64]
            for p, x in (got, want)
        ),
        rtol=1e-10,
        atol=1e-12,
    )


def test_as_function_runs_our_backward_and_bare_forward_does_not():
    wrong = fp.layer(
        forward=lambda params, x: (2 * x, ()),
        backward=lambda params, residuals, dy: ((), 100 * dy),
        name="wrong",
    )
    assert jax.grad(lambda x: fp.as_function(wrong)((), x))(1.0) == 100
    assert jax.grad(lambda x: wrong.forward((), x)[0])(1.0) == 2


def test_as_function_under_vmap_and_grad():
    function = fp.as_function(fp.tanh())
    per_example = jax.vmap(jax.grad(lambda x: function((), x)))
    x = jnp.linspace(-1, 1, 5)
    chex.assert_trees_all_close(per_example(x), 1 - jnp.tanh(x) ** 2, rtol=1e-6)


@SLOW  # a law of `verify`
@pytest.mark.parametrize("case", LAYERS + LOSSES, ids=lambda case: case.id)
def test_linear_in_the_cotangent(case, x64):
    params, x, key = build(case, jnp.float64)
    y, residuals = quickly(case.layer.forward)(params, x, key)
    # NumPy's arithmetic: JAX would compile it, for each shape.
    first, second = (jax.tree.map(np.asarray, cotangent(y, seed)) for seed in (1, 2))
    mixed = jax.tree.map(lambda a, b: 2 * a - 3 * b, first, second)
    backward = quickly(case.layer.backward)
    d_first, d_second, d_mixed = (
        jax.tree.map(np.asarray, backward(params, residuals, dy)) for dy in (first, second, mixed)
    )
    chex.assert_trees_all_close(
        d_mixed, jax.tree.map(lambda a, b: 2 * a - 3 * b, d_first, d_second), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_dtypes_of_params_and_input_come_back(case):
    for dtype in (jnp.float32, jnp.bfloat16):
        params, x, key = build(case, dtype)
        run = functools.partial(gradient, case.layer)
        dparams, dx = jax.eval_shape(run, params, x, key)
        chex.assert_trees_all_equal_shapes_and_dtypes(dparams, fp.trained(params))
        floats = jax.tree.map(
            lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, x
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(dx, floats)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_residuals_hold_no_copy_of_params(case):
    """Rule 1: params reach backward as an argument, so residuals need not hold them."""
    params, x, key = build(case, jnp.float32)

    def forward(params, x):
        residuals = case.layer.forward(params, x, key)[1]
        given = {id(leaf) for leaf in jax.tree.leaves(params)}
        assert not any(id(leaf) in given for leaf in jax.tree.leaves(residuals))
        return residuals

    jax.eval_shape(forward, params, x)


EDGES = {
    "zeros": lambda x: 0 * x,
    "ties": lambda x: jnp.ones_like(x),
    "large": lambda x: 1e4 * x,
    "tiny": lambda x: 1e-4 * x,
}
ONE_ARRAY = [
    case
    for case in LAYERS
    if case not in CONVOLUTIONS + NORMALISATIONS + RECURRENT + SEQUENCES
    and case.id != "reshape-integers"
    and not isinstance(case.x(np.random.default_rng(0)), tuple)
]


@pytest.mark.parametrize("case", ONE_ARRAY, ids=lambda case: case.id)
def test_edges_agree_with_jax(case, x64):
    """At zeros, ties and badly scaled inputs (which `verify` tries too): at a kink our choice is
    that of JAX."""
    params, x, key = build(case, jnp.float64)
    ours, by_jax = compiled(case.layer), compiled(fp.map_layers(fp.autodiff, case.layer))
    for edge, change in EDGES.items():
        got, want = (run(params, change(x), key) for run in (ours, by_jax))
        chex.assert_trees_all_close(
            got, want, rtol=1e-9, atol=1e-11, custom_message=f"with an input of {edge}"
        )


@pytest.mark.parametrize("scale", [pytest.param(1e4, marks=SLOW), 1e8])
@pytest.mark.parametrize(
    "case",
    marked(
        [c for c in LOSSES if c.id != "objective"],
        [
            case
            for case in LOSSES
            if case.id.startswith(("mean_", "linear_cross_entropy-"))
            or case.id in ("softmax_cross_entropy", "softmax_cross_entropy-smooth")
        ],
    ),
    ids=lambda case: case.id,
)
def test_losses_are_safe_at_huge_outputs(case, scale, x64, monkeypatch):
    if case.id.startswith("linear_"):  # its logits, made again, must round as they did
        programs = importlib.import_module("funprop.verify.truth.programs")
        monkeypatch.setattr(programs, "quick_options", lambda: OPTIMISED)
        monkeypatch.setattr(programs, "LEVEL", {})
    params, (outputs, *rest), key = build(case, jnp.float32)
    fp.verify(case.layer, params, (scale * outputs, *rest), key=key).raise_if_wrong()

    def both(params, batch):
        y, kept = case.layer.forward(params, batch)
        return y, case.layer.backward(params, kept, jax.tree.map(jnp.ones_like, y))

    found = quickly(both)(params, (scale * outputs, *rest))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_activation_derivatives_keep_their_digits_in_the_tails():
    """Where a derivative is tiny it is still right, not zero."""
    with jax.enable_x64(True):
        for layer, x in ((fp.softplus(), -30.0), (fp.silu(), -30.0), (fp.gelu(), -5.0)):
            low, exact = (jnp.array([x], dtype) for dtype in (jnp.float32, jnp.float64))
            got = layer.backward((), layer.forward((), low)[1], jnp.ones_like(low))[1]
            want = jax.grad(lambda x, layer=layer: layer.forward((), x)[0].sum())(exact)
            assert abs(float(got[0]) / float(want[0]) - 1) < 1e-4


def test_no_jax_differentiation_in_backprop(monkeypatch):
    """The hand-written grad_fn works with every differentiating function of JAX out of order."""

    def out_of_order(*args, **kwargs):
        raise AssertionError("JAX was asked to differentiate")

    case = next(case for case in LOSSES if case.id == "objective")
    params, batch, _ = build(case)
    for name in ("grad", "value_and_grad", "vjp", "jvp", "linearize", "linear_transpose"):
        monkeypatch.setattr(jax, name, out_of_order)
    gradient = fp.backprop(case.layer)(params, batch, None)
    assert jnp.isfinite(gradient.loss)
    assert "custom_vjp" not in str(jax.make_jaxpr(fp.backprop(case.layer))(params, batch))


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float64, marks=SLOW), jnp.float32], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("which", ["w", *(pytest.param(leaf, marks=SLOW) for leaf in ("b", "dx"))])
def test_a_small_error_in_one_leaf_accuses_that_leaf_alone(which, dtype, x64):
    """0.1% off, in one leaf of one layer deep in a model: found, and nothing else blamed."""
    good = fp.dense(5)

    def backward(params, residuals, dy):
        (dw, db), dx = good.backward(params, residuals, dy)
        off = {"w": dw, "b": db, "dx": dx}
        off[which] = off[which] * 1.001
        return fp.DenseParams(off["w"], off["b"]), off["dx"]

    wrong = fp.layer(init=good.init, forward=good.forward, backward=backward, name="wrong")
    model = fp.serial(fp.dense(5), fp.repeat(fp.residual(fp.serial(wrong, fp.tanh())), 2))
    x = jax.random.normal(jax.random.key(0), (16, 4), dtype)
    report = fp.verify(model, model.init(jax.random.key(1), x), x)
    assert [finding.path for finding in report.findings] == [
        f"repeat[{i}]/wrong/{which}" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("backward", "sentence"),
    [
        (lambda p, x, dy: ((), dy.sum()), "backward must give float32[3], got float32[]"),
        (lambda p, x, dy: ((), dy * jnp.nan), "wrong: nan at [0]"),
        (lambda p, x, dy: (None, (dy, dy)), r"backward must give \(dparams, dx\) like"),
    ],
    ids=["shape", "nan", "structure"],
)
def test_cotangents_that_do_not_look_like_their_primals(backward, sentence):
    layer = fp.layer(forward=lambda params, x: (x * 2, x), backward=backward, name="twice")
    with pytest.raises(AssertionError, match=sentence.replace("[", r"\[").replace("]", r"\]")):
        fp.verify(layer, (), jnp.ones(3)).raise_if_wrong()
