"""Gradients, transforms, rewrites, steps and `fit` on any batch: NumPy's dtypes, no rows, one and
odd ones, anything at places without a say, huge and tiny numbers. Each equals a plain reference in
float64 to rounding, or refuses the batch in one sentence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.train.data.in_memory import epoch_rows

KEY, FEATURES, OUTPUTS, LARGEST_NORM, RATE = jax.random.key(0), 3, 2, 0.5, 0.25
MODEL = fp.named("line", fp.dense(OUTPUTS))
MESH = fp.make_mesh(data=1)
few = settings(max_examples=5, deadline=None, derandomize=True)


def objective(rewrite=lambda model: model):
    return fp.objective(rewrite(MODEL), fp.mean_squared())


def loss_fn(params, batch):
    return fp.as_function(objective())(params, batch)


# A gradient, and how many rows it must be given: at least, and a multiple of.
GRADIENTS = {
    "backprop": (fp.backprop(objective()), 0, 1),
    "from_loss": (fp.from_loss(loss_fn), 0, 1),
    "from_function": (
        fp.backprop(
            objective(
                lambda _: fp.from_function(MODEL.init, lambda p, x: x @ p.w + p.b[None], "line")
            )
        ),
        0,
        1,
    ),
    "microbatch": (fp.microbatch(fp.backprop(objective()), 2), 2, 1),
    "gradient_statistics": (fp.gradient_statistics(fp.from_loss(loss_fn), 2), 2, 1),
    "ordered": (fp.ordered(fp.backprop(objective()), 2), 2, 2),
    "data_parallel": (fp.data_parallel(fp.backprop(objective()), MESH), 0, 1),
    "clip_per_example": (fp.clip_per_example(objective(), LARGEST_NORM), 0, 1),
    "clip_per_example of rows": (fp.clip_per_example(fp.from_loss(loss_fn), LARGEST_NORM), 0, 1),
    **{
        name: (fp.backprop(objective(rewrite)), 0, 1)
        for name, rewrite in {
            "autodiff": fp.autodiff,
            "remat": fp.remat,
            "offload": fp.offload,
            "tap": functools.partial(fp.tap, forward=jnp.sum),
        }.items()
    },
}
STEPS = {
    "step": lambda sgd: fp.step(fp.backprop(objective()), sgd),
    "fused_step": lambda sgd: fp.fused_step(objective(), sgd),
    "ema": lambda sgd: fp.ema(fp.step(fp.backprop(objective()), sgd), 0.5),
    "skip_nonfinite": lambda sgd: fp.skip_nonfinite(fp.step(fp.from_loss(loss_fn), sgd)),
    "loss_scale": lambda sgd: fp.loss_scale(fp.step(fp.backprop(objective()), sgd)),
    "scan": lambda sgd: fp.scan(fp.step(fp.backprop(objective()), sgd)),
}
# Of params and inputs, of targets, of weights: a program each, and many values go through it.
DTYPES = (
    ("float32", "float32", None),
    ("float32", "int64", "float64"),
    ("float32", "uint8", "bool"),
    ("bfloat16", "bool", "int8"),
    ("float16", "float64", "float16"),
)
FOR_FIT = DTYPES[0], ("float32", "float64", "float64")
NUMBERS = (0, 1, -1, 0.3, -2.5, 1e-30, -3e-5)
LARGE = (1e4, -2e6)  # whose fourth powers, times the scale of a loss, are numbers in float32
WITHOUT_A_SAY = (np.nan, np.inf, -np.inf, 7.0)


@st.composite
def batches(draw, rows=(0, 1, 4, 5), dtypes=DTYPES, large=True):
    """Params, and a batch of NumPy's arrays in which what has no weight may be anything."""
    n, (dtype, target, weight) = draw(st.sampled_from(rows)), draw(st.sampled_from(dtypes))
    dtype = jnp.dtype(dtype)

    def some(values, *shape):
        size = int(np.prod(shape))
        return np.array(draw(st.lists(values, min_size=size, max_size=size))).reshape(shape)

    values = st.sampled_from(NUMBERS + (LARGE if large and dtype.itemsize == 4 else ()))
    whole = np.dtype(target).kind in "iub"
    w, b = some(values, FEATURES, OUTPUTS).astype(dtype), some(values, OUTPUTS).astype(dtype)
    x = some(values, n, FEATURES).astype(dtype)
    t = some(st.integers(0, 1) if whole else values, n, OUTPUTS).astype(target)
    params = fp.DenseParams(jnp.asarray(w), jnp.asarray(b))
    if weight is None:
        return params, (x, t)
    weights = some(st.sampled_from([0, 1, 1, 2, 3]), n).astype(weight)
    silent = weights == 0
    x[silent] = draw(st.sampled_from(WITHOUT_A_SAY))
    if not whole:
        t[silent] = draw(st.sampled_from(WITHOUT_A_SAY))
    return params, (x, t, weights)


def wide(leaf):
    return np.asarray(leaf).astype(np.float64)


def reference(params, batch, largest=None):
    """Loss, weight and gradient in float64; and sums of what is added up in them, by absolute
    value: what rounding is a share of."""
    w, b = map(wide, params)
    x, t, *weights = map(wide, batch)
    weights = weights[0] if weights else np.ones(len(x))
    x, t = (np.where(weights[:, None] == 0, 0, leaf) for leaf in (x, t))
    apart = (x @ w + b - t) * (weights[:, None] != 0)
    near = np.abs(x) @ np.abs(w) + np.abs(b) + np.abs(t)
    slopes, most = 2 * weights[:, None] * apart, 2 * weights[:, None] * near
    if largest is not None:
        norms = np.sqrt((slopes**2).sum(1) * (1 + (x**2).sum(1)))
        scale = np.minimum(1, largest / np.where(norms == 0, 1, norms))[:, None]
        slopes, most = scale * slopes, scale * most
    loss = (weights[:, None] * apart**2).sum(), (weights[:, None] * near**2).sum()
    return (loss[0], OUTPUTS * weights.sum(), x.T @ slopes, slopes.sum(0)), (
        *(loss[1], 0, np.abs(x).T @ most, most.sum(0)),
    )


def near(got, want, size, eps):
    least = np.finfo(np.float32).tiny / eps  # below, a CPU takes products for zero
    for a, b, s in zip(got, want, size, strict=True):
        np.testing.assert_array_less(np.abs(wide(a) - b), 24 * (eps * s + least))


@functools.cache
def jitted(name):
    return jax.jit(GRADIENTS[name][0])


@pytest.mark.parametrize("name", GRADIENTS)
@few
@given(data=st.data())
def test_gradients(name, data):
    clipped = "clip" in name  # to a direction, in which what cancels in a slope is all there is
    params, batch = data.draw(batches(large=not clipped))
    _, least, multiple = GRADIENTS[name]
    n = len(batch[0])
    if n < least or n % multiple:
        with pytest.raises(ValueError, match=r"^(batch must have at least 2|parts must divide)"):
            GRADIENTS[name][0](params, batch)
        return
    found = jitted(name)(params, batch)
    assert [leaf.dtype for leaf in found.grads] == [leaf.dtype for leaf in params]
    eps = float(jnp.finfo(params.w.dtype).eps)
    want, size = reference(params, batch, LARGEST_NORM if clipped else None)
    if clipped:  # the factor is a quotient by a norm that is rounded as the slopes are
        size = (size[0], 0, *(s + LARGEST_NORM * n for s in size[2:]))
    near((found.loss, found.weight, *found.grads), want, size, eps)


@pytest.mark.parametrize("name", GRADIENTS)
def test_without_jit_numpys_arrays_are_arrays(name):
    """Integers that JAX would cut are told of, and no dtype is warned of."""
    rng = np.random.default_rng(0)
    params = MODEL.init(KEY, np.ones((4, FEATURES)))
    batch = rng.standard_normal((4, FEATURES)), rng.integers(0, 9, (4, OUTPUTS)), np.ones(4, int)
    grad_fn = GRADIENTS[name][0]
    found = grad_fn(params, batch)
    want, size = reference(params, batch, LARGEST_NORM if "clip" in name else None)
    near((found.loss, found.weight, *found.grads), want, [s + 1 for s in size], 1e-6)
    batch[1][2, 1] = 2**40
    with pytest.raises(ValueError, match=r"^batch/1 must fit in int32, got 1099511627776"):
        grad_fn(params, batch)


@pytest.mark.parametrize("name", STEPS)
@few
@given(drawn=batches(dtypes=DTYPES[:3]))
def test_one_update(name, drawn):
    params, batch = drawn
    step = _step(name)
    state = step.init(params, None)
    many = jax.tree.map(lambda leaf: leaf[None], batch) if name == "scan" else batch
    new, metrics = step.update(state, many)
    (_, weight, *grads), (_, _, *size) = reference(params, batch)
    share = RATE / max(weight, 1)
    want = [wide(p) - share * g for p, g in zip(params, grads, strict=True)]
    most = [np.abs(wide(p)) + share * s for p, s in zip(params, size, strict=True)]
    near(new.params, want, most, float(jnp.finfo(jnp.float32).eps))
    assert np.squeeze(metrics["loss"].weight) == weight


@functools.cache
def _step(name):
    return STEPS[name](optax.sgd(RATE))


@few
@given(drawn=batches(rows=(1, 4, 5), dtypes=FOR_FIT, large=False), seed=st.integers(0, 3))
def test_fit_is_the_plain_loop(drawn, seed):
    params, data = drawn
    step, n = _step("step"), len(data[0])
    size = min(2, n)
    run = functools.partial(fp.fit, step, epochs=1, batch_size=size, seed=seed, progress=None)
    if seed % 2:
        data[0][~np.isfinite(data[0])] = 7
    state = step.init(params, None)
    finite = np.isfinite(data[0]).all()  # of inputs it is asked wherever they are
    if not finite or (len(data) == 3 and not data[2].any()):
        with pytest.raises(
            ValueError, match=r"data: weights must not all be zero|data must be fini"
        ):
            run(state, data)
        return
    want = fp.DenseParams(*map(wide, params))
    sizes = [np.abs(p) for p in want]
    for rows in epoch_rows(n, size, seed, 0, "short"):
        batch = tuple(leaf[rows[rows >= 0]] for leaf in data)
        (_, weight, *grads), (_, _, *most) = reference(want, batch)
        share = RATE / max(weight, 1)
        want = fp.DenseParams(*(p - share * g for p, g in zip(want, grads, strict=True)))
        sizes = [s + share * m for s, m in zip(sizes, most, strict=True)]
    found = run(state, data).state.params
    near(found, want, [10 * (s + 1) for s in sizes], float(jnp.finfo(jnp.float32).eps))
