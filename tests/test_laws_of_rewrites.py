"""Every rewrite of every row of the table keeps the laws by which models are mapped."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import funprop as fp
from funprop.maps import map_nodes
from funprop.names import child_names, label
from tests.cases import COMPOSITE, MODELS, build

FIRST = "*"  # all the outermost parts


def frozen(layer):
    return fp.freeze(layer, FIRST)


def adapted(layer):
    return fp.low_rank(layer, "*/dense*", 2)


REWRITES = {
    "autodiff": fp.autodiff,
    "autodiff-leaves": functools.partial(fp.map_layers, fp.autodiff),
    "cast": lambda layer: fp.cast(layer, jnp.float32),
    "remat": fp.remat,
    "remat-keep": lambda layer: fp.remat(layer, keep=FIRST),
    "remat-keep-twice": lambda layer: fp.remat(fp.remat(layer, keep=FIRST), keep="*/*"),
    "offload": fp.offload,
    "tap": lambda layer: fp.tap(layer, forward=lambda y: 1.0),
    "named": lambda layer: fp.named("other", layer),
    "fused_update": lambda layer: fp.fused_update(layer, optax.sgd(0.1)),
    "gathered": lambda layer: fp.gathered(layer, fp.make_mesh(data=1)),
    "freeze": frozen,
    "low_rank": adapted,
    "feedback_alignment": fp.feedback_alignment,
    "quantised": lambda layer: fp.quantised(layer, "ternary", inputs="binary"),
}
SMALL = [case for case in COMPOSITE if case not in MODELS]


def rewritten(name, case):
    """The layer, or a skip where the table's row has nothing that the rewrite is for."""
    reasons = "must match a name", "params are made of others", "must need its weights for dx"
    try:
        layer = REWRITES[name](case.layer)
        jax.eval_shape(layer.init, jax.random.key(0), build(case)[1])
        return layer
    except ValueError as error:
        if any(reason in str(error) for reason in reasons):
            pytest.skip(str(error))
        raise


def traced(layer, x, key):
    """Its three functions on arrays of one shape, as text."""
    params = jax.eval_shape(layer.init, jax.random.key(0), x)

    def whole(params, x):
        y, kept = layer.forward(params, x, key)
        return layer.init(jax.random.key(0), x), y, layer.backward(params, kept, y)

    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(whole)(params, x)))


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize(
    "case",
    [*SMALL, *(pytest.param(case, marks=pytest.mark.slow) for case in MODELS if case in COMPOSITE)],
    ids=lambda case: case.id,
)
def test_every_rewrite_keeps_the_laws(name, case):
    layer = rewritten(name, case)
    _, x, key = build(case)
    if name != "named":
        assert label(layer) == label(case.layer)
        inside, own = [], []
        map_nodes(lambda path, node: (inside.append(path), node)[1], layer)
        map_nodes(lambda path, node: (own.append(path), node)[1], case.layer)
        assert set(inside) <= set(own)
    again = layer.rebuild(*layer.children)
    assert (again.name, child_names(again)) == (layer.name, child_names(layer))
    assert traced(again, x, key) == traced(layer, x, key)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    if layer.children:
        parts = layer.split(params)
        assert len(parts) == len(layer.children)
        assert jax.tree.structure(layer.join(params, parts)) == jax.tree.structure(params)
        _, residuals = jax.eval_shape(layer.forward, params, x, key)
        assert len(residuals) >= len(layer.children)
