"""The one table of (id, layer, input) that drives the tests: a new layer adds a row and is tested
in every way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funprop as fp


class Case(NamedTuple):
    """A layer and an input for it.

    `x` is made from a random generator, in float32; tests cast it to the dtype that they need.
    """

    id: str
    layer: fp.Layer
    x: Callable[[np.random.Generator], Any]
    key: bool = False


def normal(*shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: jnp.asarray(rng.standard_normal(shape), jnp.float32)


def labels(*shape: int, classes: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: jnp.asarray(rng.integers(0, classes, shape), jnp.int32)


def positive(*shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: jnp.asarray(rng.uniform(0, 2, shape), jnp.float32)


def distribution(*shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: jnp.asarray(rng.dirichlet(np.ones(shape[-1]), shape[:-1]), jnp.float32)


def seen(*shape: int) -> Callable[[np.random.Generator], Any]:
    """Masks of sequences of every length, the shortest empty."""
    lengths = np.linspace(0, shape[1], shape[0]).astype(int)
    return lambda rng: jnp.asarray(np.arange(shape[1]) < lengths[:, None])


def both(*parts: Callable[[np.random.Generator], Any]) -> Callable[[np.random.Generator], Any]:
    return lambda rng: tuple(part(rng) for part in parts)


def own_layer() -> fp.Layer:
    """A user's layer, with params that are a bare array."""
    return fp.layer(
        init=lambda key, x: jax.random.normal(key, x.shape[-1:], x.dtype),
        forward=lambda scale, x: (scale[None] * x, x),
        backward=lambda scale, x, dy: ((x * dy).sum(0), scale[None] * dy),
        name="scale",
    )


def tied() -> fp.Layer:
    return fp.reparam(
        fp.serial(fp.dense(3, bias=False), fp.tanh(), fp.dense(5, bias=False)),
        expand=lambda w: (fp.DenseParams(w, None), (), fp.DenseParams(w.T, None)),
        initial=lambda params: params.dense_0.w,
    )


def tied_by_hand() -> fp.Layer:
    return fp.reparam(
        fp.serial(fp.dense(3, bias=False), fp.tanh(), fp.dense(5, bias=False)),
        expand=lambda w: (fp.DenseParams(w, None), (), fp.DenseParams(w.T, None)),
        initial=lambda params: params.dense_0.w,
        shrink=lambda w, d: d[0].w + d[2].w.T,
    )


def sine() -> fp.Layer:
    return fp.from_function(
        lambda key, x: jax.random.normal(key, x.shape[-1:], x.dtype),
        lambda a, x: jnp.sin(a[None] * x) * a[None],
    )


LAYERS = [
    Case("dense", fp.dense(4), normal(7, 5)),
    Case("dense-no-bias", fp.dense(4, bias=False), normal(7, 5)),
    Case("dense-one-axis", fp.dense(4), normal(5)),
    Case("dense-three-axes", fp.dense(4), normal(2, 3, 5)),
    Case("dense-wide-to-one", fp.dense(1), normal(6, 9)),
    Case("flatten", fp.flatten(), normal(3, 2, 4)),
    Case("reshape", fp.reshape(4, -1), normal(3, 2, 6)),
    Case("reshape-scalar", fp.reshape(), normal(3, 1)),
    Case("reshape-integers", fp.reshape(6), labels(3, 2, 3, classes=9)),
    Case("dropout", fp.dropout(0.4), normal(6, 5), key=True),
    Case("dropout-no-key", fp.dropout(0.4), normal(6, 5)),
    Case("softmax", fp.softmax(), normal(4, 6)),
    Case("softmax-axis-0", fp.softmax(0), normal(4, 6)),
    Case("log_softmax", fp.log_softmax(), normal(4, 6)),
    Case("relu", fp.relu(), normal(5, 6)),
    Case("leaky_relu", fp.leaky_relu(0.1), normal(5, 6)),
    Case("leaky_relu-zero", fp.leaky_relu(0.0), normal(5, 6)),
    Case("elu", fp.elu(), normal(5, 6)),
    Case("elu-alpha", fp.elu(0.3), normal(5, 6)),
    Case("gelu", fp.gelu(), normal(5, 6)),
    Case("gelu_tanh", fp.gelu_tanh(), normal(5, 6)),
    Case("silu", fp.silu(), normal(5, 6)),
    Case("tanh", fp.tanh(), normal(5, 6)),
    Case("sigmoid", fp.sigmoid(), normal(5, 6)),
    Case("softplus", fp.softplus(), normal(5, 6)),
    Case("add", fp.add(), both(normal(3, 4), normal(3, 4), normal(3, 4))),
    Case("concatenate", fp.concatenate(), both(normal(3, 4), normal(3, 2), normal(3, 5))),
    Case("concatenate-axis-0", fp.concatenate(0), both(normal(3, 4), normal(2, 4))),
    Case("own", own_layer(), normal(5, 3)),
    Case("from_function", sine(), normal(5, 3)),
]

CONVOLUTIONS = [
    Case(
        "conv",
        fp.conv(3, (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2)),
        normal(2, 6, 4, 2),
    ),
    Case("conv-groups", fp.conv(4, (3,), stride=2, groups=2), normal(2, 5, 4)),
    Case("conv-depthwise", fp.conv(3, (2, 2), groups=3, bias=False), normal(2, 3, 4, 3)),
    Case("conv_transpose", fp.conv_transpose(3, (3, 2), stride=2), normal(2, 3, 2, 2)),
    Case("max_pool", fp.max_pool((3, 2), stride=2, padding="same"), normal(2, 5, 4, 2)),
    Case("average_pool", fp.average_pool((3, 2), stride=2, padding="same"), normal(2, 5, 4, 2)),
    Case("global_average_pool", fp.global_average_pool(), normal(2, 3, 4, 3)),
    Case("global_max_pool", fp.global_max_pool(), normal(2, 3, 4, 3)),
    Case("upsample", fp.upsample((2, 3)), normal(2, 3, 2, 2)),
    Case("upsample-bilinear", fp.upsample((2, 3), "bilinear"), normal(2, 3, 2, 2)),
]

NORMALISATIONS: list[Case] = [
    Case("layer_norm", fp.layer_norm(), normal(4, 6)),
    Case("layer_norm-bare", fp.layer_norm(scale=False, bias=False), normal(2, 3, 5)),
    Case("rms_norm", fp.rms_norm(), normal(2, 3, 6)),
    Case("group_norm", fp.group_norm(2), normal(2, 3, 2, 4)),
    Case("batch_norm", fp.batch_norm(), normal(3, 2, 3), key=True),
    Case("batch_norm-no-key", fp.batch_norm(), normal(6, 3)),
]

RECURRENT: list[Case] = [
    Case("lstm", fp.lstm(2), normal(2, 3, 2)),
    Case("lstm-lengths", fp.lstm(2), both(normal(3, 3, 1), labels(3, classes=4))),
    Case("gru", fp.gru(2), normal(2, 3, 2)),
    Case("last_step", fp.last_step(), both(normal(3, 4, 2), labels(3, classes=5))),
]

SEQUENCES: list[Case] = [
    Case("embedding", fp.embedding(6, 3), labels(2, 9, classes=6)),
    Case("learned_positions", fp.learned_positions(7), normal(2, 5, 3)),
    Case("attention", fp.attention(2, block=4), normal(2, 5, 48)),
    Case(
        "attention-grouped-window",
        fp.attention(4, kv_heads=2, window=3, rotary=100.0, block=2),
        normal(2, 5, 32),
    ),
    Case("attention-speeds", fp.attention(2, rotary=(1.0, 0.3), block=2), normal(2, 3, 24)),
    Case(
        "attention-masked",
        fp.attention(1, causal=False, block=3),
        both(normal(3, 5, 12), seen(3, 5)),
    ),
]

REWRITES = [
    # `float`: the widest there is, so that the tests in float64 may compare closely.
    Case(
        "cast",
        fp.cast(fp.serial(fp.residual(fp.serial(fp.dense(5), fp.tanh())), tied()), float),
        normal(4, 5),
    ),
    Case(
        "remat-keep",
        fp.remat(
            fp.serial(
                fp.repeat(fp.residual(fp.serial(fp.dense(5), fp.tanh())), 2), fp.dropout(0.5)
            ),
            keep="*/dense",
        ),
        normal(4, 5),
        key=True,
    ),
    Case(
        "offload",
        fp.offload(fp.serial(fp.repeat(fp.serial(fp.dense(5), fp.tanh()), 2), fp.dropout(0.5))),
        normal(4, 5),
        key=True,
    ),
    Case(
        "tap",
        fp.tap(
            fp.tap(fp.serial(fp.residual(fp.serial(fp.dense(5), fp.tanh()))), forward=jnp.sum),
            "*/dense",
            forward=jnp.sum,
        ),
        normal(4, 5),
    ),
]

MODELS: list[Case] = [
    Case("mlp", fp.mlp(4, 2), normal(3, 5)),
    Case("cnn", fp.cnn(2, widths=(2,), norm=lambda: fp.group_norm(2)), normal(2, 4, 4, 1)),
    Case("rnn", fp.rnn(2, fp.gru(3)), both(normal(2, 3, 2), labels(2, classes=4))),
    Case("autoencoder", fp.autoencoder((4, 2, 1), code=3, widths=(2,)), normal(2, 4, 2, 1)),
    Case("gated", fp.gated(fp.silu()), normal(3, 8)),
    Case(
        "gpt",
        fp.language_model(fp.gpt(7, features=8, depth=2, heads=1, longest=5, rate=0.1), 7),
        both(labels(2, 5, classes=7), labels(2, 5, classes=7)),
        key=True,
    ),
    Case(
        "llama",
        fp.language_model(fp.llama(7, features=16, depth=2, heads=2, kv_heads=1), 7, tied=False),
        both(labels(2, 5, classes=7), labels(2, 5, classes=7), positive(2, 5)),
    ),
]

COMBINATORS = [
    Case("serial", fp.serial(fp.dense(6), fp.gelu(), fp.dense(3)), normal(4, 5)),
    Case("identity", fp.serial(), normal(4, 5)),
    Case("serial-random", fp.serial(fp.dense(6), fp.dropout(0.5)), normal(4, 5), key=True),
    Case("residual", fp.residual(fp.serial(fp.dense(5), fp.tanh())), normal(4, 5)),
    Case(
        "parallel-sum",
        fp.serial(fp.parallel(fp.dense(3), fp.serial(fp.tanh(), fp.dense(3))), fp.add()),
        normal(4, 5),
    ),
    Case(
        "parallel-concatenate",
        fp.serial(fp.parallel(fp.dense(3), fp.serial()), fp.concatenate()),
        normal(4, 5),
    ),
    Case(
        "parallel-random",
        fp.parallel(fp.dropout(0.5), fp.dropout(0.5)),
        normal(4, 5),
        key=True,
    ),
    Case("repeat", fp.repeat(fp.serial(fp.dense(5), fp.tanh()), 3), normal(4, 5)),
    Case(
        "repeat-random",
        fp.repeat(fp.residual(fp.serial(fp.dense(5), fp.dropout(0.5))), 3),
        normal(4, 5),
        key=True,
    ),
    Case(
        "repeat-nested", fp.repeat(fp.repeat(fp.serial(fp.dense(5), fp.tanh()), 2), 2), normal(4, 5)
    ),
    Case("reversible", fp.reversible(fp.serial(fp.dense(3), fp.tanh()), fp.dense(3)), normal(4, 6)),
    Case(
        "reversible-copies",
        fp.reversible(
            fp.serial(fp.layer_norm(), fp.dense(3)), fp.serial(fp.gelu(), fp.dropout(0.5)), copies=3
        ),
        normal(4, 6),
        key=True,
    ),
    Case(
        "with_lengths",
        fp.serial(fp.with_lengths(fp.dense(3)), fp.last_step()),
        both(normal(3, 3, 2), labels(3, classes=4)),
    ),
    Case("repeat-from_function", fp.repeat(sine(), 3), normal(4, 5)),
    Case("reparam", tied(), normal(4, 5)),
    Case("reparam-by-hand", tied_by_hand(), normal(4, 5)),
    Case("reparam-repeat", fp.repeat(tied(), 3), normal(4, 5)),
    Case("remat", fp.remat(fp.serial(fp.dense(6), fp.gelu(), fp.dense(3))), normal(4, 5)),
    Case(
        "remat-repeat",
        fp.repeat(fp.remat(fp.residual(fp.serial(fp.dense(5), fp.dropout(0.5)))), 3),
        normal(4, 5),
        key=True,
    ),
    Case("autodiff", fp.autodiff(fp.serial(fp.dense(6), fp.gelu())), normal(4, 5)),
    Case("named", fp.named("block", fp.serial(fp.dense(6), fp.gelu())), normal(4, 5)),
]

LOSSES = [
    Case("mean_squared", fp.mean_squared(), both(normal(5, 3), normal(5, 3))),
    Case("mean_squared-integers", fp.mean_squared(), both(normal(5), labels(5, classes=4))),
    Case("mean_absolute", fp.mean_absolute(), both(normal(5, 3), normal(5, 3), positive(5))),
    Case("huber", fp.huber(0.5), both(normal(5, 3), normal(5, 3), positive(5))),
    Case(
        "softmax_cross_entropy",
        fp.softmax_cross_entropy(),
        both(normal(5, 4), labels(5, classes=4)),
    ),
    Case(
        "softmax_cross_entropy-tokens",
        fp.softmax_cross_entropy(0.1),
        both(normal(3, 5, 4), labels(3, 5, classes=4), positive(3)),
    ),
    Case(
        "softmax_cross_entropy-distributions",
        fp.softmax_cross_entropy(),
        both(normal(5, 4), distribution(5, 4), positive(5)),
    ),
    Case(
        "softmax_cross_entropy-smooth",
        fp.softmax_cross_entropy(0.2),
        both(normal(5, 4), distribution(5, 4)),
    ),
    Case(
        "binary_cross_entropy",
        fp.binary_cross_entropy(),
        both(
            normal(5, 3),
            lambda rng: jnp.asarray(rng.uniform(0, 1, (5, 3)), jnp.float32),
            positive(5),
        ),
    ),
    Case(
        "binary_cross_entropy-labels",
        fp.binary_cross_entropy(),
        both(normal(5), labels(5, classes=2)),
    ),
    Case(
        "linear_cross_entropy",
        fp.linear_cross_entropy(7, chunk=3),
        both(normal(5, 4), labels(5, classes=7)),
    ),
    Case(
        "linear_cross_entropy-tokens",
        fp.linear_cross_entropy(6, chunk=3, smoothing=0.1, z_loss=0.01, bias=True),
        both(normal(2, 3, 4), labels(2, 3, classes=6), positive(2, 3)),
    ),
    Case(
        "linear_cross_entropy-rows",
        fp.linear_cross_entropy(6, rows=2, smoothing=0.1, z_loss=0.01, bias=True),
        both(normal(5, 4), labels(5, classes=6), positive(5)),
    ),
    Case(
        "objective",
        fp.objective(
            fp.serial(fp.dense(6), fp.relu(), fp.dense(4)),
            fp.softmax_cross_entropy(),
            accuracy=fp.accuracy,
        ),
        both(normal(5, 3), labels(5, classes=4), positive(5)),
    ),
]

LAYERS += CONVOLUTIONS + NORMALISATIONS + RECURRENT + SEQUENCES
COMBINATORS += REWRITES + MODELS
ALL = LAYERS + COMBINATORS + LOSSES
COMPOSITE = [case for case in ALL if case.layer.children]


def build(case: Case, dtype: Any = jnp.float32, seed: int = 0) -> tuple[Any, Any, Any]:
    """`(params, x, key)` of a case in the given dtype."""
    return _built(case, dtype, seed, jax.config.read("jax_enable_x64"))


@functools.cache
def _built(case: Case, dtype: Any, seed: int, x64: bool) -> tuple[Any, Any, Any]:
    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    draw = np.random.default_rng(seed + 1)
    # No zeros: a bias of zero would hide what depends on it.
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * draw.standard_normal(leaf.shape), dtype),
        _initial(case),
    )
    x = jax.tree.map(cast, case.x(np.random.default_rng(seed)))
    return params, x, jax.random.key(seed + 2) if case.key else None


@functools.cache
def _initial(case: Case) -> Any:
    """What `init` gives, in NumPy and float32: one program for all dtypes and seeds."""
    with jax.enable_x64(False):
        x = case.x(np.random.default_rng(0))
        return jax.device_get(quickly(case.layer.init)(jax.random.key(0), x))


def quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, jitted without much optimisation: what runs once takes its time compiling."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


# For `.compile(...)`: tests/conftest.py lets all else compile quickly.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
