"""Transforms and wrappers of grad_fns that Flax, Equinox, Haiku or nobody but JAX had a part in."""

import importlib.util

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import funprop as fp
from tests.cases import quickly

pytestmark = pytest.mark.usefixtures("any_ranks")

KEY = jax.random.key(0)
ROWS = 12
LIMIT = 1.4
MESH = fp.make_mesh(data=1)


def linen():
    model = nn.Sequential([nn.Dense(5, param_dtype=float), nn.tanh, nn.Dense(2, param_dtype=float)])
    return model.init(KEY, jnp.ones((1, 3))), model.apply


def flax_nnx():
    def dense(i, o):
        return nnx.Linear(i, o, rngs=nnx.Rngs(0), param_dtype=float, dtype=float)

    tree, params = nnx.split(nnx.Sequential(dense(3, 5), nnx.tanh, dense(5, 2)))
    return params, lambda params, x: nnx.merge(tree, params)(x)


def equinox():
    model = eqx.nn.MLP(3, 2, 5, 1, activation=jnp.tanh, key=KEY)
    params, rest = eqx.partition(model, eqx.is_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, rest))(x)


def haiku():
    import haiku as hk  # type: ignore[import-not-found]  # where it is installed

    model = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([5, 2], activation=jnp.tanh)(x))
    )
    return model.init(KEY, jnp.ones((1, 3))), model.apply


def plain():
    k = jax.random.split(KEY)
    params = {"up": jax.random.normal(k[0], (3, 5)), "down": jax.random.normal(k[1], (5, 2))}
    return params, lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"]


def slow(make):
    return pytest.param(make, marks=pytest.mark.slow)


def missing(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


THEIRS = pytest.mark.parametrize(
    "make",
    [linen, slow(flax_nnx), equinox, pytest.param(haiku, marks=missing("haiku")), slow(plain)],
)


def problem(make):
    """A loss function, params of 64 bits and a batch."""
    params, apply = make()
    params = jax.tree.map(lambda p: p.astype(float), params)
    k = jax.random.split(KEY)
    batch = jax.random.normal(k[0], (ROWS, 3)), jax.random.randint(k[1], (ROWS,), 0, 2)

    def loss_fn(params, batch):
        x, labels = batch
        z = apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(z, labels).sum(), len(labels)

    return loss_fn, params, batch


TRANSFORMS = {
    "none": lambda g: g,
    "microbatch": lambda g: fp.microbatch(g, 5),
    "mixed_precision": lambda g: fp.mixed_precision(g, jnp.float32),
    "clip_per_example": lambda g: fp.clip_per_example(g, LIMIT),
    "gradient_statistics": lambda g: fp.gradient_statistics(g, 2),
    "data_parallel": lambda g: fp.data_parallel(g, MESH),
    "ordered": lambda g: fp.ordered(g, 4, MESH),
}


@THEIRS
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_theirs_is_its_definition(make, name, x64):
    loss_fn, params, batch = problem(make)
    rows = jax.tree.map(lambda leaf: leaf[:, None], batch)
    each = jax.vmap(jax.grad(lambda p, row: loss_fn(p, row)[0]), (None, 0))(params, rows)
    if name == "clip_per_example":
        squares = sum(jnp.square(g).reshape(ROWS, -1).sum(1) for g in jax.tree.leaves(each))
        factors = jnp.minimum(1, LIMIT / jnp.sqrt(squares))
        assert 0 < (factors < 1).sum() < ROWS
        each = jax.tree.map(lambda g: jnp.einsum("n,n...->n...", factors, g), each)
    got = quickly(TRANSFORMS[name](fp.from_loss(loss_fn)))(params, batch)
    close = 1e-5 if name == "mixed_precision" else 1e-12
    want = jax.tree.map(lambda g: g.sum(0), each)
    chex.assert_trees_all_close(got.grads, want, rtol=close, atol=close)
    np.testing.assert_allclose(got.loss, loss_fn(params, batch)[0], rtol=close)
    assert got.weight == ROWS


@THEIRS
def test_a_whole_step_of_theirs_is_that_of_optax(make, x64):
    loss_fn, params, batch = problem(make)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    grad_fn = fp.microbatch(fp.from_loss(loss_fn), 3)
    wrapped = fp.skip_nonfinite(fp.ema(fp.step(grad_fn, optimizer), 0.5))
    train = fp.shard(fp.scan(wrapped), MESH, fp.fsdp_rules(MESH))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        state = train.init(params, None)
        state, metrics = train.update(
            state, jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), batch)
        )
        want, opt_state, average = params, optimizer.init(params), params
        for _ in range(4):
            grads = jax.grad(lambda p: loss_fn(p, batch)[0] / ROWS)(want)
            updates, opt_state = optimizer.update(grads, opt_state, want)
            want = optax.apply_updates(want, updates)
            average = jax.tree.map(lambda a, p: (a + p) / 2, average, want)
    chex.assert_trees_all_close(state.params, want, rtol=1e-9)
    chex.assert_trees_all_close(state.inner.average, average, rtol=1e-9)
    assert metrics["skipped"].total.sum() == 0
