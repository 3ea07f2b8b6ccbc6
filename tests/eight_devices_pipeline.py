"""A pipeline's gradient is the plain one. tests/test_sharding.py runs this with virtual devices."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import funprop as fp
from tests.cases import OPTIMISED

CLOSE = {"rtol": 1e-11, "atol": 1e-13}  # float64 rounding


def in_turn(stages, n):
    """One stage at a time, so that everything waits for long: a table of one's own."""
    waits = [None] * n
    rows = []
    for stage in range(stages):
        behind = stages - 1 - stage
        forward = [*waits * stage, *(("F", i) for i in range(n)), *waits * behind]
        backward = [*waits * behind, *(("B", i) for i in range(n)), *waits * stage]
        rows.append([*forward, *backward, *(("W", i) for i in range(n))])
    return fp.Schedule(rows, "in turn")


MAKERS = {"gpipe": fp.gpipe, "1f1b": fp.one_f_one_b, "zero bubble": fp.zero_bubble}
EVERY = MAKERS | {"in turn": in_turn}
RULES = [("blocks", P("pipe")), ("*", P())]
VOCABULARY, TIME = 32, 6

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="wants eight devices")


@pytest.fixture(autouse=True, scope="module")
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        yield


def mlp(depth=8, rate=0.0):
    noise = [fp.dropout(rate)] if rate else []
    block = fp.residual(fp.serial(fp.dense(6), fp.tanh(), *noise))
    model = fp.serial(fp.dense(6), fp.named("blocks", fp.repeat(block, depth)), fp.dense(3))
    return fp.objective(model, fp.mean_squared(), error=fp.absolute_error)


def gpt(rate=0.0, rewrite=lambda block: block, **loss):
    sizes = {"features": 8, "depth": 4, "heads": 2, "longest": TIME}
    model = fp.gpt(VOCABULARY, **sizes, rate=rate, rewrite=rewrite)
    return fp.language_model(model, VOCABULARY, **loss)


def rows(n=16, *, weighted=True):
    draw = np.random.default_rng(0)
    weights = (draw.integers(0, 3, n).astype(float),) if weighted else ()
    return draw.normal(size=(n, 4)), draw.normal(size=(n, 3)), *weights


def tokens(n=16):
    found = np.random.default_rng(0).integers(0, VOCABULARY, (n, TIME + 1))
    return found[:, :-1], found[:, 1:]


def params_of(objective, batch):
    """Any, without compiling what `init` draws; in float64 under x64."""
    spec = jax.eval_shape(objective.init, jax.random.key(0), batch)
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: jnp.asarray(0.3 * draw.normal(size=p.shape), jnp.zeros(()).dtype), spec
    )


def both(objective, batch, stages, make, n, key=None, **axes):
    params = params_of(objective, batch)
    grad_fn = fp.pipeline(objective, fp.make_mesh(**axes, pipe=stages), make(stages, n))
    plain = fp.backprop(objective)
    wanted = plain if key is None else fp.microbatch(plain, n)
    return jax.jit(grad_fn)(params, batch, key), jax.jit(wanted)(params, batch, key)


@pytest.mark.parametrize(
    ("stages", "make", "n"),
    [
        (4, "zero bubble", 8),
        (4, "in turn", 4),
        *(
            pytest.param(*way, marks=pytest.mark.slow)
            for way in [
                (1, "zero bubble", 4),
                (2, "gpipe", 4),
                (2, "1f1b", 8),
                (2, "zero bubble", 1),
                (4, "gpipe", 8),
                (4, "1f1b", 2),
                (8, "gpipe", 4),
                (8, "1f1b", 16),
                (8, "zero bubble", 16),
                (8, "zero bubble", 4),
            ]
        ),
    ],
)
def test_the_gradient_is_the_plain_one(x64, stages, make, n):
    got, want = both(mlp(), rows(), stages, EVERY[make], n)
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), **CLOSE)
    blocks = got.grads.blocks.dense.w
    assert {part.data.shape for part in blocks.addressable_shards} == {(8 // stages, 6, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("stages", [2, 4])
def test_of_a_language_model_with_a_tied_head(x64, stages, make):
    got, want = both(gpt(), tokens(), stages, MAKERS[make], 4)
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), **CLOSE)


def frozen():
    return fp.freeze(gpt(), ("embedding", "blocks/attention/qkv"))


OTHERS = {
    "dropout": (lambda: gpt(rate=0.2), tokens, jax.random.key(3)),
    "remat": (lambda: gpt(rate=0.2, rewrite=fp.remat), tokens, jax.random.key(3)),
    "untied": (lambda: gpt(tied=False, chunk=8), tokens, None),
    "frozen": (frozen, tokens, None),
    "by autodiff": (lambda: fp.map_layers(fp.autodiff, mlp(4)), rows, None),
    "dropout, rows": (lambda: mlp(4, 0.3), rows, jax.random.key(4)),
}


@pytest.mark.parametrize(
    "other",
    [other if other == "dropout, rows" else pytest.param(other, marks=pytest.mark.slow)
     for other in OTHERS],
)  # fmt: skip
def test_of_other_models_and_with_noise(x64, other):
    make, data, key = OTHERS[other]
    got, want = both(make(), data(), 4, fp.zero_bubble, 4, key)
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), **CLOSE)


def counted(name, metric=None):
    """Records how many examples it saw, and their sum of squares."""

    def forward(params, x):
        value = fp.Sum((x * x).sum(), jnp.asarray(len(x), x.dtype))
        return x, fp.Recorded(value, metric=metric)

    return fp.layer(forward=forward, backward=lambda params, kept, dy: ((), dy), name=name)


@pytest.mark.slow
def test_what_layers_record_stands_in_its_place(x64):
    block = fp.serial(fp.dense(6), fp.tanh(), counted("inside"))
    model = fp.serial(
        counted("first", "first"), fp.dense(6), fp.repeat(block, 4), counted("last"), fp.dense(3)
    )
    objective = fp.objective(model, fp.mean_squared(), error=fp.absolute_error)
    got, want = both(objective, rows(), 2, fp.zero_bubble, 4)
    assert set(got.metrics) == {"first", "error"}
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), **CLOSE)


@pytest.mark.slow
def test_pipelines_beside_each_other(x64):
    """With noise too: each has keys as `data_parallel` gives them."""
    objective, batch, key = mlp(4, 0.3), rows(), jax.random.key(5)
    got, _ = both(objective, batch, 4, fp.zero_bubble, 4, key, data=2)
    parts = fp.microbatch(fp.backprop(objective), 4)
    wanted = fp.data_parallel(parts, fp.make_mesh(data=2))
    want = jax.jit(wanted)(params_of(objective, batch), batch, key)
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), **CLOSE)


def clipped(grad_fn):
    return fp.step(grad_fn, optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2)))


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"pipe": 4}, {"data": 2, "pipe": 4}], ids=str)
def test_a_sharded_step_trains_as_one_device_does(x64, axes):
    objective, batch, mesh = mlp(4), rows(), fp.make_mesh(**axes)
    params = params_of(objective, batch)
    grad_fn = fp.pipeline(objective, mesh, fp.zero_bubble(4, 4))
    states = []
    for train in (clipped(fp.backprop(objective)), fp.shard(clipped(grad_fn), mesh, RULES)):
        state = train.init(params, None)
        result = fp.fit(train, state, batch, epochs=3, batch_size=8, progress=None)
        states.append(result.state)
    want, got = states
    chex.assert_trees_all_close(
        jax.device_get(got.params), jax.device_get(want.params), rtol=1e-8, atol=1e-10
    )
    for tree in (got.params, got.opt_state[1][0].mu):
        assert {part.data.shape for part in tree.blocks.dense.w.addressable_shards} == {(1, 6, 6)}


def compiled(schedule, mesh, objective, batch):
    spec = jax.eval_shape(objective.init, jax.random.key(0), batch)
    placed = fp.shardings(spec, mesh, RULES)
    params = jax.tree.map(lambda s, at: s.update(sharding=at), spec, placed)
    grad_fn = fp.pipeline(objective, mesh, schedule)
    return jax.jit(grad_fn).lower(params, batch).compile(OPTIMISED)


@pytest.mark.slow
def test_activations_move_and_params_stay():
    found = compiled(fp.zero_bubble(4, 8), fp.make_mesh(pipe=4), gpt(), tokens())
    text = found.as_text()
    moves = re.findall(r" (collective-permute|all-reduce|all-gather|all-to-all)(?:-start)?\(", text)
    assert set(moves) == {"collective-permute", "all-reduce"}
    assert moves.count("collective-permute") == 2  # one a direction, whatever the schedule
    # What is summed over stages is nothing of the blocks: no array of four by eight by so many.
    sums = [line for line in text.splitlines() if " all-reduce" in line]
    assert sums
    of_blocks = re.compile(r"f32\[[14],8,(?:24|32)\]")
    assert not any(of_blocks.search(line.split("all-reduce")[0]) for line in sums)


@pytest.mark.slow
def test_memory_grows_with_what_the_schedule_keeps():
    mesh = fp.make_mesh(pipe=4)

    def bytes_of(make, n):
        found = compiled(make(4, n), mesh, mlp(4), rows(256 * n, weighted=False))
        return found.memory_analysis().temp_size_in_bytes

    few, many = ([bytes_of(make, n) for make in MAKERS.values()] for n in (8, 32))
    assert many[0] > 2 * few[0]
    assert many[1:] == few[1:]
    # Residuals of as many; beside them, what waits between the two halves.
    assert many[2] < 2 * many[1]
