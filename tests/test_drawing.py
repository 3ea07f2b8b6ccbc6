"""First params are the same to rounding, in whatever haste the program that draws them was made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

import funprop as fp
from funprop import drawing

PLAIN = {
    "he_normal": initializers.he_normal(),
    "lecun_normal": initializers.lecun_normal(),
    "orthogonal": initializers.orthogonal(),
    "normal": initializers.normal(0.02),
}
OPTIMISED = {"xla_backend_optimization_level": 3}  # which tests otherwise do without
SHAPE = 33, 17


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_the_numbers_are_those_of_jax_optimised(name):
    draw = drawing.normal(0.02) if name == "normal" else getattr(drawing, name)
    plain = jax.jit(lambda key: PLAIN[name](key, SHAPE, jnp.float32), compiler_options=OPTIMISED)
    key = jax.random.key(3)
    close(draw(key, SHAPE, jnp.float32), plain(key))


def test_it_can_be_traced_and_mapped():
    key = jax.random.key(3)
    draw = lambda key: drawing.he_normal(key, SHAPE, jnp.float32)
    wanted = PLAIN["he_normal"](key, SHAPE, jnp.float32)
    close(jax.jit(draw)(key), wanted)
    close(jax.jit(lambda: draw(key))(), wanted)  # a key that is known
    close(jax.vmap(draw)(key[None])[0], wanted)
    with jax.disable_jit():
        close(draw(key), wanted)


def test_what_is_large_is_optimised(monkeypatch):
    draw = drawing.in_haste(PLAIN["normal"])
    monkeypatch.setattr(drawing, "HASTE", {})
    monkeypatch.setattr(drawing, "LARGE", 4)
    monkeypatch.setattr(drawing, "_may", lambda key: pytest.fail("too large for that"))
    draw(jax.random.key(0), (2, 3), jnp.float32)


def test_repeat_draws_what_each_copy_draws_alone():
    one, x = fp.serial(fp.dense(3), fp.tanh()), jnp.zeros((2, 3))
    key = jax.random.key(1)
    found = fp.repeat(one, 4).init(key, x)
    wanted = [one.init(each, x) for each in jax.random.split(key, 4)]
    for i, params in enumerate(wanted):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), found, params)


def test_a_copy_has_memory_of_its_own():
    from funprop.trees import copied

    for leaf in (jnp.ones(5), jax.random.key(0), jnp.ones(())):
        copy = copied(leaf)
        assert copy.committed == leaf.committed
        if copy.dtype == jnp.float32:
            assert copy.unsafe_buffer_pointer() != leaf.unsafe_buffer_pointer()
    assert isinstance(copied(np.ones(2, np.float32)), jax.Array)
