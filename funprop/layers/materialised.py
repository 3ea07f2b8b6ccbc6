"""Arrays that XLA may not make again, in a backward pass, from what they were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.core import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Num


def materialised(f: Callable[[Array], Num[Array, "*out"]], x: Array) -> Num[Array, "*out"]:
    """`f(x)`, without derivatives, as an array of its own.

    A small residual saves nothing where a compiler keeps `x`, of which it is cheaply made, and
    makes it again. On a CPU `f` runs in a loop of one turn, whose length XLA does not see until
    all is fused (docs/benchmarks/convolution.md); a GPU would wait for it, and does as it likes.

    Example:
      >>> materialised(lambda x: x > 0, jnp.array([-1.0, 2.0])).tolist()
      [False, True]
    """

    def in_a_loop(x: Array) -> Num[Array, "*out"]:
        once = jax.lax.optimization_barrier(jnp.int32(1))
        # Of `f(x)` as to where on devices it lies too. XLA does not compute what only gives zeros.
        start = jnp.zeros_like(f(x))
        return jax.lax.fori_loop(0, once, lambda _, made: f(x), start)

    if not isinstance(x, Tracer):  # one operation at a time: each array is its own
        return f(x)
    return jax.lax.platform_dependent(jax.lax.stop_gradient(x), cpu=in_a_loop, default=f)
