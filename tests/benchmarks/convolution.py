"""The measured tables from which convolutions and recurrences choose how they are computed on a
CPU: rule by rule and shape by shape, milliseconds of all cores together (user and system), which a
busy machine disturbs less than the clock, and MiB of temporary memory.

Run: python -m tests.benchmarks.convolution [whole] [depthwise] [recurrence]
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import funprop as fp
from funprop.layers import chunks, convolve, depthwise, recurrent
from funprop.layers.windows import Slide, views
from tests.benchmarks.harness import cpu_seconds, header, temporary

Ways = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


class Shape(NamedTuple):
    """A convolution of `batch` square images by a square window."""

    batch: int
    size: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


WHOLE = [
    Shape(64, 28, 1, 32),
    Shape(64, 28, 32, 64),
    Shape(64, 14, 64, 64),
    Shape(16, 32, 32, 32),
    Shape(16, 32, 32, 32, stride=2),
    Shape(32, 7, 256, 256),
    Shape(32, 28, 64, 128, kernel=1, stride=2),
    Shape(16, 32, 32, 32, groups=4),
]
DEPTHWISE = [
    Shape(16, 32, 32, 32, groups=32),
    Shape(16, 32, 32, 32, stride=2, groups=32),
    Shape(64, 14, 256, 256, groups=256),
    Shape(8, 56, 64, 64, kernel=7, groups=64),
]


def measured(ways: Ways, rounds: int = 7) -> None:
    """Print the median of each, taken in turns."""
    jitted = {name: (jax.jit(f), args) for name, (f, args) in ways.items()}
    for f, args in jitted.values():
        jax.block_until_ready(f(*args))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (f, args) in jitted.items():
            times[name].append(cpu_seconds(lambda f=f, args=args: f(*args)))
    for name, (f, args) in jitted.items():
        memory = temporary(f, *args) / 2**20
        print(f"  {name:36} {1e3 * np.median(times[name]):8.2f} ms {memory:7.1f} MiB", flush=True)


def arrays(shape: Shape) -> tuple[Any, Any, Any, Slide]:
    """`x`, `w`, `dy` and how the window slides ("same")."""
    n, size, i, o, k, s, groups = shape
    rng = np.random.default_rng(0)

    def normal(*sizes: int) -> Any:
        return jnp.asarray(rng.standard_normal(sizes), jnp.float32)

    layer = fp.conv(o, (k, k), stride=s, groups=groups)
    x, w = normal(n, size, size, i), normal(k, k, i // groups, o)
    y = jax.eval_shape(lambda x: layer.forward(layer.init(jax.random.key(0), x), x)[0], x)
    dy = normal(*y.shape)
    needed = max((dy.shape[1] - 1) * s + k - size, 0)
    pair = (needed // 2, needed - needed // 2)
    return x, w, dy, Slide((s, s), (pair, pair), (1, 1), groups)


def whole(shape: Shape) -> None:
    """XLA's convolution, whole and a few examples at a time, against products of patches."""
    x, w, dy, slide = arrays(shape)
    k, window = shape.kernel, (shape.kernel,) * 2
    print(f"{shape}")

    def patches(x: Any) -> Any:
        seen = jnp.concatenate(views(x, window, slide.stride, slide.padding, 0.0), -1)
        return seen.reshape(-1, seen.shape[-1])

    def by_patches(x: Any, w: Any) -> Any:
        found = jax.lax.map(lambda x: patches(x[None]) @ w.reshape(-1, w.shape[-1]), x)
        return found.reshape(dy.shape)

    def dw_by_patches(x: Any, dy: Any) -> Any:
        return patches(x).T @ dy.reshape(-1, dy.shape[-1])

    def dw_by_places(x: Any, dy: Any) -> Any:
        seen = views(x, window, slide.stride, slide.padding, 0.0)
        rows = dy.reshape(-1, dy.shape[-1])
        return jnp.stack([v.reshape(-1, v.shape[-1]).T @ rows for v in seen])

    def dw(x: Any, dy: Any) -> Any:
        return convolve.pull_w(x, dy, slide, window)

    def at_once(x: Any, dy: Any) -> Any:
        with mock.patch.object(chunks, "CACHE", 1 << 60):  # read while traced
            return dw(x, dy)

    sizes = x.shape[1:-1]
    ways: Ways = {"forward, XLA": (lambda x, w: convolve.convolve(x, w, slide), (x, w))}
    if shape.groups == 1:
        ways["forward, patches by example"] = by_patches, (x, w)
    ways["dx, XLA"] = lambda w, dy: convolve.pull_x(w, dy, slide, sizes), (w, dy)
    ways["dw, XLA's own transpose"] = (
        lambda x, dy: jax.linear_transpose(lambda w: convolve.convolve(x, w, slide), w)(dy)[0],
        (x, dy),
    )
    ways["dw, XLA, turned by hand, at once"] = at_once, (x, dy)
    if shape.groups == 1:
        ways["dw, the same in chunks (chosen)"] = dw, (x, dy)
        ways["dw, patches in chunks"] = (
            lambda x, dy: chunks.sum_of_chunks(dw_by_patches, x, dy),
            (x, dy),
        )
        ways[f"dw, {k * k} products in chunks"] = (
            lambda x, dy: chunks.sum_of_chunks(dw_by_places, x, dy),
            (x, dy),
        )
    measured(ways)


def of_depthwise(shape: Shape) -> None:
    """XLA's convolution in groups of one against sums over the window's places."""
    x, w, dy, slide = arrays(shape)
    kernel, sizes = w.shape[:-2], x.shape[1:-1]
    print(f"{shape}")

    def by_xla(f: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with mock.patch.object(depthwise, "PLACES", 0):  # read while traced
                return f(*args)

        return run

    ways: Ways = {}
    for name, f, args in (
        ("forward", lambda x, w: convolve.convolve(x, w, slide), (x, w)),
        ("dx", lambda w, dy: convolve.pull_x(w, dy, slide, sizes), (w, dy)),
        ("dw", lambda x, dy: convolve.pull_w(x, dy, slide, kernel), (x, dy)),
    ):
        ways[f"{name}, XLA"] = by_xla(f), args
        ways[f"{name}, places (chosen)"] = f, args
    measured(ways)


def both(layer: fp.Layer) -> Callable[..., Any]:
    """Both passes of a layer."""

    def run(params: Any, x: Any) -> Any:
        y, kept = layer.forward(params, x)
        return layer.backward(params, kept, y)

    return run


def recurrence(batch: int, inputs: int) -> None:
    """Where `x` is multiplied, and what is kept: 64 steps of 128 features."""
    print(f"T 64, {inputs} inputs, 128 features, batch {batch}")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, 64, inputs)), jnp.float32)

    def at_once(step: Any, state: Any, x: Any, w_x: Any, b: Any) -> Any:
        return jax.lax.scan(step, state, recurrent.inputs(x, w_x, b))

    for make in (fp.lstm, fp.gru):
        layer = make(128)
        arguments = layer.init(jax.random.key(0), x), x
        module = sys.modules[make.__module__]

        def in_one_product(params: Any, x: Any, layer: Any = layer, module: Any = module) -> Any:
            with mock.patch.object(module, "scan_over_inputs", at_once):  # read while traced
                return layer.forward(params, x)

        ways: Ways = {
            "forward, x in one product": (in_one_product, arguments),
            "forward, x in steps (chosen)": (layer.forward, arguments),
        }
        for name, way in (
            ('keep="output"', make(128, keep="output")),
            ('keep="gates" (chosen)', layer),
            ("autodiff", fp.autodiff(layer)),
        ):
            ways[f"both passes, {name}"] = both(way), arguments
        print(f" {layer.name}")
        measured(ways)


def main(*names: str) -> None:
    """Print all tables, or those named."""
    header()
    if "whole" in names or not names:
        for shape in WHOLE:
            whole(shape)
    if "depthwise" in names or not names:
        for shape in DEPTHWISE:
            of_depthwise(shape)
    if "recurrence" in names or not names:
        for batch, inputs in ((1, 128), (8, 128), (64, 32), (64, 128), (64, 512)):
            recurrence(batch, inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
