"""Where a NaN is first, in updates over eight devices; run by tests/test_sharding.py too."""

import jax
import numpy as np
import optax
import pytest

import funprop as fp
from tests.plants import KINDS, plantable_everywhere, planted

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="wants eight devices"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_nan_is_found_in_a_sharded_update(kind):
    """The state lies over eight devices, the plant in one copy of what is repeated."""
    block = fp.residual(fp.serial(fp.layer_norm(), fp.dense(16), fp.gelu()))
    model = fp.serial(fp.dense(16), fp.named("blocks", fp.repeat(block, 3)), fp.dense(8))
    objective = plantable_everywhere(fp.objective(model, fp.mean_squared()))
    data = np.ones((8, 8), np.float32), np.zeros((8, 8), np.float32)
    mesh = fp.make_mesh(data=8)
    step = fp.step(fp.backprop(objective), optax.sgd(0.1))
    sharded = fp.shard(step, mesh, fp.fsdp_rules(mesh, least=64))
    params = objective.init(jax.random.key(0), data)
    params = planted(params, "blocks[1]/dense", kind)
    state = sharded.init(params, None)
    first = fp.find_nonfinite_update(sharded, state, data).first
    assert (first.kind, first.path) == (kind, "serial/blocks[1]/dense")
    state, _ = sharded.update(state, data)
    leaves = jax.tree.leaves(state.params)
    assert not all(bool(np.isfinite(leaf).all()) for leaf in leaves)
