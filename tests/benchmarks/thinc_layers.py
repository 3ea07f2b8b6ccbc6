"""Judge the hand-written backward passes of thinc, layer by layer.

A thinc layer gives `(Y, backprop)`; here it becomes a function with a custom rule, whose forward
and backward pass are both callbacks. Nothing can be differentiated in a callback, so the judgement
is by central differences, in float64 where the layer computes in it. Run with

    python -m venv thinc && thinc/bin/pip install -e . thinc
    thinc/bin/python -m tests.benchmarks.thinc_layers

(thinc 9.1.1, jax 0.10.2 and numpy 2.4 live together.)
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import importlib.metadata
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from thinc import layers
from thinc.api import Padded, Ragged

from funprop.verify import verify
from tests.benchmarks.harness import header
from tests.benchmarks.others.thinc_cases import CASES, EXCUSED, Case

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
        """The layer's own call, at these params; random numbers are the same in every call."""
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


def public() -> list[str]:
    """Every name of `thinc.layers` that makes a layer."""
    return [
        n
        for n in dir(layers)
        if not n.startswith("_")
        and callable(getattr(layers, n))
        and type(getattr(layers, n)) is not type(layers)
    ]


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
