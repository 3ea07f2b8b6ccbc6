"""Steps over eight devices lower for CUDA and TPU; run by tests/test_sharding.py too."""

import jax
import optax
import pytest

import funprop as fp
from tests.eight_devices import WAYS, batch, params_of, promotion

__all__ = ["promotion"]  # a fixture that is used by itself
pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="wants eight devices")


@pytest.mark.parametrize("way", ["fsdp, gathered", pytest.param("tensor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_sharded_step_lowers_for_eight_of_any_platform(way, platform):
    make, axes, rules, used = WAYS[way]
    mesh, objective = fp.make_mesh(**axes), make()
    whole = objective if used is None else fp.gathered(objective, mesh, used)
    plain = fp.step(fp.backprop(whole), optax.adam(1e-2))
    state = jax.eval_shape(lambda p: plain.init(p, None), params_of(objective))
    update = jax.jit(fp.shard(plain, mesh, rules(mesh)).update)
    made = jax.export.export(update, platforms=[platform])(state, batch(0))
    assert made.platforms == (platform,)
    assert made.nr_devices == mesh.size
