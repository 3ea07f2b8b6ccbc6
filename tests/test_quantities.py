"""What one backward pass gives beside the gradient is what its definition says, in float64."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import funprop as fp
from funprop.layers import overlaps
from funprop.params.frozen import trained
from funprop.quantities.outer import second_moment
from tests.cases import Case, both, build, labels, normal, positive, quickly


def transformer(classes: int) -> fp.Layer:
    block = fp.serial(
        fp.residual(fp.serial(fp.layer_norm(), fp.self_attention(4, 2))),
        fp.residual(fp.serial(fp.layer_norm(), fp.feed_forward(4, 3))),
    )
    return fp.serial(
        fp.embedding(5, 4),
        fp.learned_positions(4),
        fp.repeat(block, 2),
        fp.rms_norm(),
        fp.dense(classes),
    )


def tied() -> fp.Layer:
    return fp.reparam(
        fp.serial(fp.dense(3, bias=False), fp.tanh(), fp.dense(5, bias=False)),
        expand=lambda w: (fp.DenseParams(w, None), (), fp.DenseParams(w.T, None)),
        initial=lambda params: params.dense_0.w,
    )


def language(model: fp.Layer, tied: bool) -> tuple[fp.Layer, fp.Layer]:
    """An objective of tokens, and the same of a head that is a layer and a plain loss of logits."""
    ours = fp.language_model(model, 5, tied=tied, smoothing=0.1, **({} if tied else {"bias": True}))

    def expand(params: Any) -> Any:
        of_model, (w, b) = (params, (params[0].table, None)) if tied else params
        return of_model, fp.DenseParams(w.T, b)

    plain = fp.serial(model, fp.dense(5, bias=not tied))
    whole = fp.reparam(plain, expand, initial=lambda params: params[0])  # as tied ones
    return ours, fp.objective(whole, fp.softmax_cross_entropy(0.1))


GPT = fp.gpt(5, features=4, depth=2, heads=2, longest=4, hidden=3)
WORDS = fp.serial(fp.embedding(5, 2), fp.repeat(fp.serial(fp.dense(2), fp.tanh()), 2))
LANGUAGE = {
    "tied-words": language(WORDS, tied=True),
    "words": language(WORDS, tied=False),
    "tied-gpt": language(GPT, tied=True),
}
CROSS, SQUARED, BINARY = fp.softmax_cross_entropy(), fp.mean_squared(), fp.binary_cross_entropy()
CASES = [
    Case("mlp", fp.objective(fp.mlp(4, 3), CROSS), both(normal(5, 3), labels(5, classes=3))),
    Case(
        "mlp-over-time-weighted",
        fp.objective(fp.mlp(3, 2, activation=fp.tanh), BINARY),
        both(normal(4, 3, 2), lambda rng: jnp.asarray(rng.random((4, 3, 2))), positive(4)),
    ),
    Case(
        "cnn",
        fp.objective(fp.cnn(3, widths=(2, 2), norm=lambda: fp.group_norm(1)), CROSS),
        both(normal(4, 4, 4, 1), labels(4, classes=3), positive(4)),
    ),
    Case(
        "grouped",
        fp.objective(
            fp.serial(
                fp.conv(4, (2, 2), groups=2),
                fp.layer_norm(),
                fp.conv(4, (2, 2), groups=4, padding="valid"),
                fp.flatten(),
                fp.dense(2, bias=False),
            ),
            CROSS,
        ),
        both(normal(3, 3, 2, 2), labels(3, classes=2), positive(3)),
    ),
    Case(
        "autoencoder",
        fp.objective(fp.autoencoder((4, 2, 1), code=2, widths=(2,)), SQUARED),
        both(normal(3, 4, 2, 1), normal(3, 4, 2, 1)),
    ),
    Case(
        "rnn",
        fp.objective(fp.rnn(2, fp.gru(2)), CROSS),
        both(
            both(normal(3, 3, 2), lambda rng: jnp.asarray([1, 3, 2])),
            labels(3, classes=2),
        ),
    ),
    Case(
        "transformer",
        fp.objective(transformer(3), CROSS),
        both(labels(3, 4, classes=5), labels(3, 4, classes=3), positive(3, 4)),
    ),
    Case("tied", fp.objective(tied(), SQUARED), both(normal(4, 5), normal(4, 5))),
    Case(
        "frozen-below",
        fp.objective(fp.freeze(fp.mlp(4, 3), "dense_0"), CROSS),
        both(normal(5, 3), labels(5, classes=3)),
    ),
    Case(
        "low-rank",
        fp.objective(fp.low_rank(fp.mlp(4, 3), "dense_0", 1, train="dense_1"), CROSS),
        both(normal(5, 3), labels(5, classes=3)),
    ),
    Case(
        "rewritten",
        fp.objective(fp.remat(fp.serial(fp.dense(2), fp.repeat(fp.remat(fp.dense(2)), 2))), CROSS),
        both(normal(4, 3), labels(4, classes=2), positive(4)),
    ),
    *(
        Case(name, ours, both(labels(3, 4, classes=5), labels(3, 4, classes=5), positive(3, 4)))
        for name, (ours, _) in LANGUAGE.items()
    ),
]
SLOW = {
    "rnn",
    "transformer",
    "autoencoder",
    "grouped",
    "low-rank",
    "rewritten",
    "words",
    "tied-gpt",
}
MARKED = [c if c.id not in SLOW else pytest.param(c, marks=pytest.mark.slow) for c in CASES]


class Truth(NamedTuple):
    """By their definitions, of flat params."""

    each: Any
    ggn: Any
    hessian: Any


def truth(objective: fp.Layer, params: Any, batch: Any) -> Truth:
    """By JAX alone: per example from weights of one example, `J^T H J` and the Hessian whole."""
    own, unravel = ravel_pytree(trained(params))
    inputs, targets, *weights = batch
    n = len(jax.tree.leaves(inputs)[0])
    model, loss = objective.children

    def whole(flat: Any) -> Any:
        return fp.params.frozen.with_trained(params, unravel(flat))

    def of_example(flat: Any, one: Any) -> Any:
        w = one.reshape(n, *(1,) * (weights[0].ndim - 1)) * weights[0] if weights else one
        return objective.forward(whole(flat), (inputs, targets, w))[0].total

    def total(flat: Any) -> Any:
        return objective.forward(whole(flat), batch)[0].total

    def outputs(flat: Any) -> Any:
        return model.forward(whole(flat), inputs)[0].ravel()

    shape = jax.eval_shape(lambda: model.forward(params, inputs)[0]).shape

    def of_outputs(y: Any) -> Any:
        return loss.forward((), (y.reshape(shape), targets, *weights))[0].total

    jacobian, curvature = jax.jacrev(outputs)(own), jax.hessian(of_outputs)(outputs(own))
    each = jax.vmap(jax.grad(of_example), (None, 0))(own, jnp.eye(n))
    return Truth(each, jacobian.T @ curvature @ jacobian, jax.jacfwd(jax.grad(total))(own))


def flat(tree: Any) -> Any:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("case", MARKED, ids=lambda case: case.id)
def test_quantities_are_what_their_definitions_say(case, x64):
    params, batch, _ = build(case, jnp.float64)
    vector = jax.tree.map(jnp.cos, trained(params))
    layer = case.layer

    def ours(params: Any, batch: Any) -> Any:
        return {
            "gradients": fp.per_example_gradients(layer)(params, batch),
            "norms": fp.per_example_norms(layer)(params, batch),
            "products": fp.per_example_dot_products(layer)(params, batch),
            "variance": fp.gradient_variance(layer)(params, batch),
            "diagonal": fp.ggn_diagonal(layer)(params, batch),
            "ggn": fp.ggn_vector_product(layer)(params, vector, batch),
            "hessian": fp.hessian_vector_product(layer)(params, vector, batch),
        }

    plain = LANGUAGE[case.id][1] if case.id in LANGUAGE else layer
    got = quickly(ours)(params, batch)
    want = quickly(functools.partial(truth, plain))(params, batch)
    b = len(want.each)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-11)
    close(jax.vmap(flat)(got["gradients"]), want.each)
    close(got["norms"], jnp.linalg.norm(want.each, axis=1))
    close(got["products"], want.each @ want.each.T)
    close(flat(got["variance"]), jnp.var(want.each, axis=0, ddof=1))
    close(flat(got["diagonal"]), jnp.diag(want.ggn))
    close(flat(got["ggn"]), want.ggn @ flat(vector))
    close(flat(got["hessian"]), want.hessian @ flat(vector))
    assert b > 2 and bool((jnp.diag(want.ggn) > 0).any())
    for name in ("gradients", "variance", "diagonal", "ggn", "hessian"):
        assert jax.tree.structure(got[name]) == jax.tree.structure(trained(params))


BINARY_NET = fp.quantised(
    fp.serial(fp.dense(3), fp.layer_norm(), fp.dense(2)), "binary", inputs="binary"
)
OTHERS = {  # with closed forms that no definition above goes through
    "grouped": (fp.serial(fp.conv(4, (2, 2), groups=2, stride=2), fp.flatten()), (3, 4, 4, 4)),
    "depthwise": (fp.serial(fp.conv(4, (3,), groups=2, dilation=2), fp.rms_norm()), (3, 4, 2)),
    "bare": (fp.serial(fp.layer_norm(scale=False, bias=False), fp.dense(2)), (3, 2)),
    "feedback": (fp.feedback_alignment(fp.serial(fp.dense(2), fp.tanh(), fp.dense(3))), (3, 2)),
    "ternary": (fp.quantised(fp.serial(fp.dense(3), fp.tanh(), fp.dense(2)), "ternary"), (3, 4, 2)),
    "binary": (BINARY_NET, (3, 2)),
    "positions": (fp.serial(fp.learned_positions(6), fp.dense(2, bias=False)), (3, 4, 2)),
}


def test_of_every_layer_each_gradient_is_that_of_the_example_alone(x64):
    def inputs(name: str) -> Any:
        model, shape = OTHERS[name]
        x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
        params = model.init(jax.random.key(0), x)
        y = jax.eval_shape(lambda: model.forward(params, x)[0])
        return params, (x, jnp.cos(jnp.arange(y.size, dtype=x.dtype)).reshape(y.shape))

    def ours(given: Any) -> Any:
        found = {}
        for name, (params, batch) in given.items():
            objective = fp.objective(OTHERS[name][0], SQUARED)
            one = lambda w, o=objective, p=params, b=batch: fp.backprop(o)(p, (*b, w)).grads
            found[name] = (
                fp.per_example_gradients(objective)(params, batch),
                fp.per_example_norms(objective)(params, batch),
                fp.gradient_variance(objective)(params, batch),
                jax.vmap(one)(jnp.eye(3)),
                fp.clip_per_example(objective, 0.1)(params, batch).grads,
            )
        return found

    found = quickly(ours)({name: inputs(name) for name in OTHERS})
    for each, norms, variance, want, clipped in found.values():
        close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-11)
        close(each, want)
        rows = jax.vmap(flat)(want)
        close(norms, jnp.linalg.norm(rows, axis=1))
        close(flat(variance), jnp.var(rows, axis=0, ddof=1))
        factors = jnp.minimum(1, 0.1 / jnp.linalg.norm(rows, axis=1))
        close(flat(clipped), factors @ rows)


PICTURES = fp.serial(fp.conv(2, (2, 2)), fp.global_average_pool(), fp.dense(3))
TABLE = fp.serial(fp.embedding(5, 2), fp.dense(3))


@pytest.mark.parametrize(
    ("model", "shape"), [(PICTURES, (0, 3, 3, 1)), (TABLE, (0, 2)), (TABLE, (2, 0))]
)
def test_of_nothing_every_sum_is_zero(model, shape):
    objective, key = fp.objective(model, CROSS), jax.random.key(0)
    integers = len(shape) == 2
    full = tuple(max(n, 1) for n in shape)
    params = model.init(key, jnp.zeros(full, int if integers else float))
    batch = jnp.zeros(shape, int if integers else float), jnp.zeros(shape[: 1 + integers], int)
    found = [
        fp.per_example_gradients(objective)(params, batch),
        fp.per_example_norms(objective)(params, batch),
        fp.per_example_dot_products(objective)(params, batch),
        fp.ggn_diagonal(objective)(params, batch),
        fp.kfac_factors(objective)(params, batch, sample_key=key)[-1].g,
        fp.clip_per_example(objective, 1.0)(params, batch).grads,
        fp.laplace(objective, params, [batch]).curvature[-1].values,
    ]
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(found))


def test_a_gauss_newton_product_has_the_noise_and_the_say_of_the_objective(x64):
    model = fp.serial(fp.dropout(0.5), fp.dense(2))  # linear in params: both matrices are one
    objective, key = fp.objective(model, SQUARED), jax.random.key(0)
    x, weights = jnp.ones((4, 3)).at[2].set(jnp.nan), jnp.array([1.0, 2.0, 0.0, 1.0])
    batch = x, jnp.zeros((4, 2)), weights
    params = objective.init(key, batch)
    found = fp.ggn_vector_product(objective)(params, params, batch, key)
    want = fp.hessian_vector_product(objective)(params, params, batch, key)
    chex.assert_trees_all_close(found, want, rtol=1e-12)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


def test_random_signs_in_16_bits_and_of_what_is_not_trained():
    twice, key = lambda v: jax.tree.map(lambda leaf: 2 * leaf, v), jax.random.key(0)
    for dtype in (jnp.bfloat16, jnp.float16):  # a sum of a thousand, in 16 bits, stops at half
        found = fp.hutchinson_diagonal(twice, jnp.ones(3, dtype), key, samples=1000)
        np.testing.assert_allclose(found, 2, rtol=1e-5)
    like = {"a": jnp.ones(3), "b": fp.Frozen(jnp.ones(2))}
    found = fp.hutchinson_trace(lambda v: twice(trained(v)), like, key)
    assert len(jax.tree.leaves(found)) == 1 and float(found["a"]) == 6.0
    with raises(ValueError, "product must have the shape", "3", "2"):
        fp.hutchinson_trace(lambda v: v[:2], jnp.ones(3), key)
    with raises(ValueError, "product must give what is like its vector, got None"):
        fp.hutchinson_trace(lambda v: None, jnp.ones(3), key)
    with raises(TypeError, "like/a must be of floats, got int"):
        fp.hutchinson_trace(twice, {"a": jnp.ones(3, int)}, key)


def test_a_part_of_a_matrix_is_chosen_by_name(x64):
    params, batch, _ = build(CASES[0], jnp.float64)
    vector = jax.tree.map(jnp.cos, params)
    want = quickly(functools.partial(truth, CASES[0].layer))(params, batch)
    chosen = flat(jax.tree.map(jnp.full_like, params, fp.where("dense_1", params)))
    for product, matrix in (
        (fp.hessian_vector_product, want.hessian),
        (fp.ggn_vector_product, want.ggn),
    ):
        got = jax.jit(product(CASES[0].layer, "dense_1"))(params, vector, batch)
        chex.assert_trees_all_close(
            flat(got), chosen * (matrix @ (chosen * flat(vector))), atol=1e-12
        )


@pytest.mark.parametrize("loss", [CROSS, fp.softmax_cross_entropy(0.2), BINARY, SQUARED])
@pytest.mark.parametrize("drawn", [False, True], ids=["exact", "drawn"])
def test_columns_of_a_loss_are_a_root_of_its_hessian(loss, drawn, x64):
    rng = np.random.default_rng(0)
    y, w = jnp.asarray(rng.standard_normal((2, 2, 3))), jnp.asarray([0.5, 2.0])
    targets = jnp.asarray(rng.dirichlet(np.ones(3), (2, 2)))
    one = fp.Sum(jnp.ones(()), jnp.zeros(()))
    _, kept = loss.forward((), (y, targets, w))
    curvature = loss.backward.curvature
    if drawn:
        keys = jax.random.split(jax.random.key(0), 40_000)
        columns = jax.vmap(lambda key: curvature.sampled(kept, one, key))(keys) / 200
    else:
        columns = curvature.root(kept, one)
    columns = columns.reshape(len(columns), 2, 6)
    hessian = jax.hessian(lambda y: loss.forward((), (y, targets, w))[0].total)(y)
    want = jnp.stack([hessian.reshape(2, 6, 2, 6)[i, :, i] for i in range(2)])
    got = jnp.einsum("cni,cnj->nij", columns, columns)
    chex.assert_trees_all_close(got, want, atol=0.06 if drawn else 1e-12)  # 5 deviations of 4e4


def test_noise_scale_is_that_of_parts_of_one_example(x64):
    case = next(c for c in CASES if c.id == "cnn")
    params, batch, _ = build(case, jnp.float64)
    got = jax.jit(fp.noise_scale(case.layer))(params, batch)
    parts = fp.gradient_statistics(fp.backprop(case.layer), 4)(params, batch)
    chex.assert_trees_all_close(got, parts.metrics["noise_scale"], rtol=1e-9)


def test_random_signs_find_trace_and_diagonal(x64):
    case = CASES[0]
    params, batch, _ = build(case, jnp.float64)
    product = fp.hessian_vector_product(case.layer)
    want = jnp.diag(quickly(functools.partial(truth, case.layer))(params, batch).hessian)
    find = functools.partial(fp.hutchinson_diagonal, lambda v: product(params, v, batch))
    got = jax.jit(functools.partial(find, samples=4000))(params, jax.random.key(0))
    chex.assert_trees_all_close(flat(got), want, atol=0.1 * float(jnp.abs(want).max()))
    trace = fp.hutchinson_trace(lambda v: v, params, jax.random.key(0), samples=2)
    assert [float(leaf) for leaf in jax.tree.leaves(trace)] == [12, 4, 12, 3]


@pytest.mark.parametrize("b, t, i, o", [(7, 2, 5, 4), (9, 1, 3, 2), (5, 9, 2, 2), (8, 2, 6, 6)])
def test_second_moments_of_a_few_examples_at_a_time(b, t, i, o, x64):
    rng = np.random.default_rng(0)
    rows, d = jnp.asarray(rng.standard_normal((b, t, i))), rng.standard_normal((3, b, t, o))
    params = fp.DenseParams(jnp.ones((i, o)), jnp.ones(o))
    got = jax.jit(second_moment)(params, rows, jnp.asarray(d))
    chex.assert_trees_all_close(got.w, (np.einsum("bti,cbto->cbio", rows, d) ** 2).sum((0, 1)))
    chex.assert_trees_all_close(got.b, (d.sum(2) ** 2).sum((0, 1)))


# ------------------------------------------------------------------------------- Kronecker factors

ONE_PLACE = [
    Case("dense", fp.objective(fp.mlp(4, 3), CROSS), both(normal(1, 3), labels(1, classes=3))),
    Case(
        "conv",
        fp.objective(fp.serial(fp.conv(2, (2, 3), padding="valid"), fp.flatten()), SQUARED),
        both(normal(1, 2, 3, 2), normal(1, 2)),
    ),
]


@pytest.mark.parametrize("case", ONE_PLACE, ids=lambda case: case.id)
def test_factors_of_one_example_at_one_place_are_the_block_itself(case, x64):
    params, batch, _ = build(case, jnp.float64)
    found = jax.jit(fp.kfac_factors(case.layer, samples=None))(params, batch)
    want = quickly(functools.partial(truth, case.layer))(params, batch).ggn
    start = 0
    for factors in jax.tree.leaves(found, is_leaf=lambda n: isinstance(n, fp.Factors)):
        block = jnp.kron(factors.a, factors.g) / factors.weight  # the bias is the last row of `w`
        end = start + len(block)
        chex.assert_trees_all_close(want[start:end, start:end], block, atol=1e-12)
        start = end
    assert start == len(want)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_over_time_are_the_sums_of_their_papers(sharing, x64):
    model, w = fp.dense(2, bias=False), jnp.asarray([1.0, 0.0, 3.0])
    case = Case("time", fp.objective(model, SQUARED), both(normal(3, 4, 2), normal(3, 4, 2)))
    params, (x, y), _ = build(case, jnp.float64)
    a, g, weight = fp.kfac_factors(case.layer, samples=None, sharing=sharing)(params, (x, y, w))
    d = jnp.sqrt(2 * w)[:, None, None, None] * jnp.eye(8).reshape(1, 8, 4, 2)  # [b, c, t, o]
    if sharing == "reduce":
        x, d = x.mean(1, keepdims=True), d.sum(2, keepdims=True)
    chex.assert_trees_all_close(a, jnp.einsum("b,bti,btj->ij", w, x, x), atol=1e-12)
    chex.assert_trees_all_close(g, jnp.einsum("bcti,bctj->ij", d, d), atol=1e-12)
    assert weight == w.sum() * (4 if sharing == "expand" else 1)


@pytest.mark.parametrize(
    ("shape", "kernel", "how"),
    [
        ((2, 5, 6, 2), (3, 2), {}),
        ((2, 7, 2), (3,), {"padding": [(4, 0)], "dilation": 2}),
        ((2, 3, 4, 1), (2, 3), {"padding": [(0, 0), (2, 3)]}),
        ((2, 6, 5, 1), (2, 2), {"padding": "valid", "dilation": (2, 1)}),
    ],
)
def test_inputs_of_a_window_have_the_moment_of_their_patches(shape, kernel, how, x64, monkeypatch):
    """By overlaps, which pays for many channels alone."""
    layer, tried = fp.conv(3, kernel, **how), []
    monkeypatch.setattr(overlaps, "_pays", lambda *given: tried.append(given) is None)
    x, w = jnp.asarray(np.random.default_rng(0).standard_normal(shape)), jnp.asarray([0.5, 2.0])
    params = layer.init(jax.random.key(0), x)
    objective = fp.objective(layer, SQUARED)
    y = layer.forward(params, x)[0]
    rows = layer.backward.closed.outer(x, y)[0]
    rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], -1)
    for more, weights in (((), jnp.ones(2)), ((w,), w)):
        batch = x, jnp.zeros_like(y), *more
        find = fp.kfac_factors(objective)
        found = quickly(find)(params, batch, sample_key=jax.random.key(0))
        want = jnp.einsum("b,bti,btj->ij", weights, rows, rows)
        chex.assert_trees_all_close(found.a, want, rtol=1e-11, atol=1e-11)
        assert found.weight == weights.sum() * rows.shape[1]
    assert tried


def test_every_layer_of_a_transformer_has_factors_or_a_diagonal():
    case = next(c for c in CASES if c.id == "transformer")
    params, batch, _ = build(case)
    find = fp.kfac_factors(case.layer)
    found = jax.eval_shape(lambda *args: find(*args, sample_key=jax.random.key(0)), params, batch)
    kinds = (fp.Factors, fp.Diagonal)
    parts = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, kinds))
    assert [type(part) for part in parts].count(fp.Factors) == 5
    assert all(isinstance(part, kinds) for part in parts)
    shapes = [part.a.shape for part in parts if isinstance(part, fp.Factors)]
    assert shapes[:2] == [(2, 5, 5), (2, 5, 5)]  # of two copies, the bias among the inputs


@pytest.mark.parametrize("name", ["tied-words", pytest.param("tied-gpt", marks=pytest.mark.slow)])
def test_a_tied_table_has_a_diagonal_and_all_else_the_factors_of_its_own(name, x64):
    case = next(c for c in CASES if c.id == name)
    params, batch, _ = build(case, jnp.float64)
    found, plain, diagonal = quickly(
        lambda params, batch: (
            *(fp.kfac_factors(one, samples=None)(params, batch) for one in LANGUAGE[name]),
            fp.ggn_diagonal(case.layer)(params, batch),
        )
    )(params, batch)
    chex.assert_trees_all_close(found, plain, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(found.embedding.diagonal, diagonal.embedding, rtol=1e-10)
    parts = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, fp.Factors | fp.Diagonal))
    assert [type(part) for part in parts].count(fp.Factors) == (1 if name == "tied-words" else 4)
    empty = fp.kfac(case.layer, 0.1).init(params).curvature
    chex.assert_trees_all_equal_shapes_and_dtypes(found, empty)


def test_curvature_is_told_through_rewrites_of_the_loss(x64):
    ours, case = LANGUAGE["words"][0], next(c for c in CASES if c.id == "words")
    params, batch, _ = build(case, jnp.float64)
    still, wide = fp.freeze(ours, "head"), fp.cast(ours, jnp.float64, param_dtype=jnp.float64)

    def diagonals(params: Any, batch: Any) -> Any:
        rest = fp.ggn_diagonal(still)(fp.frozen(ours, "head", params), batch)
        return rest, *(fp.ggn_diagonal(one)(params, batch) for one in (wide, ours))

    rest, cast, plain = quickly(diagonals)(params, batch)
    chex.assert_trees_all_close(cast, plain, rtol=1e-12)
    chex.assert_trees_all_close(rest[0], plain[0], rtol=1e-12)
    assert rest.head is None


# --------------------------------------------------------------------------------------- bad input


def raises(kind: type[Exception], *parts: str) -> Any:
    return pytest.raises(kind, match=".*".join(parts))


def test_what_cannot_be_is_refused_in_a_sentence():
    mixing = fp.objective(fp.serial(fp.dense(3), fp.batch_norm()), CROSS)
    batch = jnp.ones((4, 2)), jnp.zeros(4, int)
    params, key = mixing.init(jax.random.key(0), batch), jax.random.key(1)
    for quantity in (
        fp.per_example_gradients,
        fp.per_example_norms,
        fp.per_example_dot_products,
        fp.gradient_variance,
        fp.noise_scale,
        fp.ggn_diagonal,
        functools.partial(fp.kfac_factors, samples=None),
    ):
        with raises(ValueError, "batch_norm mixes the examples of a batch in training"):
            quantity(mixing)(params, batch, key)
    penalised = fp.language_model(WORDS, 5, z_loss=0.1)
    tokens = jnp.zeros((2, 3), int)
    told = "the loss must have no params for this, or be linear_cross_entropy without z_loss"
    with raises(ValueError, told, "got head"):
        fp.ggn_diagonal(penalised)(penalised.init(key, (tokens, tokens)), (tokens, tokens))
    plain = fp.objective(fp.dense(3), fp.mean_absolute())
    batch = jnp.ones((4, 2)), jnp.ones((4, 3))
    params = plain.init(key, batch)
    with raises(ValueError, "ggn_diagonal needs a loss that says its Hessian", "mean_absolute"):
        fp.ggn_diagonal(plain)(params, batch)
    with raises(ValueError, "kfac_factors needs sample_key to draw labels from, got none"):
        fp.kfac_factors(plain)(params, batch)
    with raises(ValueError, "sharing", "expand", "reduce"):
        fp.kfac_factors(plain, sharing="both")
    with raises(ValueError, "noise_scale needs a batch of two examples or more, got 1"):
        fp.noise_scale(plain)(params, (jnp.ones((1, 2)), jnp.ones((1, 3))))
    for product in (fp.hessian_vector_product(plain), fp.ggn_vector_product(plain)):
        with raises(ValueError, "vector/w must have the shape .2, 3. of params, got .2,."):
            product(params, params._replace(w=jnp.ones(2)), batch)
        with raises(ValueError, "vector must be like the gradient of params.*got list of 1 leaves"):
            product(params, [jnp.ones(2)], batch)
        with raises(TypeError, "vector/w must be an array, got 'one'"):
            product(params, params._replace(w="one"), batch)


# ----------------------------------------------------------------------------------------- Laplace


def test_laplace_is_the_posterior_itself_where_that_is_normal(x64):
    """Linear regression with noise of deviation 1/2: mean, variance and evidence are known."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((8, 3)), rng.standard_normal((3, 1))
    y, s, tau = x @ w + 0.5 * rng.standard_normal((8, 1)), 0.5, 2.0
    precision = x.T @ x / s**2 + tau * np.eye(3)
    mean = np.linalg.solve(precision, x.T @ y / s**2)
    model = fp.dense(1, bias=False)
    objective = fp.objective(model, SQUARED)
    batches = [(jnp.asarray(x[:5]), jnp.asarray(y[:5])), (jnp.asarray(x[5:]), jnp.asarray(y[5:]))]
    params = fp.DenseParams(jnp.asarray(mean), None)
    given = {"prior_precision": tau, "scale": 1 / (2 * s**2)}
    found = fp.laplace(objective, params, batches, **given)
    at = jnp.asarray(rng.standard_normal((4, 3)))
    drawn = found.outputs(model, at, jax.random.key(0), samples=20_000)
    want = np.diag(at @ np.linalg.solve(precision, at.T))
    chex.assert_trees_all_close(drawn.var(0)[:, 0], want, rtol=0.05)
    chex.assert_trees_all_close(drawn.mean(0), at @ mean, atol=0.02)
    # log N(y; 0, s^2 I + x x^T / tau), whose constant is of the likelihood
    whole = s**2 * np.eye(8) + x @ x.T / tau
    evidence = -(y.T @ np.linalg.solve(whole, y))[0, 0] / 2 - np.linalg.slogdet(whole)[1] / 2
    assert float(found.log_evidence()) == pytest.approx(evidence + 8 * np.log(s))


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_laplace_draws_have_the_inverse_of_its_curvature(structure, x64):
    params, batch, _ = build(CASES[0], jnp.float64)
    given = {"structure": structure, "prior_precision": 0.3, "pattern": "dense_1"}
    found = fp.laplace(CASES[0].layer, params, [batch], **given)
    drawn = jax.vmap(found.sample)(jax.random.split(jax.random.key(0), 20_000))
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[0], drawn[0]), params[0])
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
    if structure == "kronecker":
        factors = fp.kfac_factors(CASES[0].layer, samples=None)(params, batch)[2]
        curvature = jnp.kron(factors.a, factors.g) / factors.weight
    else:
        curvature = jnp.diag(flat(fp.ggn_diagonal(CASES[0].layer)(params, batch)[2]))
    want = jnp.linalg.inv(curvature + 0.3 * jnp.eye(len(curvature)))
    w = drawn[2]._replace(w=drawn[2].w - params[2].w[None], b=drawn[2].b - params[2].b[None])
    rows = jnp.concatenate([w.w, w.b[:, None]], 1).reshape(20_000, -1)
    chex.assert_trees_all_close(rows.T @ rows / 20_000, want, atol=0.04 * float(want.max()))


def test_laplace_refuses_in_a_sentence():
    params, batch, _ = build(CASES[0])
    for wrong, told in (
        ({"structure": "full"}, "structure must be"),
        ({"prior_precision": 0.0}, "prior_precision must be positive and finite, got 0.0"),
        ({"prior_precision": float("nan")}, "prior_precision must be positive and finite, got nan"),
        ({"scale": float("inf")}, "scale must be positive and finite, got inf"),
        ({"pattern": "*/w"}, "pattern must mean whole layers"),
        ({"pattern": "dense_7"}, "must match a name"),
    ):
        with raises(ValueError, told):
            fp.laplace(CASES[0].layer, params, [batch], **wrong)
    with raises(ValueError, "batches must hold at least one batch, got none"):
        fp.laplace(CASES[0].layer, params, [])
