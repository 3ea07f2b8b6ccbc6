"""Transforms of gradients equal their definitions; in a wrong order they are refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from tests.cases import quickly
from tests.test_bad_input import raises

KEY = jax.random.key(0)
FEW = settings(max_examples=5, deadline=None)
OBJECTIVE = fp.objective(
    fp.serial(fp.dense(4), fp.tanh(), fp.dense(3)),
    fp.softmax_cross_entropy(),
    accuracy=fp.accuracy,
)
BACKPROP = fp.backprop(OBJECTIVE)


def example(n=10, dtype=jnp.float64):
    """Params, and a batch with weights of which some are zero."""
    k = jax.random.split(KEY, 3)
    x = jax.random.normal(k[0], (n, 5), dtype)
    weights = jnp.maximum(jax.random.normal(k[2], (n,), dtype), 0)
    batch = x, jax.random.randint(k[1], (n,), 0, 3), weights
    params = OBJECTIVE.init(KEY, batch)
    return jax.tree.map(lambda p: p.astype(dtype) + 0.1, params), batch


def plain_loss(params, batch):
    """The same objective as anybody writes it."""
    x, labels, weights = batch
    first, _, second = params
    hidden = jnp.tanh(x @ first.w + first.b[None])
    logits = hidden @ second.w + second.b[None]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return -(chosen * weights).sum(), weights.sum()


@given(n=st.integers(1, 7), size=st.integers(7, 12), plain=st.booleans())
@FEW
def test_microbatches_add_up_whatever_their_number(n, size, plain):
    with jax.enable_x64(True):
        params, batch = example(size)
        grad_fn = fp.from_loss(plain_loss) if plain else BACKPROP
        got = quickly(fp.microbatch(grad_fn, n))(params, batch)
        want = quickly(grad_fn)(params, batch)
        chex.assert_trees_all_close(got[:3], want[:3], rtol=1e-12, atol=1e-14)
        chex.assert_trees_all_close(got.metrics, want.metrics, rtol=1e-6)


def test_microbatches_draw_noise_of_their_own():
    model = fp.objective(fp.dropout(0.5), fp.mean_squared())
    batch = jnp.ones((8, 50)), jnp.zeros((8, 50))
    two = fp.microbatch(fp.backprop(model), 2)
    first, again, other = (two((), batch, jax.random.key(k)) for k in (1, 1, 2))
    assert float(first.loss) == float(again.loss) != float(other.loss)
    halves = jax.tree.map(lambda leaf: leaf[:4], batch)
    keys = jax.random.split(jax.random.key(1))
    losses = [float(fp.backprop(model)((), halves, key).loss) for key in keys]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(sum(losses), first.loss, rtol=1e-6)


def test_microbatches_of_bfloat16_are_summed_in_float32():
    grad_fn = fp.from_loss(lambda w, x: ((w * x).sum().astype(jnp.float32), x.size))
    x = jnp.full(512, 1 + 1 / 128, jnp.bfloat16)
    got = fp.microbatch(grad_fn, 512)(jnp.ones((), jnp.bfloat16), x)
    assert float(got.grads) == 516  # where bfloat16 would stand still at 256


def by_a_function():
    """A layer whose residuals are a function, as `jax.vjp` gives it: another one in every trace."""
    return fp.layer(
        init=lambda key, x: jnp.ones(x.shape[-1:], x.dtype),
        forward=lambda w, x: jax.vjp(lambda w, x: jnp.sin(w[None] * x), w, x),
        backward=lambda w, pullback, dy: pullback(dy),
    )


RETRACED = {
    "autodiff": lambda: fp.autodiff(fp.dense(5)),
    "autodiff of all": lambda: fp.autodiff(fp.serial(fp.dense(5), fp.tanh())),
    "from_function": lambda: fp.from_function(
        fp.dense(5).init, lambda p, x: jnp.tanh(x @ p.w + p.b[None])
    ),
    "vjp": by_a_function,
    "tapped": lambda: fp.tap(fp.autodiff(fp.dense(5)), forward=jnp.sum),
}
OVER_PARTS = {
    "microbatch": lambda g: fp.microbatch(g, 2),
    "microbatch, uneven": lambda g: fp.microbatch(g, 3),
    "gradient_statistics": lambda g: fp.gradient_statistics(g, 2),
    "ordered": lambda g: fp.ordered(g, 2),
}


@pytest.mark.parametrize("layer", RETRACED)
def test_parts_add_up_where_residuals_differ_from_trace_to_trace(layer, x64):
    objective = fp.objective(RETRACED[layer](), fp.mean_squared(), error=fp.absolute_error)
    batch = jax.random.normal(KEY, (4, 5)), jnp.ones((4, 5))
    params, grad_fn = objective.init(KEY, batch), fp.backprop(objective)
    want = quickly(grad_fn)(params, batch)
    assert len(jax.tree.leaves(want.recorded)) == 2 + (layer == "tapped")
    for transform in OVER_PARTS.values():  # what differs would do so at trace time
        shapes = jax.eval_shape(transform(grad_fn), params, batch)
        chex.assert_trees_all_equal_shapes(shapes._replace(metrics={}), want._replace(metrics={}))
    got = quickly(fp.microbatch(grad_fn, 3))(params, batch)
    chex.assert_trees_all_close(got, want, rtol=1e-10)


def test_without_jit_every_part_is_a_trace_of_its_own():
    objective = fp.objective(fp.repeat(fp.autodiff(fp.dense(2)), 2), fp.mean_squared())
    batch = jnp.ones((2, 2)), jnp.ones((2, 2))
    params, grad_fn = objective.init(KEY, batch), fp.backprop(objective)
    with jax.disable_jit():
        got = fp.ordered(grad_fn, 2)(params, batch)
    chex.assert_trees_all_close(got, grad_fn(params, batch), rtol=1e-5)


@pytest.mark.parametrize("make", [fp.microbatch, fp.ordered, fp.gradient_statistics])
def test_pythons_numbers_in_sums_are_numbers(make):
    """As `len(batch)`: in a loss function's sums, in a layer's, in a metric's, in a grad_fn's."""
    x, y = jnp.linspace(-1, 1, 8)[:, None], jnp.zeros((8, 1))

    def hits(o, t):
        return fp.Sum((o > t).sum(), o.size)

    own = fp.layer(
        forward=lambda params, b: (fp.Sum(((b[0] - b[1]) ** 2).sum(), b[0].size), b),
        backward=lambda params, b, dy: ((), (2 * dy[0] * (b[0] - b[1]), None)),
    )
    objective = fp.objective(fp.dense(1, bias=False), own, hits=hits)
    params = fp.DenseParams(jnp.ones((1, 1)), None)

    def by_loss(p, b):
        return ((b[0] @ p.w - b[1]) ** 2).sum(), len(b[0]), {"hits": hits(b[0] @ p.w, b[1])}

    def by_hand(p, b, key=None):
        grads = fp.DenseParams(2 * b[0].T @ (b[0] @ p.w - b[1]), None)
        return fp.Gradient(grads, by_loss(p, b)[0], len(b[0]), {"hits": hits(b[0], b[1])})

    for grad_fn in (fp.backprop(objective), fp.from_loss(by_loss), by_hand):
        found = make(grad_fn, 2)(params, (x, y))
        assert found.metrics["hits"] == (4.0, 8.0)
        np.testing.assert_allclose((found.loss, found.weight), ((x**2).sum(), 8), rtol=1e-6)
        np.testing.assert_allclose(found.grads.w, 2 * (x**2).sum()[None, None], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "n"), [("float16", 70_000), ("bfloat16", 257)])
def test_a_weight_is_counted_in_float32(dtype, n):
    # Of terms small enough that their own sum is a number in 16 bits.
    total = fp.from_loss(lambda w, x: ((w * x).sum(), x.size))
    w, x = jnp.ones((), dtype), jnp.full(n, 2.0**-6, dtype)
    for grad_fn in (total, fp.microbatch(total, 2)):
        found = grad_fn(w, x)
        assert found.weight == n and found.weight.dtype == found.loss.dtype == jnp.float32
        assert found.grads.dtype == dtype
        assert found.loss == pytest.approx(n * 2.0**-6, rel=1e-2)


@pytest.mark.parametrize("grad_fn", [BACKPROP, fp.from_loss(plain_loss)], ids=["hand", "plain"])
def test_mixed_precision_is_the_gradient_at_rounded_params(grad_fn):
    params, (x, *rest) = example(dtype=jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # plain_loss mixes
        got = fp.mixed_precision(grad_fn)(params, (x, *rest))
        low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        want = grad_fn(low, (x.astype(jnp.bfloat16), *rest))
    chex.assert_trees_all_equal_shapes_and_dtypes(got.grads, params)
    chex.assert_trees_all_equal(
        got.grads, jax.tree.map(lambda g: g.astype(jnp.float32), want.grads)
    )
    assert got.loss.dtype == jnp.float32


def test_what_is_kept_stays_in_its_dtype():
    seen = []

    def grad_fn(params, batch, key=None):
        seen.append(jax.tree.map(lambda p: str(p.dtype), params))
        return fp.Gradient(params, jnp.zeros(()), jnp.ones(()), {})

    kept = fp.mixed_precision(grad_fn, keep="norm")
    kept({"norm": jnp.ones(2), "w": jnp.ones(2)}, jnp.ones(2))
    assert seen == [{"norm": "float32", "w": "bfloat16"}]


@pytest.mark.parametrize("dloss", [None, 8.0])
def test_gradient_statistics_are_those_of_their_formula(dloss, x64):
    params, batch = example(9)
    extra = () if dloss is None else (jnp.asarray(dloss),)
    got = quickly(fp.gradient_statistics(BACKPROP, 3))(params, batch, None, *extra)
    grad_fn = quickly(BACKPROP)
    want = grad_fn(params, batch)
    unit = dloss or 1
    chex.assert_trees_all_close(got.grads, jax.tree.map(lambda g: unit * g, want.grads), rtol=1e-12)
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i::3], batch) for i in range(3)]
    found = [grad_fn(params, part) for part in parts]
    small = [_size(part.grads) / part.weight**2 for part in found if part.weight]
    inverse = [1 / part.weight for part in found if part.weight]
    big = _size(want.grads) / want.weight**2
    noise = (np.mean(small) - big) / (np.mean(inverse) - 1 / want.weight)
    np.testing.assert_allclose(
        got.metrics["noise_scale"], (noise, big - noise / want.weight), rtol=1e-9
    )
    w = want.grads.dense_1.w / want.weight
    np.testing.assert_allclose(got.metrics["gradient_norm/dense_1/w"].mean, np.linalg.norm(w))


def _size(grads):
    return sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads))


def test_the_noise_scale_is_unbiased():
    """Of gradients that are 1 plus noise of variance 4, in batches of any size."""
    fits = fp.from_loss(lambda w, x: (-(w * x).sum(), x.size))
    x = 1 + 2 * jax.random.normal(KEY, (4000, 8))
    told = jax.vmap(lambda x: fp.gradient_statistics(fits, 4)(jnp.zeros(()), x).metrics)(x)
    noise, square = (part.mean() for part in told["noise_scale"])
    np.testing.assert_allclose((noise, square), (4, 1), rtol=0.05)


@pytest.mark.parametrize(
    ("sentence", "call"),
    [
        ("n must be at least 1, got 0", lambda: fp.microbatch(BACKPROP, 0)),
        ("n must be at least 2, got 1", lambda: fp.gradient_statistics(BACKPROP, 1)),
        (
            "batch must have at least 4 examples, got 3",
            lambda: fp.microbatch(BACKPROP, 4)((), (jnp.ones((3, 5)), jnp.ones(3))),
        ),
        (
            "batch must have leaves of one length, got shapes [(3, 5), (4,)]",
            lambda: fp.microbatch(BACKPROP, 2)((), (jnp.ones((3, 5)), jnp.ones(4))),
        ),
        (
            "gradient_statistics must be outside microbatch, gradient_statistics(microbatch(...)): "
            "its norms are those of the whole batch",
            lambda: fp.microbatch(fp.gradient_statistics(BACKPROP), 2),
        ),
    ],
)
def test_bad_input(sentence, call):
    raises(ValueError, sentence, call)


def test_a_compute_dtype_that_is_not_floating():
    sentence = "compute_dtype must be a floating dtype, got int8"
    raises(TypeError, sentence, lambda: fp.mixed_precision(BACKPROP, jnp.int8))


def test_a_composition_tells_what_it_is_made_of():
    made = fp.mixed_precision(fp.microbatch(BACKPROP, 2))
    assert repr(made) == "mixed_precision(microbatch(grad_fn))"


# ------------------------------------------------------------------------- what optax has already

OF_OPTAX = {
    "clipping by the global norm": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    "a schedule": optax.sgd(optax.schedules.linear_schedule(0.5, 0.0, 20)),
    "accumulating steps": optax.MultiSteps(optax.sgd(0.5), 4).gradient_transformation(),
    "sharpness-aware": optax.contrib.sam(optax.sgd(0.5), optax.sgd(0.01), sync_period=2),
}


@pytest.mark.parametrize("name", OF_OPTAX)
def test_what_optax_has_is_taken_from_optax(name):
    params, batch = example(dtype=jnp.float32)
    grad_fn = fp.microbatch(BACKPROP, 3)
    train = fp.skip_nonfinite(fp.ema(fp.step(grad_fn, OF_OPTAX[name]), 0.9))
    with jax.numpy_dtype_promotion("standard"):
        state = train.init(params, None)
        losses = []
        for _ in range(20):
            state, metrics = train.update(state, batch)
            losses.append(float(metrics["loss"].mean))
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------- compositions

MESH = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
TRANSFORMS = {
    "microbatch": lambda g: fp.microbatch(g, 3),
    "mixed_precision": lambda g: fp.mixed_precision(g, jnp.float32),
    "clip_per_example": lambda g: fp.clip_per_example(OBJECTIVE if g is BACKPROP else g, 0.05),
    "gradient_statistics": lambda g: fp.gradient_statistics(g, 2),
    "data_parallel": lambda g: fp.data_parallel(g, MESH),
    "ordered": lambda g: fp.ordered(g, 4, MESH),
}
SPLITS = ("data_parallel", "ordered")  # no set: every worker must collect them in one order
REFUSED = {
    ("microbatch", "gradient_statistics"),
    *(("clip_per_example", inner) for inner in ("microbatch", "gradient_statistics", *SPLITS)),
    *((outer, inner) for outer in SPLITS for inner in SPLITS),
}


def definition(names, params, batch):
    """The gradient that a composition stands for, from every example's by JAX."""
    if "mixed_precision" in names:
        lower = lambda leaf: leaf.astype(jnp.float32).astype(jnp.float64)
        params, batch = jax.tree.map(lower, params), (lower(batch[0]), *batch[1:])
    rows = jax.tree.map(lambda leaf: leaf[:, None], batch)
    each = jax.vmap(jax.grad(lambda p, row: plain_loss(p, row)[0]), (None, 0))(params, rows)
    if "clip_per_example" in names:
        squares = sum(jnp.square(g).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(each))
        factors = jnp.minimum(1, 0.05 / jnp.sqrt(squares))
        each = jax.tree.map(lambda g: jnp.einsum("n,n...->n...", factors, g), each)
    return jax.tree.map(lambda g: g.sum(0), each)


@pytest.mark.parametrize("outer", TRANSFORMS)
@pytest.mark.parametrize("inner", TRANSFORMS)
def test_every_pair_is_its_definition_or_refused(outer, inner, x64):
    if (outer, inner) in REFUSED:
        with pytest.raises(ValueError, match=r"must be (in|out)side|must not be made of"):
            TRANSFORMS[outer](TRANSFORMS[inner](BACKPROP))
        return
    params, batch = example(24)
    got = quickly(TRANSFORMS[outer](TRANSFORMS[inner](BACKPROP)))(params, batch)
    want = definition((outer, inner), params, batch)
    close = 1e-5 if "mixed_precision" in (outer, inner) else 1e-12
    chex.assert_trees_all_close(got.grads, want, rtol=close, atol=close)
    loss, weight = plain_loss(params, batch)
    np.testing.assert_allclose((got.loss, got.weight), (loss, weight), rtol=close)
    for name, metric in (("clip_per_example", "clipped"), ("gradient_statistics", "noise_scale")):
        assert (metric in got.metrics) == (name in (outer, inner))


@pytest.mark.parametrize("outer", ["microbatch", "gradient_statistics", *SPLITS])
def test_noise_is_added_outside_of_all_parts(outer):
    noisy = fp.clip_per_example(OBJECTIVE, 1.0, noise=1.0)
    with pytest.raises(ValueError, match=rf"noise must be outside {outer}"):
        TRANSFORMS[outer](noisy)
