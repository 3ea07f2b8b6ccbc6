"""Attention whose scores exist a block at a time: the matrix of all of them never does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.decoding import Decoding, one_array, place, refused
from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers import blockwise, fused
from funprop.layers.formulas import FORMULAS
from funprop.layers.heads import Heads
from funprop.trees import Static, lifted, require_array, require_float, widen
from funprop.values import real_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from funprop.typing import Array, Float


@told(FORMULAS["attention"])
def attention(
    heads: int,
    *,
    kv_heads: int | None = None,
    causal: bool = True,
    window: int | None = None,
    rotary: float | Sequence[float] | None = None,
    block: int | None = None,
    method: str | None = None,
) -> Layer:
    """`y = softmax(q k^T / sqrt f) v` for every head, from packed queries, keys and values.

    Index legend: `b` batch, `g` groups (`kv_heads`), `r` heads a group, `i` queries, `j` keys, `f`
    features of a head. Per group and head, with `z_ij = q_i . k_j / sqrt f`,

        p_ij = exp z_ij / sum_j exp z_ij,   y_i = sum_j p_ij v_j
        dv_j = sum_i p_ij dy_i,   dp_ij = dy_i . v_j,   dz_ij = p_ij (dp_ij - sum_j p_ij dp_ij)
        dq_i = sum_j dz_ij k_j / sqrt f,   dk_j = sum_i dz_ij q_i / sqrt f.

    Both passes go over blocks of queries, each with the keys that it may see. Kept are the input
    and, for each query of each head, `log sum_j exp z_ij`: `p` is computed again, and memory is
    `block * time` numbers in the place of `time^2`. A CPU takes heads one after the other too, as
    many at once as its caches hold scores of. Token by token (causal), the cache is the keys and
    values of all places before.

    Args:
      heads: of the queries.
      kv_heads: of keys and values, each for `heads / kv_heads` heads; as many as `heads` if not
        given.
      causal: whether a query sees no later keys.
      window: how many places a query sees at most, its own included, to either side.
      rotary: the base of rotary positions (see `rotate`), 10,000 as a rule, or how fast each pair
        of a head's features turns, radians a place; none if not given.
      block: how many queries at a time; if not given, an eighth of them, but 64 to 256.
      method: "blocks", or "cudnn" for the fused kernel on a GPU, through
        `jax.nn.dot_product_attention`. If not given, "cudnn" in 16 bits where the program is
        compiled for a GPU and the kernel takes the input (no mask, heads of a size that 8 divides),
        else "blocks". Where it may be the kernel's, what that keeps is kept too, as large as `y`.

    Shapes: `x [*batch, time, (heads + 2 kv_heads) f]`: queries of all heads, then keys, then
    values; or `(x, mask)` with `mask [*batch, time]`, which is false where nobody looks (padding).
    `y [*batch, time, heads f]`; zero for a query that sees nothing. A query that sees a number
    that is not finite gives NaN, and no other: what is hidden may hold anything.

    Source: Rabe and Staats, arXiv:2112.05682, and Dao et al., arXiv:2205.14135 (no matrix of all
    scores); grouped queries: Ainslie et al., arXiv:2305.13245.

    Raises:
      ValueError: a number is not positive; `kv_heads` does not divide `heads`; or, at forward, the
        last axis of `x` does not divide into heads, the mask has another shape, or "cudnn" does not
        take this.
      TypeError: `x` is not of floating dtype, or the mask not of booleans.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((2, 5, 3 * 8))
      >>> y, kept = attention(4).forward((), x)
      >>> y.shape, attention(4).backward((), kept, y)[1].shape
      ((2, 5, 8), (2, 5, 24))
    """
    heads = whole_number(heads, "heads", 1)
    kv_heads = heads if kv_heads is None else whole_number(kv_heads, "kv_heads", 1)
    window = None if window is None else whole_number(window, "window", 1)
    block = None if block is None else whole_number(block, "block", 1)
    if heads % kv_heads:
        raise ValueError(f"kv_heads must divide heads, got {kv_heads} and {heads}")
    rotary = _rotary(rotary)
    if method not in (None, "blocks", "cudnn"):
        raise ValueError(f'method must be "blocks" or "cudnn", got {method!r}')
    how = Heads(heads, kv_heads, causal, window, rotary)

    def by_blocks(x: Any, mask: Any = None) -> Any:
        return blockwise.forward(how, block, x, mask)

    def by_kernel(x: Any) -> Any:
        return fused.forward(how, x)

    def forward(params: tuple[()], x: Any) -> tuple[Float[Array, "*batch t o"], Any]:
        masked = isinstance(x, tuple)
        x, mask = x if masked else (x, None)
        _check(how, x, mask)
        kept = norms = None
        if not _by_cudnn(method, how, x, mask):
            y, norms = by_blocks(x, mask)
        elif method == "cudnn":
            y, kept = by_kernel(x)
        else:
            # Each way has zeros in the place of what the other keeps.
            no_kept, no_norms = (_zeros(way, x)[1] for way in (by_kernel, by_blocks))

            def blocks(x: Any) -> Any:
                y, norms = by_blocks(x)
                return (y, no_kept), norms

            (y, kept), norms = jax.lax.platform_dependent(
                x, cuda=lambda x: (by_kernel(x), no_norms), default=blocks
            )
        return y, (x, mask, kept, norms, Static(masked))

    def backward(params: tuple[()], residuals: Any, dy: Float[Array, "*batch t o"]) -> Any:
        x, mask, kept, norms, masked = residuals
        if kept is None:
            dx = blockwise.backward(how, block, x, mask, norms, dy)
        elif norms is None:
            dx = fused.backward(how, x, kept, dy)
        else:
            dx = jax.lax.platform_dependent(
                x,
                kept,
                norms,
                dy,
                cuda=lambda x, kept, norms, dy: fused.backward(how, x, kept, dy),
                default=lambda x, kept, norms, dy: blockwise.backward(
                    how, block, x, None, norms, dy
                ),
            )
        return (), (dx, None) if masked.value else dx

    def prefill(params: tuple[()], x: Any, length: int) -> tuple[Any, Any]:
        y, _ = forward(params, one_array(x))
        _, *past = how.split(x)  # [b, g, t, f] each
        room = ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0))
        return y, (*(jnp.pad(part, room) for part in past), place(x.shape[1]))

    def advance(params: tuple[()], cache: Any, x: Any) -> tuple[Any, Any]:
        *past, now = cache
        q, *new = how.split(x, now)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(part, one, now, 2)
            for part, one in zip(past, new, strict=True)
        )
        z = jnp.einsum("bgrif,bgjf->bgrij", q, k, preferred_element_type=widen(q).dtype)
        seen = lifted(how.visible(now, jnp.arange(k.shape[2], dtype=now.dtype)), z)
        p = jax.nn.softmax(jnp.where(seen, z, -jnp.inf), -1).astype(v.dtype)
        y = jnp.einsum("bgrij,bgjf->bgrif", p, v, preferred_element_type=widen(v).dtype)
        return y.astype(x.dtype).reshape(len(x), 1, how.heads * y.shape[-1]), (k, v, now + 1)

    return layer(
        forward=forward,
        backward=backward,
        name="attention",
        decoding=Decoding(prefill, advance)
        if causal
        else refused("attention must be causal to run token by token, got causal=False"),
    )


def _rotary(given: Any) -> float | tuple[float, ...] | None:
    """A base, or a speed for each pair of features."""
    if isinstance(given, list | tuple):
        speeds = tuple(real_number(speed, "rotary") for speed in given)
        if not all(math.isfinite(speed) for speed in speeds):
            raise ValueError(f"rotary must be of finite speeds, got {speeds}")
        return speeds
    base = None if given is None else real_number(given, "rotary")
    if base is not None and not base > 1:
        raise ValueError(f"rotary must be greater than 1, got {base}")
    return base


def _zeros(function: Any, x: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, x))


def _by_cudnn(method: str | None, how: Heads, x: Any, mask: Any) -> bool:
    """Whether the kernel is a way, on the platform that has it: in 16 bits, where it takes this."""
    if method == "blocks" or (method is None and x.dtype.itemsize != 2):
        return False
    refused = fused.refusal(how, x, mask)
    if refused and method == "cudnn":
        raise ValueError(f'method "cudnn" does not take this input: {refused}')
    return not refused


def _check(how: Heads, x: Any, mask: Any) -> None:
    require_float(x)
    parts = how.heads + 2 * how.kv_heads
    if x.ndim < 2 or 0 in x.shape[-2:] or x.shape[-1] % parts:
        raise ValueError(
            f"x must have time, and a last axis that divides into {parts} heads ({how.heads} of "
            f"queries, {how.kv_heads} each of keys and values), got shape {tuple(x.shape)}"
        )
    if how.rotary is not None and x.shape[-1] // parts % 2:
        raise ValueError(f"rotary heads must have an even size, got {x.shape[-1] // parts}")
    speeds = len(how.rotary) if isinstance(how.rotary, tuple) else None
    if speeds not in (None, x.shape[-1] // parts // 2):
        raise ValueError(
            f"rotary must have a speed for each of {x.shape[-1] // parts // 2} pairs of a head's "
            f"features, got {speeds}"
        )
    if mask is None:
        return
    require_array(mask, "mask")
    if mask.dtype != bool:
        raise TypeError(f"mask must be of booleans, got {mask.dtype}")
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"mask must have shape {tuple(x.shape[:-1])}, got {tuple(mask.shape)}")
