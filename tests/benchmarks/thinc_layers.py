"""Judge the hand-written backward passes of thinc, layer by layer.

A thinc layer gives `(Y, backprop)`; here it becomes a function with a custom rule, whose forward
and backward pass are both callbacks. Nothing can be differentiated in a callback, so the judgement
is by central differences, in float64 where the layer computes in it. Run with

    python -m venv thinc && thinc/bin/pip install -e . thinc
    thinc/bin/python -m tests.benchmarks.thinc_layers

(thinc 9.1.1, jax 0.10.2 and numpy 2.4 live together.)
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import thinc.layers as layers
from thinc.api import NumpyOps, Padded, Ragged
from thinc.layers.array_getitem import floats_getitem
from thinc.model import Model

from funprop.verify import verify
from tests.benchmarks.harness import header

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


# ------------------------------------------------------------------------------------ the adapter


def taken(value: Any) -> list[np.ndarray]:
    """The float arrays in what thinc hands around."""
    if isinstance(value, (Ragged, Padded)):
        value = value.data
    if isinstance(value, (list, tuple)):
        return [array for part in value for array in taken(part)]
    floating = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    return [value] if floating else []


def filled(like: Any, arrays: list[np.ndarray]) -> Any:
    """The same structure around other float arrays, which are used up."""
    if isinstance(like, Ragged):
        return Ragged(arrays.pop(0), like.lengths)
    if isinstance(like, Padded):
        return Padded(arrays.pop(0), like.size_at_t, like.lengths, like.indices)
    if isinstance(like, (list, tuple)):
        return type(like)(filled(part, arrays) for part in like)
    return arrays.pop(0) if taken(like) else like


class Adapted:
    """A thinc layer as a function of its params and the float arrays in its input."""

    def __init__(self, case: Case):
        self.case = case
        self.model = case.build()
        self.model.initialize(X=case.x)
        places = [
            (n, node, p) for n, node in enumerate(self.model.walk()) for p in node.param_names
        ]
        self.places = {
            f"{node.name}[{n}].{p}": (node, p) for n, node, p in places if node.has_param(p)
        }
        rng = np.random.default_rng(0)
        for node, name in self.places.values():  # many start at zero, where little can be seen
            value = node.get_param(name)
            node.set_param(name, (value + 0.3 * rng.standard_normal(value.shape)).astype("float32"))

    @property
    def args(self) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Where to judge it."""
        params = {path: node.get_param(name).copy() for path, (node, name) in self.places.items()}
        return params, taken(self.case.x)

    def run(self, params: Any, x: Any) -> tuple[Any, Any]:
        """thinc's own call, at these params; random numbers are the same in every call."""
        for path, (node, name) in self.places.items():
            node.set_param(name, np.array(params[path]))
            node.set_grad(name, np.zeros_like(params[path]))
        np.random.seed(0)
        return self.model(filled(self.case.x, [np.array(v) for v in x]), self.case.train)

    def outputs(self, params: Any, x: Any) -> list[np.ndarray]:
        return taken(self.run(params, x)[0])

    def gradients(self, params: Any, x: Any, dy: list[Any]) -> tuple[Any, Any]:
        y, backprop = self.run(params, x)
        dx = taken(
            backprop(filled(y, [np.array(d, v.dtype) for d, v in zip(dy, taken(y), strict=True)]))
        )
        dx = dx if x else []  # integers have no gradient, whatever thinc gives
        if [d.shape for d in dx] != [v.shape for v in x]:
            got, want = ([tuple(v.shape) for v in values] for values in (dx, x))
            raise ValueError(f"backprop gives arrays of shapes {got} for inputs of shapes {want}")
        grads = {path: node.get_grad(name) for path, (node, name) in self.places.items()}
        return jax.tree.map(lambda g, p: np.asarray(g, p.dtype), (grads, dx), (params, list(x)))

    def function(self) -> Callable[..., Any]:
        """`(params, x) -> outputs`, thinc's backward pass its rule."""

        def specs(params: Any, x: Any) -> Any:
            known = self.args
            leaf = jax.tree.leaves((params, x))[0].dtype
            values = jax.tree.map(lambda v: v.astype(leaf), known)
            return [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in self.outputs(*values)]

        def narrowed(value: Any) -> Any:
            if self.case.narrow and value[0].dtype != np.float32:
                raise TypeError("this layer computes in float32 only")
            return value

        @jax.custom_vjp
        def layer(params: Any, x: Any) -> Any:
            narrowed(jax.tree.leaves((params, x)))
            return jax.pure_callback(self.outputs, specs(params, x), params, x)

        def forward(params: Any, x: Any) -> Any:
            return layer(params, x), (params, x)

        def backward(residuals: Any, dy: Any) -> Any:
            params, x = residuals
            like = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (params, x))
            return jax.pure_callback(self.gradients, like, params, x, dy)

        layer.defvjp(forward, backward)
        return layer


# -------------------------------------------------------------------------------------- the table

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
L = layers


def linear() -> Model:
    return L.Linear(4, 4)


ACTIVATIONS = "Relu ReluK ClippedLinear HardSigmoid HardTanh Swish HardSwish HardSwishMobilenet Dish Gelu Mish"
CASES: dict[str, list[Case]] = {
    **{
        name: [
            Case(lambda name=name: getattr(L, name)(4, 4), X),
            Case(lambda name=name: getattr(L, name)(4, 4), WIDE),
            Case(lambda name=name: getattr(L, name)(3, 4), X),
        ]
        for name in ["Sigmoid", *ACTIVATIONS.split()]
    },
    **{
        f"{name} (normalize, dropout)": [
            Case(lambda name=name: getattr(L, name)(4, 4, normalize=True, dropout=0.2), X)
        ]
        for name in ACTIVATIONS.split()
    },
    "ClippedLinear (slope 2, offset 0.3)": [
        Case(lambda: L.ClippedLinear(4, 4, slope=2.0, offset=0.3, min_val=-1.0, max_val=2.0), X),
        Case(lambda: L.ClippedLinear(4, 4, slope=-1.0), X),
    ],
    "Linear": [Case(lambda: L.Linear(3, 4), X)],
    "Maxout": [Case(lambda: L.Maxout(3, 4, nP=2), X),
               Case(lambda: L.Maxout(4, 4, nP=3, normalize=True, dropout=0.2), X)],
    "LayerNorm": [Case(L.LayerNorm, X), Case(L.LayerNorm, WIDE), Case(lambda: L.LayerNorm(1), normal(3, 1))],
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
    "ParametricAttention_v2": [Case(L.ParametricAttention_v2, RAGGED),
                               Case(lambda: L.ParametricAttention_v2(key_transform=L.Relu(4, 4)), RAGGED)],
    "SparseLinear": [Case(lambda: L.SparseLinear(3, length=16), SPARSE, narrow=True)],
    "SparseLinear_v2": [Case(lambda: L.SparseLinear_v2(3, length=16), SPARSE, narrow=True)],
    "Embed": [Case(lambda: L.Embed(3, 8, column=0), IDS), Case(lambda: L.Embed(3, 8, column=0, dropout=0.4), IDS)],
    "HashEmbed": [Case(lambda: L.HashEmbed(3, 8, column=0), IDS),
                  Case(lambda: L.HashEmbed(3, 8, column=0, dropout=0.4), IDS)],
    "uniqued": [Case(lambda: L.uniqued(L.Embed(3, 8, column=0), column=0), IDS)],
    "remap_ids": [Case(lambda: L.chain(L.remap_ids({1: 2, 3: 4}, default=0), L.Embed(3, 8)), ONE_COLUMN)],
    "remap_ids_v2": [Case(lambda: L.chain(L.remap_ids_v2({1: 2, 3: 4}, default=0, column=0), L.Embed(3, 8)), IDS)],
    "premap_ids": [Case(lambda: L.chain(L.premap_ids({1: 2, 3: 4}, default=0), L.Embed(3, 8)), ONE_COLUMN.astype("int64"))],
    "LSTM": [Case(lambda: L.LSTM(4, 4), PADDED, narrow=True),
             Case(lambda: L.LSTM(4, 4, bi=True, depth=2), PADDED, narrow=True),
             Case(lambda: L.LSTM(4, 4, dropout=0.2), PADDED, narrow=True),
             Case(lambda: L.with_padded(L.LSTM(4, 4)), LIST, narrow=True)],
    "expand_window": [Case(lambda: L.expand_window(1), X), Case(lambda: L.expand_window(2), X),
                      Case(lambda: L.expand_window(1), RAGGED)],
    **{name: [Case(getattr(L, name), RAGGED)]
       for name in "reduce_first reduce_last reduce_max reduce_mean reduce_sum".split()},
    "add": [Case(lambda: L.add(L.Linear(3, 4), L.Relu(3, 4)), X), Case(lambda: L.add(linear(), linear(), linear()), X)],
    "concatenate": [Case(lambda: L.concatenate(linear(), L.Relu(3, 4)), X),
                    *(Case(lambda: L.concatenate(L.with_array2d(linear()), L.with_array2d(linear())), v)
                      for v in (RAGGED, LIST))],
    "chain": [Case(lambda: L.chain(L.Relu(3, 4), L.Linear(2, 3)), X)],
    "clone": [Case(lambda: L.clone(linear(), 3), X)],
    "residual": [Case(lambda: L.residual(linear()), X), Case(lambda: L.residual(L.with_array(linear())), LIST),
                 Case(lambda: L.residual(L.with_array(linear())), RAGGED),
                 Case(lambda: L.residual(L.with_array2d(linear())), PADDED)],
    "tuplify": [Case(lambda: L.tuplify(linear(), L.Relu(3, 4)), X)],
    "map_list": [Case(lambda: L.map_list(linear()), LIST)],
    "bidirectional": [Case(lambda: L.bidirectional(L.LSTM(4, 4)), PADDED, narrow=True)],
    "resizable": [Case(lambda: L.resizable(linear(), lambda m, n: m), X)],
    "noop": [Case(L.noop, X)],
    "array_getitem": [Case(lambda: floats_getitem((slice(0, 3), slice(1, 3))), X),
                      Case(lambda: floats_getitem([0, 0, 2]), X)],
    "list2array": [Case(L.list2array, LIST)],
    "list2padded": [Case(L.list2padded, LIST)],
    "list2ragged": [Case(L.list2ragged, LIST)],
    "padded2list": [Case(L.padded2list, PADDED)],
    "ragged2list": [Case(L.ragged2list, RAGGED)],
    "with_array": [Case(lambda: L.with_array(L.Relu(4, 4)), v) for v in (X, LIST, RAGGED)]
    + [Case(lambda: L.with_array(L.sigmoid_activation()), PADDED)]
    + [Case(lambda: L.with_array(L.expand_window(1), pad=1), v) for v in (LIST, RAGGED)],
    "with_array2d": [Case(lambda: L.with_array2d(L.Relu(4, 4)), v) for v in (X, LIST, RAGGED, PADDED)],
    "with_cpu": [Case(lambda: L.with_cpu(linear(), OPS), X)],
    "with_debug": [Case(lambda: L.with_debug(linear()), X)],
    "with_flatten": [Case(lambda: L.with_flatten(L.list2array()), NESTED)],
    "with_flatten_v2": [Case(lambda: L.with_flatten_v2(L.map_list(linear())), NESTED)],
    "with_getitem": [Case(lambda: L.with_getitem(1, linear()), (X, normal(5, 4)))],
    "with_list": [Case(lambda: L.with_list(L.map_list(linear())), v) for v in (LIST, RAGGED, PADDED)],
    "with_padded": [Case(lambda: L.with_padded(L.with_array2d(linear())), v) for v in (LIST, RAGGED, PADDED)],
    "with_ragged": [Case(lambda: L.with_ragged(L.ParametricAttention()), v) for v in (LIST, RAGGED, PADDED)],
    "with_reshape": [Case(lambda: L.with_reshape(L.Relu(4, 4)), normal(2, 3, 4))],
}  # fmt: skip

EXCUSED = {
    "wraps another framework, which is not installed": "PyTorchLSTM PyTorchRNNWrapper PyTorchWrapper "
    "PyTorchWrapper_v2 PyTorchWrapper_v3 TensorFlowWrapper TorchScriptWrapper_v1 MXNetWrapper "
    "keras_subclass pytorch_to_torchscript_wrapper",
    "needs a GPU's or another system's profiler": "with_nvtx_range with_signpost_interval",
    "takes text and gives integers": "strings2arrays",
}


def public() -> list[str]:
    """Every name of `thinc.layers` that makes a layer."""
    return [
        n for n in dir(L)
        if not n.startswith("_") and callable(getattr(L, n)) and type(getattr(L, n)) is not type(L)
    ]  # fmt: skip


# -------------------------------------------------------------------------------------- the print


def judge(case: Case) -> list[str]:
    """What is wrong with one case, one sentence each."""
    adapted = Adapted(case)
    outputs = adapted.outputs(*adapted.args)
    try:
        adapted.gradients(*adapted.args, outputs)
    except Exception as error:
        return [f"backprop fails: {type(error).__name__}: {' '.join(str(error).split())}"]
    report = verify(adapted.function(), *adapted.args)
    return [
        f"{check.path}: {check.problem} (error {check.error:.1e}, allowed {check.allowed:.1e})"
        for check in report.findings
    ]


def main() -> None:
    """Judge every case and print one row each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    header()
    print("thinc", importlib.metadata.version("thinc"), "numpy", np.__version__)
    excused = {name: why for why, names in EXCUSED.items() for name in names.split()}
    listed = {name.split()[0] for name in CASES} | set(excused)
    missing = [name for name in public() if name not in listed]
    began, counts = time.perf_counter(), {"ok": 0, "wrong": 0, "not judged": 0}
    for name, cases in CASES.items():
        for number, case in enumerate(cases):
            if options.only not in name:
                continue
            start = time.perf_counter()
            try:
                problems = judge(case)
                verdict = "wrong" if problems else "ok"
            except Exception as error:  # of thinc or of ours: it must be seen
                problems = [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
                verdict = "not judged"
            counts[verdict] += 1
            kind = type(case.x).__name__
            print(
                f"{name} [{number}] {kind}: {verdict}  {time.perf_counter() - start:.1f} s",
                flush=True,
            )
            for problem in problems:
                print(f"    {problem}")
    print(counts, f"{time.perf_counter() - began:.0f} s")
    if missing:
        print("no case for:", *missing)
    for why, names in EXCUSED.items():
        print(f"{why}: {names}")


if __name__ == "__main__":
    main()
