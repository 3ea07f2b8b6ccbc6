"""Params are called what people call them, everywhere: by JAX, by patterns, by tables."""

import copy
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from tests.cases import COMPOSITE, build, quickly

TOKENS = jnp.zeros((2, 4), int)


def specs(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def gpt(**more):
    return fp.language_model(fp.gpt(50, features=8, depth=4, heads=2, longest=8), 50, **more)


MODELS = {
    "gpt": (gpt(), (TOKENS, TOKENS)),
    "gpt-untied": (gpt(tied=False), (TOKENS, TOKENS)),
    "llama": (fp.language_model(fp.llama(50, features=16, depth=2, heads=2), 50), (TOKENS, TOKENS)),
    "cnn": (fp.cnn(10, widths=(4, 8), blocks=2, norm=fp.batch_norm), jnp.zeros((2, 8, 8, 1))),
    "rnn": (fp.rnn(3, fp.lstm(4), fp.gru(4)), jnp.zeros((2, 8, 3))),
    "mlp": (fp.mlp(8, 4, 2), jnp.zeros((2, 3))),
    "autoencoder": (fp.autoencoder((8, 8, 1), code=3, widths=(4,)), jnp.zeros((2, 8, 8, 1))),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_path_that_jax_prints_is_readable(name):
    """No number but that of like siblings, no name twice, and no level that nobody gave."""
    leaves = jax.tree_util.tree_leaves_with_path(specs(*MODELS[name]))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    assert len(set(paths)) == len(paths)
    for path in paths:
        for part in path.split("/"):
            assert re.fullmatch(r"[a-z][a-z_]*(_\d+)?", part), path
            assert part not in {"serial", "residual", "repeat", "reparam", "objective"}, path
    assert paths == list(fp.by_name(specs(*MODELS[name])))


def test_papers_names():
    params = specs(*MODELS["gpt-untied"])
    assert {"gpt/embedding/table", "gpt/positions/table", "gpt/blocks/attention/output/w"} <= {
        *fp.by_name(params)
    }
    assert params.gpt.blocks.attention.output.w is params[0][2][0][3][0]
    assert params.head.w.shape == (50, 8)


def test_params_are_tuples_that_copy_and_pickle():
    params = fp.serial(fp.dense(4), fp.relu(), fp.dense(2)).init(
        jax.random.key(0), jnp.zeros((1, 3))
    )
    assert isinstance(params, tuple) and params._fields == ("dense_0", "relu", "dense_1")
    for other in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params)):
        assert type(other) is type(params)
        assert jax.tree.structure(other) == jax.tree.structure(params)


def test_names_that_nobody_could_write_are_made_so():
    siblings = (
        fp.named("dense_1", fp.dense(3)),
        fp.dense(3),
        fp.dense(3),
        fp.named("a b", fp.relu()),
    )
    params = fp.serial(*siblings, fp.named("class", fp.tanh())).init(
        jax.random.key(0), jnp.zeros((1, 3))
    )
    assert params._fields == ("dense_1", "dense_0", "dense_2", "a_b", "layer_class")
    assert len(jax.tree.leaves(params)) == len(fp.by_name(params)) == 6
    odd = fp.serial(
        *(fp.named(n, fp.tanh()) for n in ("a_1", "a", "a", "a", "a 1", "x²", "ﬁ", "fi"))
    )
    assert len(set(odd.init(jax.random.key(0), jnp.zeros(3))._fields)) == 8
    for name in ("frozen", " frozen", "statistic", ""):
        with pytest.raises(ValueError, match="name must not be empty or one of frozen, statistic"):
            fp.named(name, fp.relu())
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        fp.named(3, fp.relu())


@pytest.mark.parametrize("case", COMPOSITE, ids=lambda case: case.id)
def test_rewrites_keep_the_names(case):
    params, x, _ = build(case)
    want = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for rewrite in (fp.autodiff, fp.remat, lambda layer: fp.map_layers(fp.autodiff, layer)):
        got = jax.eval_shape(rewrite(case.layer).init, jax.random.key(0), x)
        assert [path for path, _ in jax.tree_util.tree_leaves_with_path(got)] == want


# ----------------------------------------------------------------------------------------- patterns


def meant(pattern, params):
    mask = fp.where(pattern, params)
    return [name for name, chosen in fp.by_name(mask).items() if chosen]


def test_patterns_mean_what_they_say():
    params = fp.mlp(4, 3, 2).init(jax.random.key(0), jnp.zeros((1, 5)))
    assert meant("*/w", params) == ["dense_0/w", "dense_1/w", "dense_2/w"]
    assert meant("dense_0", params) == ["dense_0/w", "dense_0/b"]
    assert meant(("dense_0/w", "*_2/b"), params) == ["dense_0/w", "dense_2/b"]
    assert meant("*/w", fp.dense(2).init(jax.random.key(0), jnp.zeros((1, 5)))) == ["w"]
    assert meant("a/*", {"a": {"w": 1.0}, "b": 2.0}) == ["a/w"]  # anybody's params
    with pytest.raises(ValueError, match="'dens_0' must match a name, the nearest are dense_0"):
        fp.where("dens_0", params)


def test_a_mask_of_what_is_trained_may_mean_what_is_frozen():
    """An optimizer is given the trained params, in which nobody can see the names of the others."""
    model = fp.serial(fp.dense(4, bias=False), fp.layer_norm(), fp.named("head", fp.dense(2)))
    frozen = fp.freeze(model, ("head", "layer_norm"))
    params = frozen.init(jax.random.key(0), jnp.ones((3, 5)))
    assert meant("head/w", params) == ["head/w"]
    rest = fp.trained(params)
    for pattern, found in (("head", []), ("head/w", []), ("*/scale", []), ("*/w", ["dense/w"])):
        assert meant(pattern, rest) == found
    mask = lambda p: fp.where(("*/scale", "head"), p)
    decay = optax.masked(optax.add_decayed_weights(0.1), mask)
    updates, _ = decay.update(rest, decay.init(rest), rest)
    assert jax.tree.structure(updates) == jax.tree.structure(rest)
    assert fp.where("*/scale", None) is None  # all is frozen
    rest = fp.trained(fp.freeze(model, "head").init(jax.random.key(0), jnp.ones((3, 5))))
    for tree, wrong in ((rest, "dense/scale"), (rest, "dense/b"), (params, "haed")):
        with pytest.raises(ValueError, match=f"'{wrong}' must match a name"):
            fp.where(wrong, tree)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda m: fp.freeze(m, "block"), "'block' must match a name, the nearest are blocks"),
        (lambda m: fp.low_rank(m, "*/qvk", 2), "'\\*/qvk' must match a name, the nearest are"),
        (lambda m: fp.tap(m, "nrom", forward=jnp.sum), "'nrom' must match a name, the nearest are"),
        (lambda m: fp.remat(m, keep="corr"), "'corr' must match a name, the nearest are"),
        (lambda m: fp.freeze(m, "head"), "params are made of others cannot be chosen, got 'head'"),
        (lambda m: fp.freeze(m, "blocks[4]"), "some of the 4 copies in a row, got 'blocks\\[4\\]'"),
        (lambda m: fp.freeze(m, "norm[0]"), "copies must be of what is repeated, got 'norm"),
        (lambda m: fp.freeze(m, "blocks[x]"), "by an index or a slice, got 'blocks\\[x\\]'"),
        (lambda m: fp.tap(m, "blocks[0]", forward=jnp.sum), "copies can be frozen or adapted"),
        (lambda m: fp.freeze(m, "*norm[0]"), "copies must be of what is repeated, got '\\*norm"),
        (
            lambda m: fp.freeze(fp.freeze(m, "blocks"), "blocks/attention"),
            "'blocks/attention' must match a name; all below blocks is frozen already",
        ),
        (
            lambda m: fp.freeze(fp.freeze(m, "blocks"), "blocks[0]"),
            "copies must be of what is not frozen already, got 'blocks\\[0\\]'",
        ),
        (
            lambda m: fp.low_rank(fp.low_rank(m, "*/qkv", 2), "*/qkv", 2),
            "where must mean dense layers that are not adapted yet, got low_rank\\(qkv\\)",
        ),
    ],
)
def test_what_means_nothing_is_told(use, sentence):
    with pytest.raises(ValueError, match=sentence):
        use(gpt())


@pytest.mark.parametrize(
    "where",
    [
        "blocks[-1]/attention",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("blocks[:-1]", ("blocks[0]", "norm"))),
    ],
)
def test_copies_are_frozen_one_by_one(where):
    """The function is the same, what is frozen has no gradient, and the rest has the same one."""
    model = gpt()
    batch = (jnp.arange(8).reshape(2, 4), jnp.arange(8).reshape(2, 4) + 1)
    params = quickly(model.init)(jax.random.key(0), batch)
    part, of_part = fp.freeze(model, where), fp.frozen(model, where, params)
    want = quickly(fp.backprop(model))(params, batch)
    got = quickly(fp.backprop(part))(of_part, batch)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-6)
    whole = {"blocks[:-1]": 0, "blocks[-1]/attention": 3, ("blocks[0]", "norm"): 1}[where]
    stack = want.grads.blocks.network.output.w
    cut = got.grads.blocks[0 if whole == 3 else 1].network.output.w
    expected = {0: stack[3:], 3: stack[:3], 1: stack[1:]}[whole]
    np.testing.assert_allclose(cut, expected, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(got.grads) == jax.tree.structure(fp.trained(of_part))
    assert jax.tree.structure(of_part) == jax.tree.structure(specs(part, batch))


def test_low_rank_trains_its_own_numbers_alone_in_a_tied_model_too():
    model, batch = gpt(), (TOKENS, TOKENS)
    params = quickly(model.init)(jax.random.key(0), batch)
    small = fp.low_rank(model, "*/qkv", 2, train="*/norm")
    own = fp.adapted(model, "*/qkv", 2, params, jax.random.key(1), train="*/norm")
    assert {name.split("/")[-2] for name in fp.by_name(fp.trained(own))} == {"qkv", "norm"}
    assert jax.tree.structure(own) == jax.tree.structure(specs(small, batch))
    np.testing.assert_array_equal(
        quickly(small.forward)(own, batch)[0].total, quickly(model.forward)(params, batch)[0].total
    )
    for node in (small, small.rebuild(*small.children)):  # the rebuild law
        assert jax.tree.structure(specs(node, batch)) == jax.tree.structure(own)
    train = fp.step(fp.backprop(small), optax.sgd(0.1))
    after = train.update(train.init(own, None), batch)[0].params
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), own, after)
    trained = [name for name, moved in fp.by_name(changed).items() if moved]
    assert trained and {name.split("/")[-1] for name in trained} <= {"up", "down", "scale", "bias"}


@pytest.mark.parametrize(
    ("where", "train", "trained"),
    [
        ("blocks[-1]/attention/qkv", "blocks[-2:]/*norm", {"copy_3/attention/qkv", "norm"}),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("blocks/attention/qkv", "*[0]/*norm*", {"attention/qkv", "copy_0"}),
                ("*[-1]/*/qkv", None, {"copy_3/attention/qkv"}),
            )
        ),
    ],
)
def test_low_rank_of_some_copies_and_some_trained_whole(where, train, trained):
    model, batch = gpt(), (TOKENS, TOKENS)
    params = model.init(jax.random.key(0), batch)
    small = fp.low_rank(model, where, 2, train=train)
    own = fp.adapted(model, where, 2, params, jax.random.key(1), train=train)
    assert jax.tree.structure(own) == jax.tree.structure(specs(small, batch))
    leaves = list(fp.by_name(fp.trained(own)))
    assert all(any(part in name for name in leaves) for part in trained)
    assert all(any(part in name for part in trained) for name in leaves)
    got, want = small.forward(own, batch)[0].total, model.forward(params, batch)[0].total
    np.testing.assert_allclose(got, want, rtol=1e-6)


TWICE = {
    "freeze of freeze": lambda m: fp.freeze(fp.freeze(m, "blocks"), "norm"),
    "low_rank, frozen": lambda m: fp.freeze(fp.low_rank(m, "*/qkv", 2, train="norm"), "norm"),
    "cast of frozen": lambda m: fp.cast(fp.freeze(m, "blocks"), jnp.float32),
    "cast of low_rank": lambda m: fp.cast(fp.low_rank(m, "*/qkv", 2), jnp.float32),
    "remat of frozen": lambda m: fp.remat(fp.freeze(m, "blocks[:-1]")),
    "remat of tied, a part kept": lambda m: fp.remat(m, keep="*/attention"),
    "tap of low_rank": lambda m: fp.tap(fp.low_rank(m, "*/qkv", 2), "norm", forward=jnp.sum),
}


SLOW = set(TWICE) - {"low_rank, frozen", "tap of low_rank"}  # the like is quick


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.slow] if how in SLOW else []) for how in TWICE]
)
def test_rewrites_of_rewrites_train_and_are_told(how):
    model = TWICE[how](gpt())
    batch = (jnp.arange(8).reshape(2, 4), jnp.arange(8).reshape(2, 4) + 1)
    params = quickly(model.init)(jax.random.key(0), batch)
    train = fp.step(fp.backprop(model), optax.sgd(0.1))
    _, metrics = train.update(train.init(params, None), batch)
    assert np.isfinite(metrics["loss"].total)
    assert fp.summary(model, batch).total.trained == sum(
        leaf.size for leaf in jax.tree.leaves(fp.trained(params))
    )
    assert fp.describe_sharding(params).rows[0].path == next(iter(fp.by_name(params)))
    again = model.rebuild(*model.children)
    assert jax.tree.structure(specs(again, batch)) == jax.tree.structure(params)


def test_any_model_that_begins_with_an_embedding_can_be_tied():
    for body in (
        fp.serial(fp.named("tokens", fp.embedding(7, 4)), fp.layer_norm()),
        fp.embedding(7, 4),
        fp.serial(fp.serial(fp.embedding(7, 4), fp.layer_norm()), fp.dense(4)),
    ):
        model = fp.language_model(body, 7)
        params = quickly(model.init)(jax.random.key(0), (TOKENS, TOKENS))
        got = quickly(fp.backprop(model))(params, (TOKENS, TOKENS)).grads
        want = quickly(jax.grad(lambda p, m=model: m.forward(p, (TOKENS, TOKENS))[0].total))(params)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------- roles


def test_roles_and_the_decay_mask_hold_under_repeat():
    params = specs(*MODELS["gpt-untied"])
    by_role = {}
    for name, role in fp.by_name(fp.roles(params)).items():
        by_role.setdefault(role, set()).add(name.split("/")[-1])
    assert by_role == {
        "weight": {"w"},
        "bias": {"b", "bias"},
        "scale": {"scale"},
        "table": {"table"},
    }
    decayed = {name for name, chosen in fp.by_name(fp.decayed(params)).items() if chosen}
    assert decayed == {n for n in fp.by_name(params) if n.split("/")[-1] in ("w", "table")}


def test_roles_of_others_params():
    flax = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "Norm": {"scale": 1.0}}
    assert fp.roles(flax) == {
        "Dense_0": {"kernel": "weight", "bias": "bias"},
        "Norm": {"scale": "scale"},
    }
    assert fp.roles({"embedding": jnp.ones((3, 2))}) == {"embedding": "table"}
    assert fp.roles({"norm": {"weight": jnp.ones(3)}}) == {"norm": {"weight": "scale"}}


def test_what_is_not_trained_does_not_decay():
    model = fp.freeze(fp.serial(fp.dense(4), fp.batch_norm(), fp.dense(2)), "dense_0")
    params = model.init(jax.random.key(0), jnp.ones((3, 5)))
    optimizer = optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(0.5, mask=fp.decayed), optax.sgd(0.1)
    )
    zero = jax.tree.map(jnp.zeros_like, fp.trained(params))
    state = optimizer.init(fp.trained(params))
    updates, _ = optimizer.update(zero, state, fp.trained(params))
    moved = {name for name, u in fp.by_name(updates).items() if jnp.abs(u).max() > 0}
    assert moved == {"dense_1/w"}
    assert len(jax.tree.leaves(state[0].trace)) == 4  # scale, bias, w, b


def test_a_table_tells_role_state_and_place():
    model = fp.low_rank(
        fp.serial(fp.dense(4), fp.batch_norm(), fp.dense(2)), "dense_0", 1, train="batch_norm"
    )
    params = model.init(jax.random.key(0), jnp.ones((3, 5)))
    table = fp.param_table(params)
    state = {row.name: (row.role, row.state) for row in table.rows}
    assert state["dense_0/w"] == ("weight", "adapted")
    assert state["dense_0/up"] == ("weight", "trained")
    assert state["batch_norm/mean"] == ("statistic", "statistic")
    assert state["dense_1/b"] == ("bias", "frozen")
    assert table.trained == (5 + 4) + (4 + 4)
    assert "one device" in str(table)
    assert fp.summary(model, jnp.ones((3, 5))).total.trained == 17
