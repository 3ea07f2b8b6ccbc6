"""Mistakes that need more than one program, more than one device, or an update that is not pure.

`WRONG` as in `plain`; these are judged as they are, not compiled around. `ON_DEVICES` and
`RIGHT_ON_DEVICES` want eight devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from optax import apply_updates

from tests.corpus_steps import plain
from tests.corpus_steps.plain import KEY, SGD, case, init, masked, mean, parts, terms, with_key


def cut_with_keys(keys_of):
    """Dropout in `n` parts, part `i` with key `i` of `keys_of(key, n)`."""

    def make(n):
        def gradient(p, b, key):
            pairs = zip(parts(b, n), keys_of(key, n), strict=True)
            return plain.averaged([jax.grad(mean)(p, part, k) for part, k in pairs])

        def update(s, b):
            key = jax.random.fold_in(s["key"], s["count"])
            u, o = SGD.update(gradient(s["params"], b, key), s["opt_state"], s["params"])
            new = {"params": apply_updates(s["params"], u), "opt_state": o}
            return {**new, "key": s["key"], "count": s["count"] + 1}

        return update

    _, state, given, _ = with_key(lambda s: s["key"])
    return make(1), state, given, {"microbatches": make}


def donating(used_again):
    """A state given away: the params once more in it, or used when they are gone."""
    update, state, given, said = case(opt=plain.MOMENTUM, told=lambda s, new, b: jnp.float32(0))
    donated = jax.jit(update, donate_argnums=0)
    if not used_again:
        return donated, {**state, "best": state["params"]}, given, said

    def after(s, b):
        new, _ = donated(s, b)
        size = sum(jnp.sum(p**2) for p in jax.tree.leaves(s["params"]))
        return new, {"size": size}

    return after, state, given, said


def drawn_outside(draw):
    """Noise of which the state knows nothing."""
    compiled = jax.jit(jax.grad(mean))

    def update(s, b):
        noise = draw()
        g = compiled(s["params"], {**b, "x": b["x"] + noise})
        u, o = SGD.update(g, s["opt_state"], s["params"])
        return {"params": apply_updates(s["params"], u), "opt_state": o}

    return update, {"params": init(), "opt_state": SGD.init(init())}, plain.batch(), {}


def numpy_noise():
    generator = np.random.default_rng(0)
    return drawn_outside(lambda: jnp.asarray(generator.normal(size=(8, 4)) / 10, jnp.float32))


def global_key():
    kept = {"key": KEY}

    def draw():
        kept["key"], key = jax.random.split(kept["key"])
        return jax.random.normal(key, (8, 4)) / 10

    return drawn_outside(draw)


def dropped(p, b, key):
    """Dropout by the rate of what is dropped; inputs less their mean, that of padding with it."""
    x = b["x"] - b["x"].mean(0)[None]
    h = jnp.tanh(x @ p["dense_0"]["w"] + p["dense_0"]["b"][None])
    h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), 0.0, h / 0.5)
    return masked({**p, "dense_0": {"w": jnp.eye(8), "b": jnp.zeros(8)}}, {**b, "x": h})


def next_key(s):
    return jax.random.fold_in(s["key"], s["count"])


MASK = {"mask": lambda b: b["mask"]}
WRONG = {
    "statistics of padding, under dropout": (
        "padding",
        lambda: (*with_key(next_key, dropped)[:3], MASK),
    ),
    "one dropout mask for all parts": (
        "microbatches",
        lambda: cut_with_keys(lambda key, n: [key] * n),
    ),
    "one array twice in a donated state": ("donation", lambda: donating(False)),
    "donated params used again": ("donation", lambda: donating(True)),
    "noise from NumPy": ("replay", numpy_noise),
    "a global key": ("replay", global_key),
}

RIGHT = {
    "a key for each part": lambda: cut_with_keys(jax.random.split),
    "dropout by what is dropped": lambda: with_key(next_key, dropped),
}


def shared_out(loss, gather, told=None):
    """`n ->` a step over `n` devices: each its part's gradient, then `gather` over them."""

    def make(n):
        mesh = jax.make_mesh((n,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False
        )
        def gradient(p, b):
            return gather(p, b)

        return case(gradient, loss, SGD, told)[0]

    return make


def of_devices(gather, loss=mean, **said):
    update, state, given, _ = case(plain.of_parts(loss, 1), loss, SGD)
    return update, state, given, {"devices": shared_out(loss, gather), **said}


def own(loss, collective):
    return lambda p, b: jax.tree.map(lambda g: collective(g, "data"), jax.grad(loss)(p, b))


def exact(p, b):
    """Sums of the terms and of the weights, over all devices, then the quotient."""
    total = lambda q: (terms(q, b) * b["mask"]).sum()
    weight = jax.lax.psum(b["mask"].sum(), "data")
    return jax.tree.map(lambda g: jax.lax.psum(g, "data") / weight, jax.grad(total)(p))


ON_DEVICES = {
    "summed over devices": ("devices", lambda: of_devices(own(mean, jax.lax.psum))),
    "not averaged over devices": ("devices", lambda: of_devices(own(mean, lambda g, axis: g))),
    "mean of the devices' means": (
        "devices",
        lambda: of_devices(own(masked, jax.lax.pmean), masked, **MASK),
    ),
}
RIGHT_ON_DEVICES = {
    "averaged over devices": lambda: of_devices(own(mean, jax.lax.pmean)),
    "sums and weights over devices": lambda: of_devices(exact, masked, **MASK),
    "shared out by XLA": lambda: case(),
    "shared out by XLA, dropout": lambda: with_key(next_key),
}
