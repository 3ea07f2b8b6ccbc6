"""Layers within a user's own `jax.shard_map`, which checks along which axes of the mesh each number
varies: a loop that starts from plain zeros is refused there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from tests.cases import ALL, Case, build, normal
from tests.test_outside_jit import LARGE

QUICK = {"lstm-lengths", "gru", "attention-masked", "linear_cross_entropy-rows", "conv", "dense"}
CASES = [
    pytest.param(case, id=case.id, marks=[] if case.id in QUICK else pytest.mark.slow)
    for case in (*ALL, Case("lif", fp.lif(), normal(2, 5, 3)))
]


def both_passes(layer):
    """All numbers of both passes, from `(params, x, key)`, key or none."""

    def run(params, x, key):
        given = () if key is None else (key,)
        y, kept = layer.forward(params, x, *given)
        dy = jax.tree.map(
            lambda y: jnp.ones_like(y) if jnp.issubdtype(y.dtype, jnp.floating) else None, y
        )
        return jax.tree.leaves((y, layer.backward(params, kept, dy)))

    return run


def over_data(run):
    """`run` of what varies along an axis of one device."""

    def marked(*args):
        args = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "data", to="varying"), args)
        return [leaf[None] for leaf in run(*args)]

    whole, split = jax.P(), jax.P("data")
    mesh = jax.make_mesh((1,), ("data",))
    return jax.shard_map(marked, mesh=mesh, in_specs=whole, out_specs=split)


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, id=f"large-{case.id}") for case in LARGE)]
)
def test_every_layer_is_taken(case):
    run, args = both_passes(case.layer), build(case)
    specs = jax.eval_shape(over_data(run), *args)
    assert [s.shape[1:] for s in specs] == [s.shape for s in jax.eval_shape(run, *args)]


def test_the_numbers_are_the_same():
    (case,) = (case for case in ALL if case.id == "attention-masked")
    run, args = both_passes(case.layer), build(case)
    for found, expected in zip(jax.jit(over_data(run))(*args), jax.jit(run)(*args), strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=1e-6)
