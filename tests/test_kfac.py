"""K-FAC as an optax transform: its update is the definition's, and it is worth its price."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from tests.cases import Case, both, build, labels, normal

OBJECTIVE = fp.objective(
    fp.freeze(
        fp.serial(
            fp.dense(4),
            fp.repeat(fp.residual(fp.serial(fp.layer_norm(), fp.dense(4), fp.tanh())), 2),
            fp.dense(3),
        ),
        "dense_0",
    ),
    fp.softmax_cross_entropy(),
)


def solved(factors, w, b, damping):
    """`kron(a + p r I, g + r / p I)^-1 d`, by one solve of the whole."""
    a, g = factors.a / factors.weight, factors.g / 5
    p = jnp.sqrt(jnp.trace(a) / len(a) / (jnp.trace(g) / len(g)))
    r = damping**0.5
    whole = jnp.kron(a + p * r * jnp.eye(len(a)), g + r / p * jnp.eye(len(g)))
    d = jnp.concatenate([w, b[None]])
    found = jnp.linalg.solve(whole, d.ravel()).reshape(d.shape)
    return found[:-1], found[-1]


def test_an_update_is_the_damped_inverse_of_each_block(x64):
    case = Case("deep", OBJECTIVE, both(normal(5, 3), labels(5, classes=3)))
    params, batch, _ = build(case, jnp.float64)
    optimizer = fp.kfac(OBJECTIVE, 0.5, damping=0.01, momentum=0.0, kl_clip=1e9, samples=None)
    train = fp.step(fp.backprop(OBJECTIVE), optimizer)
    new, _ = train.update(train.init(params, jax.random.key(0)), batch)
    got = jax.tree.map(lambda a, b: (a - b) / 0.5, fp.trained(params), fp.trained(new.params))
    grads = jax.tree.map(lambda g: g / 5, fp.backprop(OBJECTIVE)(params, batch).grads)
    found = fp.kfac_factors(OBJECTIVE, samples=None)(params, batch)
    for copy in range(2):
        at = jax.tree.map(lambda leaf, copy=copy: leaf[copy], (got[1], grads[1], found[1]))
        step, grad, factors = (part.dense for part in at)
        want = solved(factors, grad.w, grad.b, 0.01)
        chex.assert_trees_all_close(tuple(step), want, rtol=1e-8)
        step, grad, diagonal = (part.layer_norm for part in at)
        want = jax.tree.map(lambda g, d: g / (d / 5 + 0.01), grad, diagonal.diagonal)
        chex.assert_trees_all_close(step, want, rtol=1e-8)
    want = solved(found[2], grads[2].w, grads[2].b, 0.01)
    chex.assert_trees_all_close(tuple(got[2]), want, rtol=1e-8)
    chex.assert_trees_all_equal(new.params[0], params[0])


def test_a_step_predicts_no_more_change_than_it_may(x64):
    case = Case("deep", OBJECTIVE, both(normal(5, 3), labels(5, classes=3)))
    params, batch, _ = build(case, jnp.float64)
    grads = jax.tree.map(lambda g: g / 5, fp.backprop(OBJECTIVE)(params, batch).grads)
    own = fp.trained(params)

    def moved_along(most):
        """How far an update goes against the gradient."""
        optimizer = fp.kfac(OBJECTIVE, 0.5, momentum=0.0, kl_clip=most, samples=None)
        given = {"batch": batch, "all_params": params}
        moved, _ = jax.jit(optimizer.update)(grads, optimizer.init(own), own, **given)
        return -jnp.asarray(optax.tree.vdot(moved, grads))

    whole = moved_along(1e9) / 0.5  # g F^-1 g
    for most in (1e-4, 1e-6):
        assert moved_along(most) ** 2 / whole == pytest.approx(most)  # of the step: s F s


def test_what_cannot_be_is_refused_in_a_sentence():
    optimizer = fp.kfac(OBJECTIVE, 0.1)
    params = OBJECTIVE.init(jax.random.key(0), (jnp.ones((2, 3)), jnp.zeros(2, int)))
    own = fp.trained(params)
    with pytest.raises(ValueError, match="kfac needs params and the batch of the update"):
        optimizer.update(own, optimizer.init(own), own)
    inf, nan = float("inf"), float("nan")
    for wrong in (
        *({"damping": 0.0}, {"damping": inf}, {"damping": nan}, {"kl_clip": nan}),
        *({"momentum": 1.0}, {"decay": nan}, {"every": 0}, {"sharing": "both"}),
        *({"seed": 2**70}, {"seed": -1}),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fp.kfac(OBJECTIVE, 0.1, **wrong)
    with pytest.raises(ValueError, match="learning_rate must be positive and finite, got inf"):
        fp.kfac(OBJECTIVE, inf)


def test_within_a_chain_it_is_given_the_batch():
    case = Case("deep", OBJECTIVE, both(normal(5, 3), labels(5, classes=3)))
    params, batch, _ = build(case, jnp.float32)
    alone = fp.kfac(OBJECTIVE, 0.1, samples=None)
    found = []
    for optimizer in (alone, optax.chain(optax.identity(), alone)):
        train = fp.step(fp.backprop(OBJECTIVE), optimizer)
        found.append(train.update(train.init(params, None), batch)[0].params)
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
def test_it_needs_fewer_steps_than_adam_on_the_autoencoder():
    from sklearn.datasets import load_digits

    images = (load_digits().images[..., None] / 16).astype("float32")
    objective = fp.objective(fp.autoencoder((8, 8, 1)), fp.mean_squared())
    params = objective.init(jax.random.key(0), (images[:2], images[:2]))

    def steps(optimizer, goal=0.02, most=130):
        train = fp.step(fp.backprop(objective), optimizer)
        state, draw = train.init(params, None), np.random.default_rng(0)
        for i in range(most):
            rows = images[draw.choice(len(images), 128, replace=False)]
            state, told = train.update(state, (rows, rows))
            if float(told["loss"].mean) < goal:
                return i
        return most

    with jax.numpy_dtype_promotion("standard"):  # optax's own mix dtypes
        adam = min(steps(optax.adam(rate)) for rate in (3e-3, 1e-2))
    assert steps(fp.kfac(objective, 0.1)) < 0.6 * adam
