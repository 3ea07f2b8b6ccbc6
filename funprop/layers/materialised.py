"""Arrays that XLA may not make again, in a backward pass, from what they were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

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
        made = jax.eval_shape(f, x)
        # Made from a number of `x`, which under `shard_map` says along which axes it varies.
        zero = jnp.zeros_like(x.reshape(-1)[0], made.dtype)
        once = jax.lax.optimization_barrier(jnp.int32(1))
        return jax.lax.fori_loop(0, once, lambda _, made: f(x), jnp.broadcast_to(zero, made.shape))

    x = jax.lax.stop_gradient(x)
    return jax.lax.platform_dependent(x, cpu=in_a_loop, default=f) if x.size else f(x)
