"""Queries, keys and values out of one array, and which of them see each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.lax import dynamic_update_slice_in_dim

from funprop.layers.rotary import rotate

if TYPE_CHECKING:
    from funprop.typing import Array, Float


class Heads(NamedTuple):
    """Which queries see which keys, and how: the arguments of `attention`."""

    heads: int
    kv_heads: int
    causal: bool
    window: int | None
    rotary: float | tuple[float, ...] | None

    def split(self, x: Float[Array, "*batch t p"], first: Any = 0) -> tuple[Any, Any, Any]:
        """Queries `[b, g, r, t, f]` over `sqrt f`; keys and values `[b, g, t, f]`."""
        time, packed = x.shape[-2:]
        parts = self.heads + 2 * self.kv_heads
        x = x.reshape(math.prod(x.shape[:-2]), time, parts, packed // parts).swapaxes(1, 2)
        q, k, v = jnp.split(x, (self.heads, self.heads + self.kv_heads), 1)
        if self.rotary is not None:
            places = first + jnp.arange(time, dtype=jnp.int32)  # the sequence began earlier
            most = float(
                jnp.finfo(x.dtype).max
            )  # what turns too far stays finite: `0 * inf` is NaN
            q, k = (rotate(part, places, base=self.rotary) for part in (q, k))
            q, k = jnp.clip(q, -most, most), jnp.clip(k, -most, most)
        q = q * q.shape[-1] ** -0.5
        return q.reshape(len(x), self.kv_heads, self.heads // self.kv_heads, *q.shape[2:]), k, v

    def joined(self, dq: Any, dk: Any, dv: Any, like: Any) -> Float[Array, "*batch t p"]:
        """The transpose of `split`."""
        dq = dq.reshape(len(dq), self.heads, *dq.shape[3:]) * dq.shape[-1] ** -0.5
        if self.rotary is not None:  # the rotation back
            places = -jnp.arange(dq.shape[2])
            dq, dk = rotate(dq, places, base=self.rotary), rotate(dk, places, base=self.rotary)
        parts = [d.astype(like.dtype) for d in (dq, dk, dv)]
        # Turned one by one: the transpose of all of them together is slow on a CPU.
        rows = (d.swapaxes(1, 2).reshape(*like.shape[:-1], d.shape[1] * d.shape[3]) for d in parts)
        return jnp.concatenate(list(rows), -1)

    def few(self, groups: int) -> Heads:
        """The same for so many groups of heads."""
        return self._replace(heads=groups * self.heads // self.kv_heads, kv_heads=groups)

    def put(self, x: Any, part: Any, first: Any, groups: int) -> Float[Array, "*batch t p"]:
        """`x` with what so few groups, from the first on, have of it in its place."""
        each, f = self.heads // self.kv_heads, x.shape[-1] // (self.heads + 2 * self.kv_heads)
        starts = first * each, self.heads + first, self.heads + self.kv_heads + first
        parts = jnp.split(part, (groups * each * f, groups * (each + 1) * f), -1)
        for start, columns in zip(starts, parts, strict=True):
            x = dynamic_update_slice_in_dim(x, columns, start * f, -1)
        return x

    def reach(self, time: int) -> tuple[Any, Any]:
        """The first key that each query sees, and the one after the last."""
        places = np.arange(time)
        low = np.zeros_like(places) if self.window is None else places - self.window + 1
        high = np.full_like(places, time) if self.window is None else places + self.window
        high = np.minimum(high, places + 1) if self.causal else high
        return np.maximum(low, 0), np.minimum(high, time)

    def visible(self, query: Any, key: Any) -> Any:
        """Whether the query at one place, `[i, 1]`, sees the key at another, `[1, j]`."""
        seen = jnp.full(jnp.broadcast_shapes(query.shape, key.shape), True)
        if self.causal:
            seen = seen & (key <= query)
        if self.window is not None:
            seen = seen & (query - key < self.window) & (key - query < self.window)
        return seen
