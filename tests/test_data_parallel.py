"""A batch over many devices: the exact gradient, and in order the same bits on any number of them.

JAX takes the number of virtual devices when it starts, so a process of its own checks all that
needs many; each check there is a function below that starts with `on_8_`.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.transforms.pairwise_sum import hidden_zero, sum_of_all, sums_of_own

KEY = jax.random.key(0)
N = 16
MODEL = fp.serial(fp.dense(8), fp.tanh(), fp.dropout(0.3), fp.dense(3))
WHOLE = fp.objective(MODEL, fp.softmax_cross_entropy(), accuracy=fp.accuracy)
HAND = fp.backprop(WHOLE)


def by_jax(params, batch, key):
    loss, _ = WHOLE.forward(params, batch, key)
    return loss.total, loss.weight


def mesh(devices, axis="data"):
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), (axis,), auto, devices=jax.devices()[:devices])


def problem(n=N, dtype=jnp.float32):
    """Some of the weights are zero, so that devices have different weights."""
    x = jax.random.normal(jax.random.key(1), (n, 5), dtype)
    batch = x, jnp.arange(n) % 3, (jnp.arange(n) % 5).astype(dtype)
    return WHOLE.init(KEY, batch), batch


def equal_to(got, want):
    chex.assert_trees_all_close(got[:4], want[:4], rtol=1e-12, atol=1e-12)


def digest(tree):
    leaves = (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
    return hashlib.sha256(b"".join(leaves)).hexdigest()


# ------------------------------------------------------------------------------ on one device


def test_one_device_is_the_plain_gradient(x64):
    params, batch = problem(dtype=jnp.float64)
    want = jax.jit(HAND)(params, batch, None, 3.0)
    for made in (
        fp.data_parallel(HAND, mesh(1)),
        fp.ordered(HAND, 1),
        fp.ordered(HAND, 8),
        fp.ordered(HAND, 16, mesh(1)),
    ):
        equal_to(jax.jit(made)(params, batch, None, 3.0), want)


def test_parts_have_the_keys_of_microbatches(x64):
    params, batch = problem(dtype=jnp.float64)
    got, want = (jax.jit(made(HAND, 4)) for made in (fp.ordered, fp.microbatch))

    def dealt(leaf):  # of which a microbatch, every 4th row, is what a part is here: rows in a row
        return leaf.reshape(4, -1, *leaf.shape[1:]).swapaxes(0, 1).reshape(leaf.shape)

    equal_to(got(params, batch, KEY), want(params, jax.tree.map(dealt, batch), KEY))
    with pytest.raises(AssertionError):  # there is noise
        equal_to(got(params, batch, KEY), got(params, batch, None))


@pytest.mark.parametrize("parts", [1, 2, 3, 6, 8, 12])
def test_the_sum_is_bracketed_in_pairs(parts):
    """Against the same brackets by plain additions; in another order these sums have other bits."""
    terms = np.float32(10.0) ** np.random.default_rng(0).uniform(-4, 4, (parts, 50)).astype("f")

    def pairs(rows):
        while len(rows) % 2 == 0:
            rows = rows[0::2] + rows[1::2]
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total

    stacked = {"a": jnp.asarray(terms), "b": jnp.arange(parts)}
    zero = hidden_zero(stacked)

    @jax.jit
    def summed(stacked, zero):
        own = sums_of_own(lambda i: jax.tree.map(lambda leaf: leaf[i], stacked), parts, zero)
        return sum_of_all(own, zero, parts, 1, None)

    got = summed(stacked, zero)
    assert (np.asarray(got["a"]) == pairs(terms)).all()
    assert int(got["b"]) == sum(range(parts))


def test_narrow_sums_are_taken_wide():
    """Ones, as many as make no pairs: in bfloat16 the sum would stay at 256."""
    rows = fp.from_loss(lambda w, x: ((w * x).sum().astype(jnp.float32), 1))
    got = fp.ordered(rows, 385)(jnp.ones((), jnp.bfloat16), jnp.ones(385, jnp.bfloat16)).grads
    assert got.dtype == jnp.bfloat16
    assert abs(float(got) - 385) <= 1


def test_refused():
    one = mesh(1)
    noise = fp.Transformed("noise", HAND, HAND)
    wrong = [
        (lambda: fp.data_parallel(HAND, one, "model"), "axis must be one of the mesh's"),
        (lambda: fp.ordered(HAND, 4, one, "model"), "axis must be one of the mesh's"),
        (lambda: fp.data_parallel(noise, one), "noise must be outside data_parallel"),
        (lambda: fp.ordered(fp.microbatch(HAND, 2), 0), "parts must be at least 1, got 0"),
        (lambda: fp.ordered(noise, 4), "noise must be outside ordered"),
        (lambda: fp.data_parallel(fp.ordered(HAND, 4), one), "which is over devices already"),
        (lambda: fp.ordered(fp.data_parallel(HAND, one), 4), "which is over devices already"),
        (lambda: fp.ordered(HAND, 3)(*problem()), "parts must divide the batch, got 3 and 16"),
        (lambda: fp.ordered(HAND, 1)({}, (jnp.ones(2), jnp.ones(3))), "leaves of one length"),
    ]
    for make, message in wrong:
        with pytest.raises(ValueError, match=message):
            make()


# ------------------------------------------------------------------------------- on 8 devices


def on_8_the_gradient_is_exact():
    with jax.enable_x64(True):
        params, batch = problem(dtype=jnp.float64)
        for grad_fn in (HAND, fp.from_loss(by_jax)):
            want = jax.jit(grad_fn)(params, batch, None, 3.0)
            for made in (
                fp.data_parallel(grad_fn, mesh(8)),
                fp.ordered(fp.microbatch(grad_fn, 2), 8, mesh(4)),
            ):
                equal_to(jax.jit(made)(params, batch, None, 3.0), want)


def on_8_each_device_draws_its_own_noise():
    """Row by row the same input: with one key for all, all devices would give the same loss."""
    rows = fp.from_loss(lambda w, x, key: (w * jax.random.normal(key), 1))
    x, w = jnp.ones(8), jnp.array(1.0)
    draws = [float(jax.random.normal(jax.random.fold_in(KEY, i))) for i in range(8)]
    assert abs(float(fp.data_parallel(rows, mesh(8))(w, x, KEY).grads) - sum(draws)) < 1e-5


def on_8_an_epoch_is_that_of_one_device():
    """Its last batch of 3, of 16, is filled up; held-out data is of any number of rows."""
    _, batch = problem(35)
    whole = fp.objective(fp.mlp(8, 3), fp.softmax_cross_entropy(), accuracy=fp.accuracy)
    plain, params = fp.backprop(whole), whole.init(KEY, batch)
    want: list[dict[str, float]] = []
    for made, over in ((plain, None), (fp.data_parallel(plain, mesh(8)), mesh(8))):
        step = fp.step(made, optax.sgd(0.1))
        result = fp.fit(
            step,
            step.init(params, None),
            batch,
            epochs=2,
            batch_size=16,
            held_out=batch,
            measure=fp.measure(made),
            mesh=over,
            progress=None,
        )
        rows = [{k: v for k, v in row.items() if "second" not in k} for row in result.history]
        want = rows if over is None else want
    chex.assert_trees_all_close(rows, want, rtol=1e-5)


def on_8_refused():
    params, batch = problem(12)
    for make, message in (
        (lambda: fp.data_parallel(HAND, mesh(8))(params, batch), "got 12 examples"),
        (lambda: fp.ordered(HAND, 12, mesh(8)), "8 devices along 'data' must divide parts, got 12"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def on_8_the_loss_can_be_differentiated():
    """As line searches do, through the whole of `data_parallel`."""
    params, batch = problem()
    made = fp.data_parallel(HAND, mesh(8))
    got = jax.jit(jax.grad(lambda params: made(params, batch).loss))(params)
    chex.assert_trees_all_close(got, jax.jit(HAND)(params, batch).grads, rtol=1e-5, atol=1e-5)


def digests(whole, grad_fn, parts, counts, optimizer, batches):
    """Of all that training comes to, for each number of devices; 0 for no mesh at all."""
    params = whole.init(KEY, batches[0])
    found, metrics = [], None
    for devices in counts:
        train = fp.step(fp.ordered(grad_fn, parts, mesh(devices) if devices else None), optimizer)
        state = train.init(params, KEY)
        if devices:  # or the first update would be compiled apart
            state = jax.device_put(state, jax.NamedSharding(mesh(devices), jax.P()))
        for batch in batches:
            state, metrics = train.update(state, batch)
        found.append(digest((state.params, state.opt_state, metrics)))
    return found


def on_8_bits_are_the_same():
    batches = [problem(24)[1]] * 4
    for grad_fn, parts, counts in (
        (HAND, 8, (0, 1, 8)),
        (fp.from_loss(by_jax), 24, (0, 3, 8)),
    ):
        found = digests(WHOLE, grad_fn, parts, counts, optax.adam(1e-2), batches)
        assert len(set(found)) == 1, (grad_fn, parts, found)


def on_8_bits_of_real_models_are_the_same():
    from funprop.train.runs.tasks import task

    chosen = task("digits")
    pictures = [tuple(part[i * 64 : i * 64 + 64] for part in chosen.train) for i in range(10)]
    text = np.random.default_rng(0).integers(0, 64, (10, 16, 33)).astype(np.int32)
    gpt = fp.gpt(64, features=32, depth=2, heads=2, longest=32, rate=0.1)
    for whole, batches in (
        (fp.objective(chosen.models["mlp"](), chosen.loss), pictures),
        (fp.language_model(gpt, 64), [(rows[:, :-1], rows[:, 1:]) for rows in text]),
    ):
        for parts in (8, 16):
            for optimizer in (optax.sgd(0.1), optax.adam(1e-3)):
                grad_fn, counts = fp.backprop(whole), (0, 1, 2, 4, 8)
                found = digests(whole, grad_fn, parts, counts, optimizer, batches)
                assert len(set(found)) == 1, (whole, parts, found)


def run_on_8(name):
    code = (
        "import jax, tests.test_data_parallel as here\n"
        "assert jax.device_count() == 8\n"
        f"for name in {name!r}.split():\n"
        "    getattr(here, name)()\n"
    )
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow  # tests/eight_devices.py has it beside the other ways
def test_on_8_devices():
    names = [name for name in globals() if name.startswith("on_8_") and "real_models" not in name]
    run_on_8(" ".join(names))


@pytest.mark.slow
def test_real_models_on_8_devices():
    run_on_8("on_8_bits_of_real_models_are_the_same")
