"""Steps in plain JAX and Optax: a small network, and mistakes in how it is trained.

`WRONG` maps a name to (the check that must find it, what makes the case); `RIGHT` to what makes it.
"""

import jax
import jax.numpy as jnp
import optax

KEY = jax.random.key(0)


def init():
    one, two = jax.random.split(KEY)
    return {
        "dense_0": {"w": jax.random.normal(one, (4, 8)) / 2, "b": jnp.full(8, 0.1)},
        "dense_1": {"w": jax.random.normal(two, (8, 2)) / 2, "b": jnp.full(2, 0.1)},
    }


def batch(n=8):
    x = jax.random.normal(jax.random.key(3), (n, 4))
    return {"x": x, "y": jnp.arange(n) % 2, "mask": jnp.ones(n).at[-3:].set(0.0)}


def terms(p, b, key=None, stop=False, where=None):
    h = jnp.tanh(b["x"] @ p["dense_0"]["w"] + p["dense_0"]["b"][None])
    h = jax.lax.stop_gradient(h) if stop else h
    if key is not None:
        h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h / 0.5, 0.0)
    y = h @ p["dense_1"]["w"] + p["dense_1"]["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(y, b["y"])


def mean(p, b, key=None):
    return terms(p, b, key).mean()


def masked(p, b, key=None):
    return (terms(p, b, key) * b["mask"]).sum() / jnp.maximum(b["mask"].sum(), 1.0)


def parts(b, n):
    size = len(b["x"]) // n
    return [jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], b) for i in range(n)]


def averaged(trees):
    return jax.tree.map(lambda *xs: sum(xs) / len(xs), *trees)


def clipped(g, most=0.05):
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))
    return jax.tree.map(lambda x: x * jnp.minimum(1.0, most / norm), g)


def case(
    gradient=None, loss=mean, opt=None, told=None, after=None, state=None, finish=None, n=8, **said
):
    """A step of `gradient(params, batch)`, what it is updated by, and how it is asked."""
    opt = opt or optax.adam(1e-2)
    gradient = gradient or (lambda p, b: jax.grad(loss)(p, b))

    def update(s, b):
        g = gradient(s["params"], b)
        u, o = opt.update(g, s["opt_state"], s["params"])
        u = u if after is None else after(u)
        new = {**s, "params": optax.apply_updates(s["params"], u), "opt_state": o}
        new = new if finish is None else finish(s, new, b)
        return new, {"loss": loss(s["params"], b) if told is None else told(s, new, b)}

    p = init()
    start = {"params": p, "opt_state": opt.init(p), **(state or {})}
    return update, start, batch(n), said


def asked(loss=mean, opt=None):
    return {"loss_fn": loss, "optimizer": opt or optax.adam(1e-2)}


def scaled(by):
    return lambda p, b: jax.tree.map(lambda g: by * g, jax.grad(mean)(p, b))


def of_parts(loss, n, change=lambda g: g):
    return lambda p, b: averaged([change(jax.grad(loss)(p, part)) for part in parts(b, n)])


SGD = optax.sgd(0.1)
MOMENTUM = optax.sgd(0.1, momentum=0.9)
FORGETFUL = optax.GradientTransformation(
    MOMENTUM.init, lambda g, s, p=None: MOMENTUM.update(g, MOMENTUM.init(p), p)
)
shifted = lambda b: {**b, "y": jnp.roll(b["y"], 1)}
only = lambda g, *names: {
    k: v if k in names else jax.tree.map(jnp.zeros_like, v) for k, v in g.items()
}
reset = lambda opt: lambda s, new, b: {**new, "opt_state": opt.init(s["params"])}
decay = lambda s, new, b: {**new, "params": jax.tree.map(lambda p: 0.99 * p, new["params"])}
normed = lambda p, b: mean(p, {**b, "x": (b["x"] - b["x"].mean(0)[None]) / 2})
first = lambda b, n: jax.tree.map(lambda x: x[:n], b)


def with_key(where, loss=lambda p, b, k: mean(p, b, k), opt=SGD):
    def update(s, b):
        key = where(s)
        g = jax.grad(loss)(s["params"], b, key)
        u, o = opt.update(g, s["opt_state"], s["params"])
        return {
            "params": optax.apply_updates(s["params"], u),
            "opt_state": o,
            "key": s["key"],
            "count": s["count"] + 1,
        }

    p = init()
    state = {"params": p, "opt_state": opt.init(p), "key": KEY, "count": jnp.int32(0)}
    return update, state, batch(), {}


def ema(start, d=0.9):
    """An average of params beside them."""
    keep = lambda s, new, b: {
        **new,
        "ema": jax.tree.map(lambda a, p: d * a + (1 - d) * p, s["ema"], new["params"]),
    }
    return case(state={"ema": jax.tree.map(start, init())}, finish=keep, average=lambda s: s["ema"])


def microbatched(loss, change=lambda g: g):
    return case(
        of_parts(loss, 1, change),
        loss,
        SGD,
        microbatches=lambda n: case(of_parts(loss, n, change), loss, SGD)[0],
        mask=lambda b: b["mask"],
    )


def narrow():
    u, s, b, said = case(
        lambda p, b: jax.tree.map(
            lambda g, q: g.astype(q.dtype),
            jax.grad(mean)(jax.tree.map(lambda x: x.astype(jnp.float32), p), b),
            p,
        ),
        lambda p, b: jnp.float32(0),
        optax.sgd(1e-4),
    )
    return u, jax.tree.map(lambda x: x.astype(jnp.bfloat16), s), b, said


def guard(params_only):
    def finish(s, new, b):
        ok = jnp.isfinite(mean(s["params"], b))
        keep = lambda a, c: jax.tree.map(lambda x, y: jnp.where(ok, y, x), a, c)
        out = keep(s, new)
        return {**new, "params": out["params"]} if params_only else out

    return case(finish=finish, told=lambda s, new, b: jnp.float32(0), guarded=True)


WRONG = {
    "sign turned": ("gradient", lambda: case(scaled(-1.0), opt=SGD, **asked(opt=SGD))),
    "sign turned, adam": ("gradient", lambda: case(scaled(-1.0), **asked())),
    "sign turned, no optimizer": ("gradient", lambda: case(scaled(-1.0), loss_fn=mean)),
    "loss scale not undone": ("gradient", lambda: case(scaled(1024.0), **asked())),
    "loss scale undone twice": (
        "gradient",
        lambda: case(scaled(1 / 1024), opt=SGD, **asked(opt=SGD)),
    ),
    "update applied twice": (
        "gradient",
        lambda: case(opt=SGD, after=lambda u: jax.tree.map(lambda x: 2 * x, u), **asked(opt=SGD)),
    ),
    "stop_gradient in the wrong place": (
        "moves",
        lambda: case(lambda p, b: jax.grad(lambda q: terms(q, b, stop=True).mean())(p)),
    ),
    "gradient of a part of the params": (
        "gradient",
        lambda: case(lambda p, b: only(jax.grad(mean)(p, b), "dense_1"), **asked()),
    ),
    "a layer left out": ("moves", lambda: case(lambda p, b: only(jax.grad(mean)(p, b), "dense_0"))),
    "labels shifted": (
        "gradient",
        lambda: case(lambda p, b: jax.grad(mean)(p, shifted(b)), **asked()),
    ),
    "labels of other examples": ("order", lambda: case(lambda p, b: jax.grad(mean)(p, shifted(b)))),
    "clipped before averaging": ("order", lambda: case(of_parts(mean, 4, clipped))),
    "clipped before averaging, cut": ("microbatches", lambda: microbatched(mean, clipped)),
    "clipped after the update": (
        "gradient",
        lambda: case(
            opt=SGD,
            after=lambda u: clipped(u, 1e-3),
            **asked(opt=optax.chain(optax.clip_by_global_norm(1e-3), SGD)),
        ),
    ),
    "not clipped": (
        "gradient",
        lambda: case(opt=SGD, **asked(opt=optax.chain(optax.clip_by_global_norm(0.01), SGD))),
    ),
    "mean of means": ("order", lambda: case(of_parts(masked, 2), masked, mask=lambda b: b["mask"])),
    "mean of means, cut": ("microbatches", lambda: microbatched(masked)),
    "mean of means, gradient": (
        "gradient",
        lambda: case(of_parts(masked, 2), masked, mask=lambda b: b["mask"], **asked(masked)),
    ),
    "sum of parts": (
        "gradient",
        lambda: case(
            lambda p, b: jax.tree.map(lambda g: 2 * g, of_parts(mean, 2)(p, b)), **asked()
        ),
    ),
    "only the last part": ("order", lambda: case(lambda p, b: jax.grad(mean)(p, parts(b, 2)[1]))),
    "what does not divide is dropped": ("short", lambda: case(of_parts(mean, 2))),
    "last examples dropped": ("order", lambda: case(lambda p, b: jax.grad(mean)(p, first(b, 7)))),
    "sum for a mean": (
        "twice",
        lambda: case(lambda p, b: jax.grad(lambda q: terms(q, b).sum())(p)),
    ),
    "sum for a mean, sgd": (
        "twice",
        lambda: case(lambda p, b: jax.grad(lambda q: terms(q, b).sum())(p), opt=optax.sgd(0.01)),
    ),
    "divided by a fixed batch size": (
        "twice",
        lambda: case(lambda p, b: jax.grad(lambda q: terms(q, b).sum() / 8)(p)),
    ),
    "padding in the loss": ("padding", lambda: case(loss=mean, mask=lambda b: b["mask"])),
    "padding in the mean": (
        "padding",
        lambda: case(loss=lambda p, b: (terms(p, b) * b["mask"]).mean(), mask=lambda b: b["mask"]),
    ),
    "padding in the statistics": (
        "padding",
        lambda: case(
            loss=lambda p, b: masked(p, {**b, "x": b["x"] - b["x"].mean(0)[None]}),
            mask=lambda b: b["mask"],
        ),
    ),
    "padding in the metric": (
        "padding",
        lambda: case(
            loss=masked, told=lambda s, new, b: mean(s["params"], b), mask=lambda b: b["mask"]
        ),
    ),
    "old params returned": (
        "moves",
        lambda: case(finish=lambda s, new, b: {**new, "params": s["params"]}),
    ),
    "optimizer state not carried": (
        "carried",
        lambda: case(finish=lambda s, new, b: {**new, "opt_state": s["opt_state"]}),
    ),
    "momentum not carried": (
        "carried",
        lambda: case(opt=MOMENTUM, finish=lambda s, new, b: {**new, "opt_state": s["opt_state"]}),
    ),
    "momentum reset": ("carried", lambda: case(opt=FORGETFUL)),
    "count not advanced": ("carried", lambda: case(state={"step": jnp.int32(0)})),
    "count starts again": (
        "carried",
        lambda: case(
            state={"step": jnp.int32(0)}, finish=lambda s, new, b: {**new, "step": jnp.int32(1)}
        ),
    ),
    "frozen param decays": (
        "frozen",
        lambda: case(
            lambda p, b: only(jax.grad(mean)(p, b), "dense_1"),
            opt=SGD,
            finish=decay,
            frozen="dense_0",
        ),
    ),
    "frozen param moves": ("frozen", lambda: case(frozen="dense_0")),
    "decay on biases": (
        "gradient",
        lambda: case(
            opt=optax.adamw(1e-2, weight_decay=0.1),
            **asked(
                opt=optax.adamw(
                    1e-2, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
                )
            ),
        ),
    ),
    "decay forgotten": ("gradient", lambda: case(**asked(opt=optax.adamw(1e-2, weight_decay=0.1)))),
    "decay in the gradient": (
        "gradient",
        lambda: case(
            lambda p, b: jax.tree.map(lambda g, q: g + 0.1 * q, jax.grad(mean)(p, b), p), **asked()
        ),
    ),
    "average started at zero": ("average", lambda: ema(jnp.zeros_like)),
    "key reused each step": ("draws", lambda: with_key(lambda s: s["key"])),
    "key made in the step": ("draws", lambda: with_key(lambda s: jax.random.key(7))),
    "metrics summed": ("metrics", lambda: case(told=lambda s, new, b: terms(s["params"], b).sum())),
    "metrics after the update": (
        "metrics",
        lambda: case(told=lambda s, new, b: mean(new["params"], b), loss_fn=mean),
    ),
    "metrics scaled": (
        "metrics",
        lambda: case(told=lambda s, new, b: 8 * mean(s["params"], b), loss_fn=mean),
    ),
    "metrics of a part": (
        "order",
        lambda: case(told=lambda s, new, b: mean(s["params"], first(b, 4))),
    ),
    "NaN spoils the moments": ("nan", lambda: guard(True)),
    "NaN applied": ("nan", lambda: case(guarded=True)),
    "updates swallowed by bfloat16": ("precision", narrow),
    "params change dtype": (
        "state",
        lambda: case(
            finish=lambda s, new, b: {
                **new,
                "params": jax.tree.map(lambda p: p.astype(jnp.bfloat16), new["params"]),
            }
        ),
    ),
    "count lost in the checkpoint": (
        "restore",
        lambda: case(
            restore=lambda s: jax.tree.map(lambda x: jnp.zeros_like(x) if x.ndim == 0 else x, s)
        ),
    ),
    "count off by one when resuming": (
        "restore",
        lambda: case(restore=lambda s: jax.tree.map(lambda x: x + 1 if x.ndim == 0 else x, s)),
    ),
    "moments lost in the checkpoint": (
        "restore",
        lambda: case(
            restore=lambda s: {**s, "opt_state": jax.tree.map(jnp.zeros_like, s["opt_state"])}
        ),
    ),
    "params rounded in the checkpoint": (
        "restore",
        lambda: case(
            restore=lambda s: {
                **s,
                "params": jax.tree.map(
                    lambda x: x.astype(jnp.bfloat16).astype(x.dtype), s["params"]
                ),
            }
        ),
    ),
}

RIGHT = {
    "adam": lambda: case(**asked()),
    "sgd": lambda: case(opt=SGD, **asked(opt=SGD)),
    "momentum": lambda: case(opt=MOMENTUM, **asked(opt=MOMENTUM)),
    "adamw": lambda: case(opt=optax.adamw(1e-2), **asked(opt=optax.adamw(1e-2))),
    "clipped": lambda: case(
        opt=optax.chain(optax.clip_by_global_norm(0.05), optax.adam(1e-2)),
        **asked(opt=optax.chain(optax.clip_by_global_norm(0.05), optax.adam(1e-2))),
    ),
    "masked": lambda: case(loss=masked, mask=lambda b: b["mask"], **asked(masked)),
    "average": lambda: ema(lambda p: p),
    "dropout": lambda: with_key(lambda s: jax.random.fold_in(s["key"], s["count"])),
    "guarded": lambda: guard(False),
    "warmed up": lambda: case(opt=optax.sgd(optax.linear_schedule(0.0, 0.1, 4))),
    "frozen": lambda: case(
        lambda p, b: only(jax.grad(mean)(p, b), "dense_1"), opt=SGD, frozen="dense_0"
    ),
    "cut": lambda: (
        (*microbatched(mean)[:3], {"microbatches": lambda n: case(of_parts(mean, n), mean, SGD)[0]})
    ),
    "statistics of the batch": lambda: case(loss=normed, **asked(normed)),
}
