"""Rules for where params lie; and, in a process of its own, steps over eight virtual devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import funprop as fp
from funprop.sharding.ready import FSDPRules
from tests.test_bad_input import raises

MESH = fp.make_mesh(data=1, model=1)
PARAMS = {"a": {"w": jnp.zeros((4, 6)), "b": jnp.zeros(6)}, "c": [jnp.zeros(3), jnp.zeros((2, 4))]}
PATHS = ["a/w", "a/b", "c/0", "c/1"]
LINE = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
STEP = fp.step(fp.backprop(LINE), optax.sgd(0.1))


@pytest.mark.slow  # a minute: each is a process of its own
@pytest.mark.parametrize("which", ["not slow", "slow"])
def test_over_eight_devices(which):
    """JAX counts devices once, when it starts: so not in this process."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    parts = ("", "_lowered", "_steps", "_pipeline", "_nonfinite")
    files = [f"tests/eight_devices{what}.py" for what in parts]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", which, *files],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"\d+ passed", ran.stdout), ran.stdout
    assert "skipped" not in ran.stdout, ran.stdout


specs = st.lists(st.sampled_from([None, "data", "model"]), max_size=1).map(lambda e: P(*e))
MEANING = {  # of each pattern, as a regular expression for whole names
    **{name: name for name in PATHS},
    **{"a": "a/.*", "a/*": "a/.*", "*/w": "(.*/)?w", "*": ".*", "d/*": "d/.*"},
    **{("*/b", "c/0"): "(.*/)?b|c/0", ("c/0", "c/1"): "c/0|c/1", ("d", "c"): "(c|d)/.*"},
}
patterns = st.sampled_from(list(MEANING))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(patterns, specs), max_size=4), st.randoms())
def test_a_param_lies_as_all_its_rules_say_or_they_are_refused(rules, random):
    """By a second, plain account of what rules mean; and their order means nothing."""
    matching = {
        path: {tuple(e for e in spec if e) for pattern, spec in rules
               if pattern != "*" and re.fullmatch(MEANING[pattern], path)}
        or {tuple(e for e in spec if e) for pattern, spec in rules if pattern == "*"}
        for path in PATHS
    }  # fmt: skip
    idle = any(
        pattern != "*" and not any(re.fullmatch(MEANING[pattern], path) for path in PATHS)
        for pattern, _ in rules
    )
    random.shuffle(rules)
    if idle or any(len(found) != 1 for found in matching.values()):
        with pytest.raises(ValueError, match=r"must match a name|a param must match"):
            fp.shardings(PARAMS, MESH, rules)
        return
    placed = fp.shardings(PARAMS, MESH, rules)
    got = dict(zip(sorted(PATHS), ["a/b", "a/w", "c/0", "c/1"], strict=True))
    for path, leaf in zip(got.values(), jax.tree.leaves(placed), strict=True):
        assert {tuple(e for e in leaf.spec if e)} == matching[path]


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 12), max_size=4),
    parts=st.integers(1, 4),
    least=st.integers(0, 100),
)
def test_fsdp_cuts_one_dimension_if_any_divides(shape, parts, least):
    leaf = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    rules = FSDPRules("data", parts, least, fp.data_parallel_rules())
    spec = rules("", leaf)
    cut = [i for i, axis in enumerate(spec) if axis]
    possible = [i for i, length in enumerate(shape) if length % parts == 0]
    assert cut == (possible[-1:] if leaf.size >= least else [])


def test_fsdp_leaves_what_tensor_parallelism_cuts():
    tokens = jnp.zeros((1, 4), int)
    model = fp.gpt(50, features=8, depth=2, heads=2)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    mesh = fp.make_mesh(fsdp=1, model=1)
    rules = fp.fsdp_rules(mesh, "fsdp", least=100, rules=fp.tensor_parallel_rules())
    table = fp.describe_sharding(params, mesh, rules)
    found = {row.path: row.spec for row in table.rows}
    assert found["embedding/table"] == "P('model', 'fsdp')"
    assert found["blocks/attention/qkv/w"] == "P(None, 'fsdp', 'model')"
    assert found["blocks/attention/output/w"] == "P(None, 'model', 'fsdp')"
    assert found["blocks/network/hidden/w"] == "P(None, 'fsdp', 'model')"
    assert found["blocks/network/output/w"] == "P(None, 'model', 'fsdp')"
    assert found["blocks/network/hidden/b"] == "P(None, 'model')"
    assert found["blocks/network/output/b"] == "P()"
    assert table.bytes == sum(leaf.size * 4 for leaf in jax.tree.leaves(params))


def test_gathered_obeys_the_laws_of_a_model():
    model = fp.serial(fp.dense(4), fp.tanh(), fp.residual(fp.dense(4)))
    same = fp.gathered(model, MESH)
    assert repr(same) == repr(model)
    params = same.init(jax.random.key(0), jnp.ones((3, 5)))
    fp.verify(same, params, jnp.ones((3, 5))).raise_if_wrong()


@pytest.mark.parametrize(
    ("sentence", "rules"),
    [
        (
            "the pattern 'd/*' must match a name, the nearest are a, a/b, a/w",
            [("d/*", P()), ("*", P())],
        ),
        (
            "the pattern 'd/*' must match a name, the nearest are a, a/b, a/w",
            fp.fsdp_rules(MESH, rules=[("d/*", P()), ("*", P())]),
        ),
        (
            "the pattern ('a/v', 'd') must match a name, the nearest are a/w, a/b, a",
            [(("a/v", "d"), P()), ("*", P())],
        ),
        (
            "a param must match one rule, got a/w by 'a/*': P(), '*/w': P('data',)",
            [("a/*", P()), ("*/w", P("data")), ("*", P())],
        ),
        (
            'a param must match a rule, got none for a/b; ("*", P()) is for the rest',
            [("a/w", P("data"))],
        ),
        (
            "a spec must name axes of the mesh, ('data', 'model'), got P('fsdp',) for a/w, "
            "float32[4,6]",
            [("a/w", P("fsdp")), ("*", P())],
        ),
        (
            "a spec must name an axis of the mesh once, got P('data', 'data') for a/w, "
            "float32[4,6]",
            lambda path, leaf: P("data", "data") if path == "a/w" else P(),
        ),
        (
            "a spec must be at most as long as the shape, got P(None, 'data') for a/b, float32[6]",
            [("a/b", P(None, "data")), ("*", P())],
        ),
    ],
)  # fmt: skip
def test_rules_are_refused(sentence, rules):
    raises(ValueError, sentence, lambda: fp.shardings(PARAMS, MESH, rules))


@pytest.mark.parametrize(
    ("sentence", "call"),
    [
        (
            f"a mesh must need at most {jax.device_count()} devices, got "
            f"{{'data': {jax.device_count()}, 'model': 2}}, which is {2 * jax.device_count()}",
            lambda: fp.make_mesh(data=jax.device_count(), model=2),
        ),
        (
            "axes must be one or more, each at least 1, got {'data': 0}",
            lambda: fp.make_mesh(data=0),
        ),
        (
            "axis must be one of the mesh, ('data', 'model'), got 'fsdp'",
            lambda: fp.fsdp_rules(MESH, "fsdp"),
        ),
        (
            "batch must name axes of the mesh, ('data', 'model'), got ('fsdp',)",
            lambda: fp.shard(STEP, MESH, fp.data_parallel_rules(), batch=("fsdp",)),
        ),
        (
            "step must not be sharded already, got ('scan', 'shard', 'step')",
            lambda: fp.shard(
                fp.scan(fp.shard(STEP, MESH, fp.data_parallel_rules())),
                MESH,
                fp.data_parallel_rules(),
            ),
        ),
        (
            "mesh must have axes of AxisType.Auto, got (Explicit,); see make_mesh",
            lambda: fp.shard(
                STEP,
                jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,)),
                fp.data_parallel_rules(),
            ),
        ),
        (
            "mesh and rules must be given together, got one of them",
            lambda: fp.describe_sharding(PARAMS, MESH),
        ),
    ],
)
def test_makers_refuse(sentence, call):
    raises(ValueError, sentence, call)
