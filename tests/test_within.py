"""A step fits into a budget whenever a policy makes it fit, at the least work."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
import funprop.memory.within as search
from funprop.memory.account import Account, Program, work_of
from funprop.memory.blocks import Policy, blocks_of, under
from funprop.trees import spec

KEY = jax.random.key(0)
draw = np.random.default_rng(0)
X = draw.normal(size=(128, 16)).astype(np.float32)
Y = draw.normal(size=(128, 1)).astype(np.float32)


def block(wide):
    inner = (fp.layer_norm(), fp.dense(wide), fp.gelu(), fp.dropout(0.3), fp.dense(16))
    return fp.residual(fp.serial(*inner))


model = fp.serial(
    fp.named("deep", fp.repeat(block(48), 3)),
    fp.named("wide", block(64)),
    fp.dense(1),
)
objective = fp.objective(model, fp.mean_squared())
BATCH = spec((X, Y))


def gradient(layer, params):
    return jax.jit(fp.backprop(layer))(params, (X, Y), KEY)


def gpt():
    tokens = jax.ShapeDtypeStruct((8, 32), jnp.int32)
    deep = fp.gpt(64, features=16, depth=8, heads=2, longest=32)
    return fp.language_model(deep, 64), (tokens, tokens)


MODELS = {"mlp": lambda: (objective, BATCH), "gpt": gpt}


@pytest.fixture(scope="module", params=MODELS)
def every(request):
    """A model, and what each of its policies takes."""
    layer, batch = MODELS[request.param]()
    blocks, program = blocks_of(layer, batch), Program(batch, None)
    options = [b.policies(offloads=False) for b in blocks]
    accounts = {p: program.account(under(layer, blocks, p)) for p in itertools.product(*options)}
    return layer, batch, accounts


@pytest.mark.slow  # compiles all policies
@pytest.mark.parametrize("few", [64, 0], ids=["by trying", "along the curve"])
def test_it_meets_the_budget_whenever_a_policy_does_at_the_least_work(every, few, monkeypatch):
    """Both ways to choose; with what is known, nothing is compiled again."""
    layer, batch, accounts = every
    monkeypatch.setattr(search, "FEW", few)
    monkeypatch.setattr(search, "under", lambda layer, blocks, policies: policies)
    monkeypatch.setattr(Program, "account", lambda program, policies: accounts[policies])
    sizes = sorted({account.bytes for account in accounts.values()})
    keeping = next(iter(accounts.values()))
    assert len(accounts) >= 8 and sizes[0] < 0.75 * keeping.bytes
    for budget in [(a + b) // 2 for a, b in itertools.pairwise(sizes)] + sizes[:1]:
        best = min(a.work for a in accounts.values() if a.bytes <= budget)
        found = fp.within(layer, batch, budget)
        assert found.bytes <= budget
        assert found.work * keeping.work <= 1.05 * best
    with pytest.raises(ValueError, match=f"bytes must be at least {sizes[0]:,}, the least that"):
        fp.within(layer, batch, sizes[0] - 1)


def test_a_block_is_found_that_saves_alone_though_all_together_save_nothing(monkeypatch):
    """As of convolutions, which XLA runs again in buffers of their own."""
    deep, wide, *_ = blocks_of(objective, BATCH)
    saved = wide.saves(wide.policies(offloads=False)[-1])

    def account(program, policies):
        every = not policies[0].keep and policies[1].recompute
        costs = sum(b.costs(p, 0.0) for b, p in zip((deep, wide), policies, strict=False))
        return Account(10**6 - (saved if policies[1].recompute and not every else 0), 10**9 + costs)

    monkeypatch.setattr(search, "under", lambda layer, blocks, policies: policies)
    monkeypatch.setattr(Program, "account", account)
    found = fp.within(objective, BATCH, 10**6 - saved // 2)
    assert [c.path for c in found.chosen if c.policy.recompute] == [wide.path]


def test_along_a_curve_whose_end_saves_less_the_least_that_was_seen_is_told_and_fits(monkeypatch):
    def account(program, policies):
        deep, wide, *_ = policies
        some = deep.recompute and deep.keep
        return Account(10**6 - 50_000 * bool(some) - 10 * wide.recompute, 10**9)

    monkeypatch.setattr(search, "FEW", 0)
    monkeypatch.setattr(search, "under", lambda layer, blocks, policies: policies)
    monkeypatch.setattr(Program, "account", account)
    with pytest.raises(ValueError, match="bytes must be at least 949,990, the least that"):
        fp.within(objective, BATCH, 1)
    assert fp.within(objective, BATCH, 949_990).bytes == 949_990


def test_what_fits_gives_the_same_gradient_and_says_what_it_costs():
    plain = fp.within(objective, BATCH, 10**9)
    assert plain.work == 1 and plain.tried == 1
    found = fp.within(objective, BATCH, int(0.8 * plain.bytes))
    assert found.bytes <= 0.8 * plain.bytes and 1 < found.work < 1.34
    deep = found.chosen[0]
    assert (deep.path, deep.copies) == ("deep", 3) and deep.policy.recompute > 0
    params = objective.init(KEY, BATCH)
    new, old = gradient(found.objective, params), gradient(objective, params)
    chex.assert_trees_all_close(new[:3], old[:3], rtol=1e-5, atol=1e-5)
    assert f"{found.bytes:,} bytes of {found.budget:,}" in str(found)
    assert "recompute" in str(found)


def test_copies_apart_give_the_gradient_of_the_whole():
    """Some run again, some moved, some kept; with the keys of each."""
    blocks = blocks_of(objective, BATCH)
    assert [b.path for b in blocks][:2] == ["deep", "wide"]
    policies = (Policy(1, 1, 1), Policy(0, 1, 0), *(Policy(0, 0, 1) for _ in blocks[2:]))
    params = objective.init(KEY, BATCH)
    new, old = gradient(under(objective, blocks, policies), params), gradient(objective, params)
    chex.assert_trees_all_close(new[:3], old[:3], rtol=1e-5, atol=1e-5)


def test_copies_that_record_stay_together():
    normed = fp.serial(fp.repeat(fp.serial(fp.dense(16), fp.batch_norm(), fp.relu()), 3))
    whole = fp.objective(fp.serial(normed, fp.dense(1)), fp.mean_squared())
    (deep, *_) = blocks_of(whole, BATCH)
    assert deep.policies(offloads=False) == [Policy(0, 0, 3), Policy(3, 0, 0)]
    params = whole.init(KEY, BATCH)
    train = fp.step(fp.backprop(under(whole, [deep], (Policy(3, 0, 0),))), optax.sgd(0.1))
    other = fp.step(fp.backprop(whole), optax.sgd(0.1))
    states = [s.update(s.init(params, KEY), (X, Y))[0].params for s in (train, other)]
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-6)


def test_an_update_takes_its_optimizer_too():
    gradient_alone = fp.within(objective, BATCH, 10**9)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        whole = fp.within(objective, BATCH, 10**9, optimizer=optax.adam(1e-3))
    state = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(objective.init(KEY, BATCH)))
    assert whole.bytes > gradient_alone.bytes + state / 2


def test_work_counts_products_and_turns():
    def turned(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

    jaxpr = jax.make_jaxpr(turned)(jnp.zeros((4, 8)), jnp.zeros((8, 8))).jaxpr
    assert work_of(jaxpr) == 5 * 2 * 4 * 8 * 8


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="bytes must be at least 1, got 0"):
        fp.within(objective, BATCH, 0)
    with pytest.raises(TypeError, match="bytes must be"):
        fp.within(objective, BATCH, "8GB")
    for given in (-1, float("inf"), True):
        with pytest.raises(ValueError, match="transfer must be a positive number, got"):
            fp.within(objective, BATCH, 10**9, transfer=given)
    with pytest.raises(
        TypeError, match=r"objective must give a Sum, .* got the model serial alone"
    ):
        fp.within(model, BATCH, 10**9)
    with pytest.raises(TypeError, match="objective must be a layer"):
        fp.within(fp.backprop(objective), BATCH, 10**9)
