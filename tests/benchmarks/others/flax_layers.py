"""Layers of `flax.linen` and `flax.nnx`, each initialised and applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from tests.benchmarks.others.call import POINTS, Call, Calls, Table, at, every, excuse, normal
from tests.benchmarks.others.names import classes, functions

X, IMAGE, TOKENS = normal(3, 4), normal(2, 6, 6, 3), np.array([[1, 2, 0], [3, 3, 1]])
SEQUENCE = normal(2, 5, 4)
CELLS = "GRUCell LSTMCell MGUCell OptimizedLSTMCell SimpleCell"


def linen(build: Callable[[], nn.Module], *inputs: Any, **options: Any) -> Call:
    """Params and state as arguments; a key for what draws random numbers."""

    def apply(_: Any, variables: Any, *inputs: Any) -> Any:
        rngs = {"dropout": jax.random.key(1)}
        return build().apply(variables, *inputs, mutable=True, rngs=rngs, **options)[0]

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return Call((build().init(keys, *inputs, **options), *inputs), {}, apply)


def cell(name: str) -> list[Call]:
    """One step of a recurrent cell, and a scan of it."""

    def build() -> Any:
        return getattr(nn, name)(features=4)

    carry = build().initialize_carry(jax.random.key(0), X.shape)
    return [linen(build, carry, X), linen(lambda: nn.RNN(build()), SEQUENCE)]


def linen_calls() -> Calls:
    """One row for each layer of `flax.linen`."""
    image = IMAGE[0:1], 2
    conv = normal(1, 2, 4, 4, 3)
    lstm = lambda: nn.ConvLSTMCell(features=2, kernel_size=(3, 3))
    carry = lstm().initialize_carry(jax.random.key(0), conv[:, 0].shape)
    return {
        **{name: cell(name) for name in CELLS.split()},
        "BatchNorm": [linen(lambda: nn.BatchNorm(use_running_average=False), X)],
        "Bidirectional": [
            linen(lambda: nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4))), SEQUENCE)
        ],
        "Conv": [linen(lambda: nn.Conv(2, (3, 3)), IMAGE)],
        "ConvLSTMCell": [linen(lstm, carry, conv[:, 0])],
        "ConvLocal": [linen(lambda: nn.ConvLocal(2, (3, 3)), image[0])],
        "ConvTranspose": [linen(lambda: nn.ConvTranspose(2, (3, 3)), IMAGE)],
        "Dense": [linen(lambda: nn.Dense(3), X)],
        "DenseGeneral": [linen(lambda: nn.DenseGeneral((2, 2)), X)],
        "Dropout": [linen(lambda: nn.Dropout(0.5, deterministic=False), X)],
        "Einsum": [linen(lambda: nn.Einsum((4, 3), "ij,jk->ik"), X)],
        "Embed": [linen(lambda: nn.Embed(5, 3), TOKENS)],
        "Fp8DirectDotGeneralOp": [
            linen(lambda: nn.Dense(16, dot_general_cls=nn.Fp8DirectDotGeneralOp), normal(16, 32))
        ],
        "Fp8DotGeneral": [
            linen(lambda: nn.Dense(16, dot_general_cls=nn.Fp8DotGeneral), normal(16, 32))
        ],
        "Fp8DotGeneralOp": [
            linen(lambda: nn.Dense(16, dot_general_cls=nn.Fp8DotGeneralOp), normal(16, 32))
        ],
        "Fp8Einsum": [
            linen(lambda: nn.Einsum((32, 16), "ij,jk->ik", use_bias=False), normal(16, 32))
        ],
        "GroupNorm": [linen(lambda: nn.GroupNorm(2), normal(3, 5, 4))],
        "InstanceNorm": [linen(nn.InstanceNorm, normal(3, 5, 4))],
        "LayerNorm": [linen(nn.LayerNorm, X)],
        "MultiHeadAttention": [linen(lambda: nn.MultiHeadAttention(num_heads=2), SEQUENCE)],
        "MultiHeadDotProductAttention": [
            linen(lambda: nn.MultiHeadDotProductAttention(num_heads=2), SEQUENCE, SEQUENCE)
        ],
        "NANOOFp8DotGeneralOp": [
            linen(lambda: nn.Dense(16, dot_general_cls=nn.NANOOFp8DotGeneralOp), normal(16, 32))
        ],
        "PReLU": [linen(nn.PReLU, POINTS)],
        "RMSNorm": [linen(nn.RMSNorm, X)],
        "RNN": [linen(lambda: nn.RNN(nn.GRUCell(4)), SEQUENCE)],
        "SelfAttention": [linen(lambda: nn.SelfAttention(num_heads=2), SEQUENCE)],
        "Sequential": [linen(lambda: nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(2)]), X)],
        "SpectralNorm": [linen(lambda: nn.SpectralNorm(nn.Dense(3)), X, update_stats=True)],
        "WeightNorm": [linen(lambda: nn.WeightNorm(nn.Dense(3)), X)],
        **every(
            "celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid "
            "log_softmax logsumexp relu relu6 selu sigmoid silu soft_sign softmax softplus "
            "standardize swish tanh",
            at(POINTS),
        ),
        "glu": [at(X)],
        "dot_product_attention": [at(normal(2, 5, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4))],
        "dot_product_attention_weights": [at(normal(2, 5, 2, 4), normal(2, 5, 2, 4))],
        "avg_pool": [at(IMAGE, window_shape=(2, 2))],
        "max_pool": [at(IMAGE, window_shape=(2, 2))],
    }


def layer(build: Callable[[nnx.Rngs], Any], *inputs: Any) -> Call:
    """The state of an nnx module as an argument."""
    graph, state = nnx.split(build(nnx.Rngs(0)))
    return Call((state, *inputs), {}, lambda _, state, *rest: nnx.merge(graph, state)(*rest))


def nnx_cell(name: str) -> list[Call]:
    """One step of a recurrent cell, and a scan of it."""

    def build(rngs: nnx.Rngs) -> Any:
        return getattr(nnx, name)(4, 4, rngs=rngs)

    carry = build(nnx.Rngs(0)).initialize_carry(X.shape, nnx.Rngs(0))
    return [layer(build, carry, X), layer(lambda rngs: nnx.RNN(build(rngs)), SEQUENCE)]


def nnx_calls() -> Calls:
    """One row for each layer of `flax.nnx`."""
    return {
        **{name: nnx_cell(name) for name in CELLS.split() if hasattr(nnx, name)},
        "BatchNorm": [layer(lambda r: nnx.BatchNorm(4, rngs=r), X)],
        "Bidirectional": [
            layer(
                lambda r: nnx.Bidirectional(
                    nnx.RNN(nnx.GRUCell(4, 4, rngs=r)), nnx.RNN(nnx.GRUCell(4, 4, rngs=r)), rngs=r
                ),
                SEQUENCE,
            )
        ],
        "Conv": [layer(lambda r: nnx.Conv(3, 2, (3, 3), rngs=r), IMAGE)],
        "ConvTranspose": [layer(lambda r: nnx.ConvTranspose(3, 2, (3, 3), rngs=r), IMAGE)],
        "Dropout": [layer(lambda r: nnx.Dropout(0.5, rngs=r), X)],
        "Einsum": [layer(lambda r: nnx.Einsum("ij,jk->ik", (4, 3), rngs=r), X)],
        "Embed": [layer(lambda r: nnx.Embed(5, 3, rngs=r), TOKENS)],
        "GroupNorm": [layer(lambda r: nnx.GroupNorm(4, 2, rngs=r), normal(3, 5, 4))],
        "InstanceNorm": [layer(lambda r: nnx.InstanceNorm(4, rngs=r), normal(3, 5, 4))],
        "LayerNorm": [layer(lambda r: nnx.LayerNorm(4, rngs=r), X)],
        "Linear": [layer(lambda r: nnx.Linear(4, 3, rngs=r), X)],
        "LinearGeneral": [layer(lambda r: nnx.LinearGeneral(4, (2, 2), rngs=r), X)],
        "LoRA": [layer(lambda r: nnx.LoRA(4, 2, 3, rngs=r), X)],
        "LoRALinear": [layer(lambda r: nnx.LoRALinear(4, 3, lora_rank=2, rngs=r), X)],
        "MultiHeadAttention": [
            layer(lambda r: nnx.MultiHeadAttention(2, 4, decode=False, rngs=r), SEQUENCE)
        ],
        "PReLU": [layer(lambda r: nnx.PReLU(), POINTS)],
        "RMSNorm": [layer(lambda r: nnx.RMSNorm(4, rngs=r), X)],
        "RNN": [layer(lambda r: nnx.RNN(nnx.GRUCell(4, 4, rngs=r)), SEQUENCE)],
        "Sequential": [
            layer(
                lambda r: nnx.Sequential(
                    nnx.Linear(4, 5, rngs=r), nnx.relu, nnx.Linear(5, 2, rngs=r)
                ),
                X,
            )
        ],
        "SpectralNorm": [layer(lambda r: nnx.SpectralNorm(nnx.Linear(4, 3, rngs=r), rngs=r), X)],
        "WeightNorm": [layer(lambda r: nnx.WeightNorm(nnx.Linear(4, 3, rngs=r), rngs=r), X)],
        **every(
            "celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid "
            "log_softmax logsumexp relu relu6 selu sigmoid silu soft_sign softmax softplus "
            "standardize swish tanh",
            at(POINTS),
        ),
        "glu": [at(X)],
        "identity": [at(X)],
        "dot_product_attention": [at(normal(2, 5, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4))],
        **every("avg_pool max_pool min_pool", at(IMAGE, window_shape=(2, 2))),
    }


LINEN_EXCUSED = excuse(only_a_base_class="RNNCellBase Module")
NNX_EXCUSED = excuse(
    only_a_base_class_or_container="RNNCellBase Module Dict List",
    keeps_state_and_gives_no_output="EMA Metric MultiMetric ModelAndOptimizer Optimizer TrainState",
)
# Of the functions only those that compute with arrays: the rest are transforms and bookkeeping.
COMPUTES = set(dir(jax.nn)) | {"avg_pool", "max_pool", "min_pool", "dot_product_attention_weights"}


def tables() -> list[Table]:
    """One table for each of the two interfaces."""
    found = []
    for name, module, base, calls, excused in (
        ("flax.linen", nn, nn.Module, linen_calls(), LINEN_EXCUSED),
        ("flax.nnx", nnx, nnx.Module, nnx_calls(), NNX_EXCUSED),
    ):
        public = classes(module, base) + [n for n in functions(module) if n in COMPUTES]
        found.append(Table(name, module, calls, public, {**excused, "one_hot": "takes integers"}))
    return found
