"""What needs eight devices. tests/test_sharding.py runs this with virtual ones; with real ones,
`python -m pytest -n 0 tests/eight_devices.py`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import funprop as fp

VOCABULARY, TIME, ROWS = 64, 8, 8
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (3, ROWS, TIME + 1))
BATCHES = TOKENS[..., :-1], TOKENS[..., 1:]
# Float64 rounding, through three updates of Adam.
CLOSE: Any = {"rtol": 1e-9, "atol": 1e-11}

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="wants eight devices")


@pytest.fixture(autouse=True, scope="module")
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        yield


def gpt(rewrite=lambda block: block):
    model = fp.gpt(VOCABULARY, features=16, depth=2, heads=4, longest=TIME, rewrite=rewrite)
    return fp.language_model(model, VOCABULARY, chunk=VOCABULARY)


def llama():
    model = fp.llama(VOCABULARY, features=16, depth=2, heads=8, kv_heads=4, hidden=32)
    return fp.language_model(model, VOCABULARY, tied=False, chunk=48)


def params_of(objective):
    """Any, without compiling what `init` draws; in float64 under x64."""
    spec = jax.eval_shape(objective.init, jax.random.key(0), batch(0))
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(0.1 * draw.normal(size=p.shape), jnp.zeros(()).dtype), spec
    )


def batch(i):
    return jax.tree.map(lambda leaf: leaf[i], BATCHES)


def trained(step, params, key=None, updates=3):
    """The state after some updates, and the losses on the way."""
    state, losses = step.init(params, key), []
    for i in range(updates):
        state, metrics = step.update(state, batch(i))
        losses.append(float(metrics["loss"].mean))
    return state, losses


def of_one_device(objective, key=None):
    return trained(fp.step(fp.backprop(objective), optax.adam(1e-2)), params_of(objective), key)


def lowered(step, state, batch):
    update: Any = step.update
    return update.lower(state, batch)


def parts(array):
    return {shard.data.shape for shard in array.addressable_shards}


def flat_rules(mesh):
    return fp.data_parallel_rules()


def fsdp(axis, rules=None):
    return lambda mesh: fp.fsdp_rules(mesh, axis, least=64, rules=rules)


def tensor(mesh):
    return fp.tensor_parallel_rules()


WAYS = {
    "data": (gpt, {"data": 8}, flat_rules, None),
    "fsdp": (gpt, {"data": 8}, fsdp("data"), None),
    "fsdp, gathered": (gpt, {"data": 8}, fsdp("data"), fp.data_parallel_rules()),
    "tensor": (gpt, {"model": 4}, tensor, None),
    "2d, gathered": (
        llama,
        {"fsdp": 4, "model": 2},
        fsdp("fsdp", fp.tensor_parallel_rules()),
        fp.tensor_parallel_rules(),
    ),
    "3d": (
        gpt,
        {"data": 2, "fsdp": 2, "model": 2},
        fsdp("fsdp", fp.tensor_parallel_rules()),
        None,
    ),
}


@pytest.fixture(scope="module")
def one_device():
    with jax.enable_x64(True):
        return {make: of_one_device(make()) for make in (gpt, llama)}


SLOW = {"fsdp", "tensor"}  # both are in "3d"


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] if way in SLOW else []) for way in WAYS]
)
def test_sharded_updates_are_those_of_one_device(x64, way, one_device):
    make, axes, rules, used = WAYS[way]
    mesh, objective = fp.make_mesh(**axes), make()
    whole = objective if used is None else fp.gathered(objective, mesh, used)
    step = fp.step(fp.backprop(whole), optax.adam(1e-2))
    sharded = fp.shard(step, mesh, rules(mesh))
    state, losses = trained(sharded, params_of(objective))
    expected, wanted = one_device[make]
    np.testing.assert_allclose(losses, wanted, **CLOSE)
    chex.assert_trees_all_close(jax.device_get(state), jax.device_get(expected), **CLOSE)
    if way != "data":
        rows = fp.describe_sharding(state).rows
        assert sum(r.device_bytes < r.bytes for r in rows) > len(rows) / 3


def test_state_is_cut_as_params_are_and_donated():
    mesh, objective = fp.make_mesh(data=8), gpt()
    step = fp.ema(fp.skip_nonfinite(fp.step(fp.backprop(objective), optax.adam(1e-2))), 0.9)
    sharded = fp.shard(step, mesh, fp.fsdp_rules(mesh, least=1))
    params = params_of(objective)
    state = sharded.init(params, jax.random.key(1))
    assert params.blocks.attention.qkv.w.shape == (2, 16, 48)
    adam = state.inner.inner.opt_state[0]
    for tree in (state.params, state.sums, adam.mu, adam.nu):
        assert parts(tree.blocks.attention.qkv.w) == {(2, 16, 6)}
    assert parts(state.inner.count) == {()}
    old, before = state, [leaf.sharding for leaf in jax.tree.leaves(state)]
    state, metrics = sharded.update(state, batch(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    for leaf, was in zip(jax.tree.leaves(state), before, strict=True):
        assert leaf.sharding.is_equivalent_to(was, leaf.ndim)
    assert metrics["loss"].total.is_fully_replicated
    assert np.isfinite(params.blocks.attention.qkv.w).all()  # what init was given is as it was
    sharded.check(state)
    compiled = lowered(sharded, state, batch(1)).compile()
    for leaf in jax.tree.leaves(compiled.input_shardings[0][1]):
        assert leaf.spec == P("data")
    memory = compiled.memory_analysis()
    held = fp.describe_sharding(state).device_bytes
    assert memory.alias_size_in_bytes >= held  # donated: written where it was


def test_fsdp_holds_a_share_of_the_state_on_each_device():
    objective = gpt()
    step = fp.step(fp.backprop(objective), optax.adam(1e-2))
    for n in (1, 2, 4, 8):
        mesh = fp.make_mesh(data=n)
        state = fp.shard(step, mesh, fp.fsdp_rules(mesh, least=1)).init(params_of(objective), None)
        table = fp.describe_sharding(state)
        counts = 8  # bytes of the two counters, which are everywhere
        assert table.device_bytes - counts == (table.bytes - counts) / n
        on_first = sum(
            part.data.nbytes
            for leaf in jax.tree.leaves(state)
            for part in leaf.addressable_shards
            if part.device == jax.devices()[0]
        )
        assert on_first == table.device_bytes


def test_gathered_moves_params_and_not_activations():
    mesh, features = fp.make_mesh(data=8), 32
    block = fp.residual(fp.serial(fp.dense(4 * features), fp.tanh(), fp.dense(features)))
    objective = fp.objective(fp.repeat(block, 2), fp.mean_squared())
    data = jnp.ones((64, features)), jnp.ones((64, features))
    params = objective.init(jax.random.key(0), data)
    step = fp.step(fp.backprop(fp.gathered(objective, mesh)), optax.sgd(0.1))
    sharded = fp.shard(step, mesh, fp.fsdp_rules(mesh, least=1))
    text = lowered(sharded, sharded.init(params, None), data).compile().as_text()
    assert "all-gather" in text
    assert f"f32[8,{4 * features}]" in text  # an eighth of the hidden activations
    assert f"f32[64,{4 * features}]" not in text  # and never all of them


def test_scan_goes_inside_and_outside():
    mesh, objective = fp.make_mesh(data=4), fp.objective(fp.dense(8), fp.mean_squared())
    data = jnp.ones((3, 16, 8)), jnp.zeros((3, 16, 8))
    params = objective.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], data))
    step, rules = fp.step(fp.backprop(objective), optax.sgd(0.1)), fp.fsdp_rules(mesh, least=1)
    _, expected = fp.scan(step).update(fp.scan(step).init(params, None), data)
    for both in (fp.scan(fp.shard(step, mesh, rules)), fp.shard(fp.scan(step), mesh, rules)):
        state = both.init(params, None)
        compiled = lowered(both, state, data).compile()
        for leaf in jax.tree.leaves(compiled.input_shardings[0][1]):
            assert leaf.spec == P(None, "data")
        old = state
        state, metrics = both.update(state, data)
        assert old.params.w.is_deleted()
        assert parts(state.params.w) == {(8, 2)}
        chex.assert_trees_all_close(jax.device_get(metrics), jax.device_get(expected), rtol=1e-6)


def test_microbatches_remat_and_noise_are_those_of_one_device(x64):
    mesh = fp.make_mesh(data=4)
    model = fp.remat(fp.serial(fp.dense(16), fp.tanh(), fp.dropout(0.5), fp.dense(2)))
    objective = fp.objective(model, fp.mean_squared())
    data = jnp.ones((8, 4)), jnp.ones((8, 2))
    params = objective.init(jax.random.key(0), data)
    step = fp.step(fp.microbatch(fp.backprop(objective), 2), optax.sgd(0.1))
    sharded = fp.shard(step, mesh, fp.fsdp_rules(mesh, least=1))
    both = [each.update(each.init(params, jax.random.key(3)), data) for each in (step, sharded)]
    (state, metrics), (other, others) = map(jax.device_get, both)
    chex.assert_trees_all_close((state.params, metrics), (other.params, others), **CLOSE)


def test_examples_over_parts_are_computed_once():
    """Each device computes its own examples of a part; not all devices all of them."""
    objective = fp.objective(fp.dense(64, bias=False), fp.mean_squared())
    data = jnp.ones((64, 64)), jnp.ones((64, 64))
    params = objective.init(jax.random.key(0), data)
    mesh = fp.make_mesh(data=8)
    flops = []
    for n in (1, 4):
        gradient = fp.microbatch(fp.backprop(objective), n)
        step = fp.shard(fp.step(gradient, optax.sgd(0.1)), mesh, fp.data_parallel_rules())
        compiled = lowered(step, step.init(params, None), data).compile()
        flops.append(compiled.cost_analysis()["flops"])  # of a loop's body, once
    assert flops[1] < 0.6 * flops[0]


def test_fused_and_frozen_steps():
    mesh = fp.make_mesh(data=8)
    rules = fp.fsdp_rules(mesh, least=64)
    fused = fp.shard(fp.fused_step(objective_untied(), optax.adam(1e-2)), mesh, rules)
    state, _ = trained(fused, params_of(objective_untied()), updates=1)
    table = fp.describe_sharding(state)
    assert table.device_bytes < 0.2 * table.bytes
    model = fp.freeze(objective_untied(), "*/embedding")
    frozen = fp.shard(fp.step(fp.backprop(model), optax.adam(1e-2)), mesh, rules)
    state = frozen.init(params_of(model), None)
    assert parts(jax.tree.leaves(state.params)[0]) == {(VOCABULARY, 2)}


def objective_untied():
    model = fp.gpt(VOCABULARY, features=16, depth=2, heads=4, longest=TIME)
    return fp.language_model(model, VOCABULARY, tied=False)


def test_fit_trains_a_sharded_step():
    mesh, objective = fp.make_mesh(data=4), fp.objective(fp.dense(8), fp.mean_squared())
    data = np.ones((64, 8), np.float32), np.zeros((64, 8), np.float32)
    step = fp.step(fp.backprop(objective), optax.sgd(0.1))
    sharded = fp.shard(step, mesh, fp.fsdp_rules(mesh, least=1))
    params = objective.init(jax.random.key(0), data)
    results = [
        fp.fit(each, each.init(params, None), data, epochs=2, batch_size=16, progress=None)
        for each in (step, sharded)
    ]
    chex.assert_trees_all_close(*(jax.device_get(r.state.params) for r in results), rtol=1e-5)
    assert parts(results[1].state.params.w) == {(8, 2)}


def test_params_are_made_where_they_lie():
    mesh, objective = fp.make_mesh(data=8), gpt()
    rules = fp.fsdp_rules(mesh, least=1)
    init, key = objective.init, jax.random.key(0)
    placed = fp.shardings(jax.eval_shape(init, key, batch(0)), mesh, rules)
    params = jax.jit(init, out_shardings=placed)(key, batch(0))
    assert parts(params.embedding.table) == {(VOCABULARY, 2)}
    sharded = fp.shard(fp.step(fp.backprop(objective), optax.sgd(0.1)), mesh, rules)
    assert parts(sharded.init(params, None).params.embedding.table) == {(VOCABULARY, 2)}


def test_a_batch_that_does_not_divide():
    mesh, objective = fp.make_mesh(data=4, model=2), gpt()
    sharded = fp.shard(
        fp.step(fp.backprop(objective), optax.sgd(0.1)), mesh, fp.data_parallel_rules()
    )
    state = sharded.init(params_of(objective), None)
    with pytest.raises(ValueError) as error:
        sharded.update(state, jax.tree.map(lambda leaf: leaf[:6], batch(0)))
    assert str(error.value) == (
        "batch must have an axis 0 that divides by 4, the devices of ('data',), got shape (6, 8)"
    )


def test_a_param_that_does_not_divide():
    mesh = fp.make_mesh(model=8)
    with pytest.raises(ValueError) as error:
        fp.shardings({"w": jnp.ones((12, 16))}, mesh, [("w", P("model"))])
    assert str(error.value) == (
        "a spec must divide the shape, got P('model',) for w, float32[12,16]: 12 over 8 devices"
    )


# --------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_on_other_devices(tmp_path):
    """What was split over eight is split over two, over four otherwise, or not at all."""
    state = {
        "w": jnp.arange(128.0).reshape(8, 16),
        "half": jnp.arange(16, dtype=jnp.bfloat16),
        "key": jax.random.key(3),
        "n": jnp.int32(7),
    }

    def placed(n, spec):
        mesh = fp.make_mesh(data=n)
        rows, whole = jax.NamedSharding(mesh, spec), jax.NamedSharding(mesh, P())
        put = {name: rows if name in ("w", "half") else whole for name in state}
        return jax.device_put(state, put)

    with fp.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(placed(8, P("data")), 1)
    alike = jax.tree.map(jnp.zeros_like, {k: v for k, v in state.items() if k != "key"})
    for like in (placed(2, P("data")), placed(4, P()), placed(8, P("data")), state):
        found = fp.Checkpoints(tmp_path).restore(like).state
        for name, leaf in found.items():
            assert leaf.sharding.is_equivalent_to(like[name].sharding, leaf.ndim), name
        assert jax.random.key_data(found["key"]).tolist() == [0, 3]
        chex.assert_trees_all_equal(
            {k: np.asarray(found[k]) for k in alike}, {k: np.asarray(state[k]) for k in alike}
        )
    (found,) = fp.Checkpoints(tmp_path).all(check=True)  # on one device: the digests are the same
    assert not found.problem
