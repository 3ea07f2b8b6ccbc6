"""Do the combinators cost anything after `jit`? FLOPs and temporary memory of forward and backward
through them, against the same formulas written straight.

Target: the same FLOPs. Run: python -m tests.benchmarks.combinators_cost
"""

from typing import Any

import jax
import jax.numpy as jnp

import funprop as fp
from tests.benchmarks.harness import flops, header, temporary

X = jnp.ones((64, 32))
DY = jnp.ones((64, 32))


def composed(layer: fp.Layer) -> Any:
    """Forward and backward through the combinators."""

    def both(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    return jax.jit(both)


def dense_tanh(p: Any, x: Any) -> Any:
    """The straight code's one building block: forward."""
    return jnp.tanh(x @ p.w + p.b)


def dense_tanh_backward(p: Any, x: Any, y: Any, dy: Any) -> Any:
    """And backward."""
    dz = (1 - y) * (1 + y) * dy
    return (x.T @ dz, dz.sum(0)), dz @ p.w.T


@jax.jit
def straight_serial(params: Any, x: Any, dy: Any) -> Any:
    """Two blocks in a row."""
    a, _, b, _ = params
    h = dense_tanh(a, x)
    y = dense_tanh(b, h)
    db, dh = dense_tanh_backward(b, h, y, dy)
    da, dx = dense_tanh_backward(a, x, h, dh)
    return y, ((da, db), dx)


@jax.jit
def straight_residual(params: Any, x: Any, dy: Any) -> Any:
    """One block and the way around it."""
    p, _ = params
    h = dense_tanh(p, x)
    dp, dh = dense_tanh_backward(p, x, h, dy)
    return x + h, (dp, dy + dh)


@jax.jit
def straight_parallel(params: Any, x: Any, dy: Any) -> Any:
    """Two blocks side by side, summed."""
    ((a, _), (b, _)), _ = params
    ya, yb = dense_tanh(a, x), dense_tanh(b, x)
    da, dxa = dense_tanh_backward(a, x, ya, dy)
    db, dxb = dense_tanh_backward(b, x, yb, dy)
    return ya + yb, ((da, db), dxa + dxb)


@jax.jit
def straight_repeat(params: Any, x: Any, dy: Any) -> Any:
    """Four blocks under a scan."""
    p, _ = params

    def forward(x: Any, p: Any) -> Any:
        y = dense_tanh(p, x)
        return y, (x, y)

    def backward(dy: Any, step: Any) -> Any:
        p, (x, y) = step
        dp, dx = dense_tanh_backward(p, x, y, dy)
        return dx, dp

    y, kept = jax.lax.scan(forward, x, p)
    dx, dp = jax.lax.scan(backward, dy, (p, kept), reverse=True)
    return y, (dp, dx)


def main() -> None:
    """Print a row a combinator."""
    header()
    block = fp.serial(fp.dense(32), fp.tanh())
    pairs = {
        "serial": (fp.serial(*block.children, *block.children), straight_serial),
        "residual": (fp.residual(block), straight_residual),
        "parallel": (fp.serial(fp.parallel(block, block), fp.add()), straight_parallel),
        "repeat": (fp.repeat(block, 4), straight_repeat),
    }
    print("combinator    FLOPs: composed, straight      temporary bytes: composed, straight")
    for name, (layer, straight) in pairs.items():
        params = layer.init(jax.random.key(0), X)
        args = params, X, DY
        counts = [flops(f, *args) for f in (composed(layer), straight)]
        memory = [temporary(f, *args) for f in (composed(layer), straight)]
        print(f"{name:12} {counts[0]:>12,} {counts[1]:>12,} {memory[0]:>18,} {memory[1]:>12,}")


if __name__ == "__main__":
    main()
