"""What `verify` runs by NumPy computes what XLA does."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from funprop.verify.truth.in_numpy import MANY, program, quickest
from funprop.verify.truth.internals import equations
from funprop.verify.truth.numpy_primitives import MADE, OF_FLOATS, SIMPLE

rng = np.random.default_rng(0)
X = rng.standard_normal((3, 4))
Y = rng.standard_normal((4, 5))
ODD = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5], [2.5, -2.5, 0.5, 1e-300, 1e300, -1.0]])
N = np.array([[3, -1, 2], [0, 7, -7]])
TIES = np.array([2.0, 1.0, 2.0, 1.0, 0.0])
NUMBERS = lax.GatherDimensionNumbers(
    offset_dims=(0,), collapsed_slice_dims=(1,), start_index_map=(1, 0)
)


def named(name, function, *args):
    return name, function, args


def gathered(mode, x, indices):
    return lax.gather(x, indices, NUMBERS, slice_sizes=(2, 1), mode=mode)


def put(name, mode, x, indices, updates):
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(0,), inserted_window_dims=(1,), scatter_dims_to_operand_dims=(1, 0)
    )
    return getattr(lax, name)(x, indices, updates, numbers, mode=mode)


PLACES = np.array([[0, 0], [3, 1], [1, 1]])  # within [3, 4], windows of 2 along the first axis
BEYOND = np.array([[0, 0], [4, 1], [1, 2], [-1, 0]])
OF_ONE = (
    "exp exp2 log log1p expm1 sqrt cbrt rsqrt logistic tanh sin cos tan sinh cosh asinh acosh atanh "
    "asin acos atan floor ceil erf abs neg sign square is_finite stop_gradient"
)
OF_TWO = "add sub mul max min eq ne lt le gt ge"

CASES = [
    *(named(name, getattr(lax, name), ODD) for name in OF_ONE.split()),
    *(named(f"{name}, whole", getattr(lax, name), N) for name in ("abs", "neg", "sign", "square")),
    *(named(name, getattr(lax, name), ODD, ODD[::-1]) for name in OF_TWO.split()),
    *(named(f"{name}, whole", getattr(lax, name), N, N[::-1]) for name in OF_TWO.split()),
    *(named(name, getattr(lax, name), ODD, ODD[::-1]) for name in ("div", "rem", "pow", "atan2")),
    *(
        named(f"bitwise {name}", getattr(lax, f"bitwise_{name}"), N, N[::-1])
        for name in ("and", "or", "xor")
    ),
    named("not", lax.bitwise_not, ODD > 0),
    named("integer_pow", lambda x: (x**3, x**-2, lax.integer_pow(x, -1)), ODD),
    named("round", functools.partial(lax.round, rounding_method=lax.RoundingMethod(1)), ODD),
    named("select", lax.select_n, ODD > 0, ODD, 2 * ODD),
    named("select of three", lax.select_n, np.array([2, 0, 1], np.int32), *np.eye(3)),
    named("clamp", lax.clamp, -ODD, ODD, ODD + 1),
    named("copy", lambda x: jnp.array(x, copy=True), X),
    named("barrier", lambda x, n: lax.optimization_barrier((x, n)), X, N),
    named("converted", lambda n, b: (n.astype(float), b.astype(float), n.astype(bool)), N, X > 0),
    named("cut", lambda n: n.astype(np.int8), 100 * N),
    named("broadcast", lambda x: lax.broadcast_in_dim(x, (2, 3, 5, 4), (1, 3)), X),
    named("iota", lambda x: x + lax.broadcasted_iota(float, (3, 4), 1), X),
    named("reshape", lambda x: (x.reshape(2, 6), lax.reshape(x, (6, 2), (1, 0))), X),
    named("squeeze", lambda x: x[:, None, :, None].squeeze((1, 3)), X),
    named("expand_dims", lambda x: lax.expand_dims(x, (1, -1)), X),
    named("transpose", lambda x: x.T, X),
    named("rev", lambda x: x[::-1, ::-1], X),
    named("concatenate", lambda x: jnp.concatenate([x, 2 * x], 1), X),
    named("stack", lambda x: jnp.stack([x, 2 * x], 1), X),
    named("tile", lambda x: jnp.tile(x, (2, 1, 3)), X),
    named("slice", lambda x: (x[1:, ::2], x[:0]), X),
    named("pad", lambda x: lax.pad(x, 7.0, ((1, 2, 0), (-1, 1, 2))), X),
    named("pad to nothing", lambda x: lax.pad(x, 7.0, ((-2, -1, 0), (0, -2, 1))), X),
    named("pad nothing", lambda x: lax.pad(x[:0], 7.0, ((1, 0, 3), (0, 0, 0))), X),
    named("split", lambda x: jnp.split(x, [1, 3], 1), X),
    named("sort", lambda x: jnp.sort(x, 1), ODD),
    named("argsort", jnp.argsort, TIES),
    named("product", lambda x, y: x @ y, X, Y),
    named("of vectors", lambda x: x[0] @ x[1], X),
    named("of matrices", lambda x: jnp.einsum("bij,kjb->bki", x, x), rng.random((2, 2, 2))),
    named("of nothing", lambda x, y: (x[:0] @ y, x[:, :0] @ y[:0]), X, Y),
    named("of whole numbers", lambda n: n @ n.T, N),
    named("sums", lambda x, n: (x.sum(0), x.sum(), n.sum(1), x.prod(1), n.prod()), X, N),
    named("all", lambda x: ((x > 0).all(0), (x > 0).any()), X),
    named("extremes", lambda x: (x.max(1), x.min(), x[0, 1:].max(), x[1].min()), ODD),
    named("of whole", lambda n: (n.max(1), n.min(), n.max(0, initial=-9)), N),
    named("of booleans", lambda x: (lax.reduce_max_p.bind(x > 0, axes=(0,), out_sharding=None)), X),
    named("of none", lambda x: (x[:0].max(0, initial=-np.inf), x[:0].min(0, initial=1.0)), X),
    named("places", lambda x, t: (x.argmax(1), x.argmin(), t.argmax(), t.argmin()), ODD, TIES),
    named("places, whole", lambda n: (n.argmax(1), n.argmin(0)), N),
    *(
        named(f"{name}, {reverse}", functools.partial(getattr(lax, name), axis=1, reverse=reverse), v)
        for name in ("cumsum", "cumprod", "cummax", "cummin")
        for reverse in (False, True)
        for v in (X, N)
    ),
    named("rows", lambda x, n: x[n], X, np.array([[2, 0], [-1, 1]])),
    named("each row's", lambda x, n: jnp.take_along_axis(x, n, 1), X, np.array([[9], [-2], [1]])),
    named("whole, filled", lambda n: jnp.asarray(n).at[np.array([5, 0])].get(mode="fill"), N),
    *(
        named(f"gather, {mode}", functools.partial(gathered, mode), X, at)
        for mode, at in (("clip", BEYOND), ("fill", BEYOND), ("promise_in_bounds", PLACES))
    ),
    *(
        named(f"{name}, {mode}", functools.partial(put, name, mode), X, at, rng.random((2, len(at))))
        for name in ("scatter_add", "scatter_mul", "scatter_min", "scatter_max")
        for mode, at in (("clip", BEYOND), ("fill", BEYOND), ("promise_in_bounds", PLACES))
    ),
    named("scatter", functools.partial(put, "scatter", "fill"), X, BEYOND, rng.random((2, 4))),
    named("of rows", jax.grad(lambda x: (x[np.array([2, 0, 2])] ** 2).sum()), X),
    named("of each", jax.grad(lambda x: jnp.take_along_axis(x, N[:, :1] % 4, 1).sum()), X[:2]),
    named("inner", lambda x: jax.nn.softmax(x) + jax.nn.gelu(x) + jnp.var(x), X),
    named("of a rule", jax.grad(lambda x: jax.nn.relu(x - 1).sum() + jnp.linalg.norm(x)), X),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_numpy_computes_what_xla_does(function, args):
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(function)(*args)
        run = program(jaxpr)
        assert run is not None
        with np.errstate(all="ignore"):
            got = run(*args)
        want = jax.tree.leaves(function(*map(jnp.asarray, args)))
    for g, w in zip(got, want, strict=True):
        assert (np.shape(g), g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=1e-13, atol=1e-300)


def test_each_primitive_of_the_tables_is_compared():
    with jax.enable_x64(True):
        seen = {
            eqn.primitive.name
            for _, function, args in CASES
            for eqn in equations(jax.make_jaxpr(function)(*args))
        }
    alike = {name.replace("-", "_").removesuffix("_p") for name in seen}
    known = {name.replace("-", "_").removesuffix("_p") for name in (*SIMPLE, *OF_FLOATS, *MADE)}
    assert known - alike <= {"add_any", "expand_dims"}


@pytest.mark.parametrize(
    ("function", "arg"),
    [
        (lambda x: x.astype(int), X),
        (lambda x: x.astype(np.float32) * 2, X),
        (lambda n: n // 2, N),
        (lambda x: lax.scan(lambda c, row: (c, c * row), 1.0, x), X),
        (lambda x: jax.pure_callback(np.sin, x, x), X),
        (lambda x: lax.round(x), X),
        (lambda x: lax.sort((x, x, x), num_keys=2), X),
        (lambda x: jnp.zeros(MANY + 1) + x, 1.0),
    ],
    ids=["to whole", "float32", "whole", "loop", "callback", "round", "two keys", "large"],
)
def test_what_is_compiled(function, arg):
    with jax.enable_x64(True):
        assert program(jax.make_jaxpr(function)(arg)) is None
        compiled = []
        run = quickest(function, lambda f: compiled.append(f) or jax.jit(f))
        jax.tree.map(np.testing.assert_array_equal, run(arg), function(jnp.asarray(arg)))
    assert len(compiled) == 2


def test_a_function_is_traced_once_for_arrays_of_a_kind():
    traced = []

    def function(x, y):
        traced.append(x.shape)
        return {"sum": x + y}

    run = quickest(function, jax.jit)
    with jax.enable_x64(True):
        for n in (3, 3, 2):
            assert math.isclose(run(np.ones(n), 1.0)["sum"][0], 2)
    assert traced == [(3,), (2,)]
    assert run(jnp.ones(3), 1.0)["sum"].dtype == np.float32  # not in 64 bits: compiled


def test_what_cannot_be_traced_is_traced_once():
    tried = []

    def function(x):
        tried.append(x)
        raise TypeError("no derivative")

    run = quickest(function, jax.jit)
    for _ in range(2):
        with jax.enable_x64(True), pytest.raises(TypeError, match="no derivative"):
            run(np.ones(3))
    assert len(tried) == 1
