"""What a GPU does of its own is no mistake, and a mistake on a GPU is one: products of float32 in
TF32, denormals flushed to zero, sums by scatter in any order, cuDNN, kernels in Triton, PyTorch and
CuPy. On a machine with a GPU: python -m pytest tests/test_on_gpu.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
KEY = jax.random.key(0)


def rule(forward, backward):
    """A function with a custom rule that keeps its arguments."""
    function = jax.custom_vjp(forward)
    function.defvjp(lambda *args: (forward(*args), args), backward)
    return function


def drawn(*shape, dtype=jnp.float32):
    return jax.random.normal(KEY, shape, dtype)


def by_product(scale=1.0):
    """Row sums; the backward pass is a product with ones, in TF32 where products are."""
    return rule(
        lambda x: x.sum(1),
        lambda kept, dy: (scale * dy[:, None] @ jnp.ones((1, kept[0].shape[1])),),
    )


def linear(scale=1.0):
    return rule(
        lambda x, w: x @ w,
        lambda kept, dy: (dy @ kept[1].T, scale * (kept[0].T @ dy)),
    )


def convolved(scale=1.0):
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def backward(kept, dy):
        dx, dw = jax.vjp(conv, *kept)[1](dy)
        return scale * dx, dw

    return rule(conv, backward)


def scattered(scale=1.0):
    """Sums by label, by a scatter whose order nobody knows."""
    labels = jax.random.randint(KEY, (5000,), 0, 7)

    def forward(x):
        return jnp.zeros((7, x.shape[1])).at[labels].add(x)

    return rule(forward, lambda kept, dy: (scale * dy[labels],))


def gathered(scale=1.0):
    """Rows by label: the backward pass is the scatter."""
    labels = jax.random.randint(KEY, (5000,), 0, 7)
    return rule(
        lambda x: x[labels],
        lambda kept, dy: (scale * jnp.zeros_like(kept[0]).at[labels].add(dy),),
    )


PLAIN = {
    "sums by a product in TF32": (by_product, (drawn(64, 300),)),
    "product": (linear, (drawn(64, 300), drawn(300, 50))),
    "convolution": (convolved, (drawn(4, 12, 12, 8), drawn(3, 3, 8, 16))),
    "scatter": (scattered, (drawn(5000, 3),)),
    "gather": (gathered, (drawn(7, 3),)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_right_is_right(name):
    make, args = PLAIN[name]
    fp.verify(make(), *args).raise_if_wrong()


@pytest.mark.parametrize("name", PLAIN)
def test_a_thousandth_is_wrong(name):
    make, args = PLAIN[name]
    assert not fp.verify(make(1.001), *args).ok


def test_what_is_flushed_to_zero_is_no_mistake():
    tiny = jnp.float32([1e-38, 2e-39, -3e-40, 1e-30, 0.5])
    fp.verify(rule(lambda x: x * 0.25, lambda kept, dy: (dy * 0.25,)), tiny).raise_if_wrong()
    fp.verify(
        rule(lambda x: jnp.exp(x), lambda kept, dy: (dy * jnp.exp(kept[0]),)),
        jnp.float32([-90, -100, -87.5, 0.0, 1.0]),
    ).raise_if_wrong()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_cudnn_attention_of_jax(dtype):
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    q, k, v = (drawn(2, 64, 4, 64, dtype=dtype) for _ in range(3))
    report = fp.verify_rules(attend, q, k * 0.5, v)
    # JAX 0.11.2: under a vmap of our making its batching rule fails ("cannot reshape").
    assert {f.story for f in report.findings} <= {"fails under vmap"}, report


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("window", [None, 17])
def test_our_attention(dtype, window):
    layer = fp.attention(4, causal=True, window=window)
    x = drawn(2, 64, 3 * 4 * 64, dtype=dtype)
    fp.verify(layer, (), x).raise_if_wrong()


def by_triton(kernel, *args):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    spec = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
    how = triton.CompilerParams(num_warps=1)
    return pl.pallas_call(kernel, out_shape=spec, compiler_params=how)(*args)


def cube_by_triton(scale=1.0):
    def cube(x_ref, y_ref):
        x = x_ref[...]
        y_ref[...] = x * x * x

    def slope(x_ref, dy_ref, dx_ref):
        x = x_ref[...]
        dx_ref[...] = scale * 3 * x * x * dy_ref[...]

    return rule(lambda x: by_triton(cube, x), lambda kept, dy: (by_triton(slope, kept[0], dy),))


def product_by_triton(scale=1.0):
    def product(x_ref, w_ref, y_ref):
        y_ref[...] = jnp.dot(x_ref[...], w_ref[...])

    return rule(
        lambda x, w: by_triton(product, x, w),
        lambda kept, dy: (by_triton(product, dy, kept[1].T), scale * (kept[0].T @ dy)),
    )


TRITON = {
    "cube": (cube_by_triton, (drawn(64),)),
    "product": (product_by_triton, (drawn(32, 32), drawn(32, 32) + 0.1)),
}


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("name", TRITON)
def test_a_kernel_of_pallas(name):
    make, args = TRITON[name]
    fp.verify(make(), *args).raise_if_wrong()
    assert not fp.verify(make(1.05), *args).ok


def test_a_function_of_pytorch_by_triton():
    torch = pytest.importorskip("torch")
    triton = pytest.importorskip("triton")
    source = (
        "import triton, triton.language as tl\n"
        "@triton.jit\n"
        "def cube(x, y, n, block: tl.constexpr):\n"
        "    at = tl.program_id(0) * block + tl.arange(0, block)\n"
        "    v = tl.load(x + at, at < n)\n"
        "    tl.store(y + at, v * v * v, at < n)\n"
    )
    import importlib.util
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "cube_kernel.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("cube_kernel", path)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    assert triton

    def cube(scale):
        class Cube(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                y = torch.empty_like(x)
                kernels.cube[(triton.cdiv(x.numel(), 32),)](x, y, x.numel(), 32)
                return y

            @staticmethod
            def backward(ctx, dy):
                return scale * ctx.saved_tensors[0] ** 2 * dy

        return fp.from_pair(Cube.apply, to=lambda a: torch.as_tensor(a, device="cuda"))

    x = np.linspace(-1, 1, 40, dtype=np.float32)
    fp.verify(cube(3.0), x).raise_if_wrong()
    assert not fp.verify(cube(3.01), x).ok


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
def test_a_product_of_pytorch_in_tf32():
    torch = pytest.importorskip("torch")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        layer = torch.nn.Linear(64, 32).cuda()

        def forward(x, w):
            return torch.nn.functional.linear(x, w, layer.bias.to(x.dtype))

        pair = fp.from_pair(forward, to=lambda a: torch.as_tensor(a, device="cuda"))
        args = np.asarray(drawn(16, 64)), np.asarray(drawn(32, 64))
        fp.verify(pair, *args).raise_if_wrong()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_a_pair_of_cupy():
    cupy = pytest.importorskip("cupy")

    def pair(scale):
        return fp.from_pair(
            lambda x: cupy.tanh(x),
            lambda x, dy: scale * (1 - cupy.tanh(x) ** 2) * dy,
            to=cupy.asarray,
        )

    x = np.linspace(-2, 2, 33, dtype=np.float32)
    fp.verify(pair(1.0), x).raise_if_wrong()
    assert not fp.verify(pair(1.01), x).ok


@pytest.fixture
def as_others_write():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_a_step_that_scatters_is_right(as_others_write):
    model = fp.serial(fp.embedding(7, 16), fp.dense(7))
    tokens = jax.random.randint(KEY, (64, 40), 0, 7)
    objective = fp.objective(model, fp.softmax_cross_entropy())
    batch = tokens[:, :-1], tokens[:, 1:]
    train = fp.step(fp.backprop(objective), optax.adam(1e-3))
    state = train.init(objective.init(KEY, batch), jax.random.key(1))
    fp.verify_step(train.update, state, batch).raise_if_wrong()


def test_a_plain_step_that_scatters_is_right(as_others_write):
    from tests.benchmarks.language_models import plain_loss, transformer_block

    tokens = jax.random.randint(KEY, (8, 33), 0, 31)
    whole = fp.language_model(fp.gpt(31, features=32, depth=2, heads=2, longest=32), 31)
    batch = tokens[:, :-1], tokens[:, 1:]
    loss = plain_loss(functools.partial(transformer_block, 2), True)
    optimizer = optax.adamw(1e-3)

    @jax.jit
    def update(state, batch):
        params, opt_state = state
        value, grads = jax.value_and_grad(lambda p: loss(p, batch) / batch[0].size)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": value}

    params = whole.init(KEY, batch)
    fp.verify_step(update, (params, optimizer.init(params)), batch).raise_if_wrong()
