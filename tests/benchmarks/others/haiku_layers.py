"""Layers of Haiku (`pip install dm-haiku`), each transformed and applied."""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import numpy as np

from tests.benchmarks.others.call import Call, Calls, Table, excuse, normal
from tests.benchmarks.others.names import classes

X, SEQUENCE, KEY = normal(3, 4), normal(5, 2, 4), jax.random.PRNGKey(0)


def layer(build: Callable[[], Any], *inputs: Any, **options: Any) -> Call:
    """Params as an argument; state stays as it was initialised."""
    made = hk.transform_with_state(lambda *inputs: build()(*inputs, **options))
    params, state = jax.jit(made.init)(KEY, *inputs)  # one by one it is slow

    def apply(_: Any, params: Any, *inputs: Any) -> Any:
        return made.apply(params, state, KEY, *inputs)[0]

    return Call((params, *inputs), {}, apply)


def core(build: Callable[[], Any], sequence: Any = SEQUENCE, **options: Any) -> Call:
    """A recurrent core, unrolled by a scan."""

    def unrolled() -> Any:
        made = build()
        return lambda xs: hk.dynamic_unroll(made, xs, made.initial_state(xs.shape[1]))[0]

    return layer(unrolled, sequence, **options)


def calls() -> Calls:
    """One row for each layer."""
    inputs = {1: normal(2, 6, 4), 2: normal(2, 6, 6, 4), 3: normal(1, 4, 4, 4, 4)}
    made: Calls = {}
    for n, x in inputs.items():
        for kind in (f"Conv{n}D", f"Conv{n}DTranspose"):
            made[kind] = [layer(lambda kind=kind: getattr(hk, kind)(3, 3), x)]
        made[f"DepthwiseConv{n}D"] = [layer(lambda n=n: getattr(hk, f"DepthwiseConv{n}D")(2, 3), x)]
        made[f"Conv{n}DLSTM"] = [
            core(
                lambda n=n, x=x: getattr(hk, f"Conv{n}DLSTM")(x.shape[1:-1], 2, 3),
                normal(3, *x.shape),
            )
        ]
    norm = {"create_scale": True, "create_offset": True}
    sequence = normal(2, 5, 4)
    return made | {
        "AvgPool": [layer(lambda: hk.AvgPool((2, 2), (2, 2), "SAME"), inputs[2])],
        "BatchApply": [layer(lambda: hk.BatchApply(hk.Linear(3)), sequence)],
        "BatchNorm": [layer(lambda: hk.BatchNorm(decay_rate=0.9, **norm), X, is_training=True)],
        "Bias": [layer(hk.Bias, X)],
        "ConvND": [layer(lambda: hk.ConvND(2, 3, 3), inputs[2])],
        "ConvNDTranspose": [layer(lambda: hk.ConvNDTranspose(2, 3, 3), inputs[2])],
        "DeepRNN": [core(lambda: hk.DeepRNN([hk.GRU(4), jax.nn.relu, hk.VanillaRNN(3)]))],
        "Deferred": [layer(lambda: hk.Deferred(lambda: hk.Linear(3)), X)],
        "Embed": [layer(lambda: hk.Embed(5, 3), np.array([1, 2, 2]))],
        "ExponentialMovingAverage": [layer(lambda: hk.ExponentialMovingAverage(0.9), X)],
        "Flatten": [layer(hk.Flatten, inputs[1])],
        "GRU": [core(lambda: hk.GRU(4))],
        "GroupNorm": [layer(lambda: hk.GroupNorm(2), inputs[2])],
        "IdentityCore": [core(hk.IdentityCore)],
        "InstanceNorm": [layer(lambda: hk.InstanceNorm(**norm), inputs[2])],
        "LSTM": [core(lambda: hk.LSTM(4))],
        "LayerNorm": [layer(lambda: hk.LayerNorm(-1, **norm), X)],
        "Linear": [layer(lambda: hk.Linear(3), X)],
        "MaxPool": [layer(lambda: hk.MaxPool((2, 2), (2, 2), "SAME"), inputs[2])],
        "MultiHeadAttention": [
            layer(
                lambda: hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling()),
                *(sequence,) * 3,
            )
        ],
        "RMSNorm": [layer(lambda: hk.RMSNorm(-1), X)],
        "ResetCore": [layer(lambda: _reset, X)],
        "Reshape": [layer(lambda: hk.Reshape((2, 2)), X)],
        "SeparableDepthwiseConv2D": [
            layer(lambda: hk.SeparableDepthwiseConv2D(2, (3, 3)), inputs[2])
        ],
        "Sequential": [layer(lambda: hk.Sequential([hk.Linear(5), jax.nn.relu, hk.Linear(2)]), X)],
        "SpectralNorm": [layer(lambda: hk.SpectralNorm(), normal(4, 3))],
        "VanillaRNN": [core(lambda: hk.VanillaRNN(4))],
        "nets.MLP": [layer(lambda: hk.nets.MLP([5, 3]), X)],
        "nets.ResNet18": [
            layer(
                lambda: hk.nets.ResNet(
                    [1, 1, 1, 1], 3, bottleneck=False, channels_per_group=(8, 8, 8, 8)
                ),
                normal(1, 32, 32, 3),
                is_training=True,
            )
        ],
    }


def _reset(x: Any) -> Any:
    wrapped = hk.ResetCore(hk.GRU(4))
    return wrapped((x, np.array([True, False, True])), wrapped.initial_state(3))[0]


EXCUSED = excuse(
    only_a_base_class="Module RNNCore",
    works_on_params_before_they_are_used="EMAParamsTree SNParamsTree",
)


def tables() -> list[Table]:
    """The one table of this file."""
    return [Table("haiku", hk, calls(), classes(hk, hk.Module), EXCUSED)]
