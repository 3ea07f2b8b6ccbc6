"""Layers of thinc, and inputs for them."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import thinc.layers as L  # noqa: N812  # as its own documentation has it
from thinc.api import NumpyOps, Ragged
from thinc.layers.array_getitem import floats_getitem
from thinc.model import Model

OPS = NumpyOps()


class Case(NamedTuple):
    """A layer, made anew, and an input for it.

    Attributes:
      build: makes the layer.
      x: its input.
      narrow: whether its kernels read float32 whatever they are given.
      train: whether it is called as in training.
    """

    build: Callable[[], Model]
    x: Any
    narrow: bool = False
    train: bool = True


_rng = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return _rng.standard_normal(shape).astype("float32")


def distinct(n: int) -> Any:
    return np.arange(1, n + 1, dtype="uint64")


X, SQUARE, WIDE = normal(5, 4), normal(4, 4), 3 * normal(5, 4)
LENGTHS = np.array([2, 3], dtype="int32")
RAGGED, LIST = Ragged(X, LENGTHS), [normal(2, 4), normal(3, 4)]
NESTED = [[normal(1, 4), normal(1, 4)], [normal(1, 4)]]
PADDED, IDS = OPS.list2padded(LIST), np.array([[1, 2], [3, 1], [1, 2]], dtype="uint64")
ONE_COLUMN = np.array([1, 3, 1, 2], dtype="uint64")
SPARSE = (distinct(6), normal(6), np.array([2, 4], dtype="int32"))


def linear() -> Model:
    return L.Linear(4, 4)


ACTIVATIONS = [
    *("Relu", "ReluK", "ClippedLinear", "HardSigmoid", "HardTanh", "Swish", "HardSwish"),
    *("HardSwishMobilenet", "Dish", "Gelu", "Mish"),
]
CASES: dict[str, list[Case]] = {
    **{
        name: [
            Case(lambda name=name: getattr(L, name)(4, 4), X),
            Case(lambda name=name: getattr(L, name)(4, 4), WIDE),
            Case(lambda name=name: getattr(L, name)(3, 4), X),
        ]
        for name in ["Sigmoid", *ACTIVATIONS]
    },
    **{
        f"{name} (normalize, dropout)": [
            Case(lambda name=name: getattr(L, name)(4, 4, normalize=True, dropout=0.2), X)
        ]
        for name in ACTIVATIONS
    },
    "ClippedLinear (slope 2, offset 0.3)": [
        Case(lambda: L.ClippedLinear(4, 4, slope=2.0, offset=0.3, min_val=-1.0, max_val=2.0), X),
        Case(lambda: L.ClippedLinear(4, 4, slope=-1.0), X),
    ],
    "Linear": [Case(lambda: L.Linear(3, 4), X)],
    "Maxout": [
        Case(lambda: L.Maxout(3, 4, nP=2), X),
        Case(lambda: L.Maxout(4, 4, nP=3, normalize=True, dropout=0.2), X),
    ],
    "LayerNorm": [
        Case(L.LayerNorm, X),
        Case(L.LayerNorm, WIDE),
        Case(lambda: L.LayerNorm(1), normal(3, 1)),
    ],
    "Softmax": [Case(lambda: L.Softmax(3, 4), X)],
    "Softmax_v2": [Case(lambda: L.Softmax_v2(3, 4, temperature=2.0), X)],
    "MultiSoftmax": [Case(lambda: L.MultiSoftmax((2, 3), 4), X)],
    "softmax_activation": [Case(L.softmax_activation, X)],
    "sigmoid_activation": [Case(L.sigmoid_activation, X)],
    "Logistic": [Case(L.Logistic, X)],
    "Dropout": [Case(lambda: L.Dropout(0.5), v) for v in (X, RAGGED, PADDED, LIST)],
    "CauchySimilarity": [Case(L.CauchySimilarity, (X, normal(5, 4)))],
    "siamese": [Case(lambda: L.siamese(L.Linear(3, 4), L.CauchySimilarity(3)), (X, normal(5, 4)))],
    "ParametricAttention": [Case(L.ParametricAttention, RAGGED)],
    "ParametricAttention_v2": [
        Case(L.ParametricAttention_v2, RAGGED),
        Case(lambda: L.ParametricAttention_v2(key_transform=L.Relu(4, 4)), RAGGED),
    ],
    "SparseLinear": [Case(lambda: L.SparseLinear(3, length=16), SPARSE, narrow=True)],
    "SparseLinear_v2": [Case(lambda: L.SparseLinear_v2(3, length=16), SPARSE, narrow=True)],
    "Embed": [
        Case(lambda: L.Embed(3, 8, column=0), IDS),
        Case(lambda: L.Embed(3, 8, column=0, dropout=0.4), IDS),
    ],
    "HashEmbed": [
        Case(lambda: L.HashEmbed(3, 8, column=0), IDS),
        Case(lambda: L.HashEmbed(3, 8, column=0, dropout=0.4), IDS),
    ],
    "uniqued": [Case(lambda: L.uniqued(L.Embed(3, 8, column=0), column=0), IDS)],
    "remap_ids": [
        Case(lambda: L.chain(L.remap_ids({1: 2, 3: 4}, default=0), L.Embed(3, 8)), ONE_COLUMN)
    ],
    "remap_ids_v2": [
        Case(lambda: L.chain(L.remap_ids_v2({1: 2, 3: 4}, default=0, column=0), L.Embed(3, 8)), IDS)
    ],
    "premap_ids": [
        Case(
            lambda: L.chain(L.premap_ids({1: 2, 3: 4}, default=0), L.Embed(3, 8)),
            ONE_COLUMN.astype("int64"),
        )
    ],
    "LSTM": [
        Case(lambda: L.LSTM(4, 4), PADDED, narrow=True),
        Case(lambda: L.LSTM(4, 4, bi=True, depth=2), PADDED, narrow=True),
        Case(lambda: L.LSTM(4, 4, dropout=0.2), PADDED, narrow=True),
        Case(lambda: L.with_padded(L.LSTM(4, 4)), LIST, narrow=True),
    ],
    "expand_window": [
        Case(lambda: L.expand_window(1), X),
        Case(lambda: L.expand_window(2), X),
        Case(lambda: L.expand_window(1), RAGGED),
    ],
    **{
        name: [Case(getattr(L, name), RAGGED)]
        for name in ["reduce_first", "reduce_last", "reduce_max", "reduce_mean", "reduce_sum"]
    },
    "add": [
        Case(lambda: L.add(L.Linear(3, 4), L.Relu(3, 4)), X),
        Case(lambda: L.add(linear(), linear(), linear()), X),
    ],
    "concatenate": [
        Case(lambda: L.concatenate(linear(), L.Relu(3, 4)), X),
        *(
            Case(lambda: L.concatenate(L.with_array2d(linear()), L.with_array2d(linear())), v)
            for v in (RAGGED, LIST)
        ),
    ],
    "chain": [Case(lambda: L.chain(L.Relu(3, 4), L.Linear(2, 3)), X)],
    "clone": [Case(lambda: L.clone(linear(), 3), X)],
    "residual": [
        Case(lambda: L.residual(linear()), X),
        Case(lambda: L.residual(L.with_array(linear())), LIST),
        Case(lambda: L.residual(L.with_array(linear())), RAGGED),
        Case(lambda: L.residual(L.with_array2d(linear())), PADDED),
    ],
    "tuplify": [Case(lambda: L.tuplify(linear(), L.Relu(3, 4)), X)],
    "map_list": [Case(lambda: L.map_list(linear()), LIST)],
    "bidirectional": [Case(lambda: L.bidirectional(L.LSTM(4, 4)), PADDED, narrow=True)],
    "resizable": [Case(lambda: L.resizable(linear(), lambda m, n: m), X)],
    "noop": [Case(L.noop, X)],
    "array_getitem": [
        Case(lambda: floats_getitem((slice(0, 3), slice(1, 3))), X),
        Case(lambda: floats_getitem([0, 0, 2]), X),
    ],
    "list2array": [Case(L.list2array, LIST)],
    "list2padded": [Case(L.list2padded, LIST)],
    "list2ragged": [Case(L.list2ragged, LIST)],
    "padded2list": [Case(L.padded2list, PADDED)],
    "ragged2list": [Case(L.ragged2list, RAGGED)],
    "with_array": [Case(lambda: L.with_array(L.Relu(4, 4)), v) for v in (X, LIST, RAGGED)]
    + [Case(lambda: L.with_array(L.sigmoid_activation()), PADDED)]
    + [Case(lambda: L.with_array(L.expand_window(1), pad=1), v) for v in (LIST, RAGGED)],
    "with_array2d": [
        Case(lambda: L.with_array2d(L.Relu(4, 4)), v) for v in (X, LIST, RAGGED, PADDED)
    ],
    "with_cpu": [Case(lambda: L.with_cpu(linear(), OPS), X)],
    "with_debug": [Case(lambda: L.with_debug(linear()), X)],
    "with_flatten": [Case(lambda: L.with_flatten(L.list2array()), NESTED)],
    "with_flatten_v2": [Case(lambda: L.with_flatten_v2(L.map_list(linear())), NESTED)],
    "with_getitem": [Case(lambda: L.with_getitem(1, linear()), (X, normal(5, 4)))],
    "with_list": [
        Case(lambda: L.with_list(L.map_list(linear())), v) for v in (LIST, RAGGED, PADDED)
    ],
    "with_padded": [
        Case(lambda: L.with_padded(L.with_array2d(linear())), v) for v in (LIST, RAGGED, PADDED)
    ],
    "with_ragged": [
        Case(lambda: L.with_ragged(L.ParametricAttention()), v) for v in (LIST, RAGGED, PADDED)
    ],
    "with_reshape": [Case(lambda: L.with_reshape(L.Relu(4, 4)), normal(2, 3, 4))],
}

EXCUSED = {
    "wraps another framework, which is not installed": "PyTorchLSTM PyTorchRNNWrapper "
    "PyTorchWrapper PyTorchWrapper_v2 PyTorchWrapper_v3 TensorFlowWrapper TorchScriptWrapper_v1 "
    "MXNetWrapper keras_subclass pytorch_to_torchscript_wrapper",
    "needs a GPU's or another system's profiler": "with_nvtx_range with_signpost_interval",
    "takes text and gives integers": "strings2arrays",
}
