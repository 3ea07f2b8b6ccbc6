"""The two passes of `attention` by cuDNN's kernel, through `jax.nn.dot_product_attention`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.layers.heads import Heads
from funprop.layers.spoiled import finite

if TYPE_CHECKING:
    from funprop.typing import Array, Float

    Packed = Float[Array, "*batch t p"]
    Output = Float[Array, "*batch t o"]


def refusal(how: Heads, x: Any, mask: Any) -> str | None:
    """Why cuDNN does not take this, if it does not: it is asked itself, as what it takes depends on
    its version and on the device."""
    if mask is not None:
        return "it gives no zero for a query that sees nothing, which a mask may leave"
    if not x.size:
        return "there is nothing to attend to"
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
    try:
        y, kept = jax.eval_shape(lambda x: forward(how, x), spec)
        jax.eval_shape(lambda x, kept, dy: backward(how, x, kept, dy), spec, kept, y)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error)
    return None


def forward(how: Heads, x: Packed) -> tuple[Output, list[Any]]:
    """`y`; and which queries are spoiled, with what the kernel keeps beside queries, keys and
    values: its output and the logarithm of each norm.

    What JAX has traced by `jax.vjp` already, it does not differentiate again. So it is told to go
    through the kernel itself; what is kept has no derivative, as it is for `backward` alone.
    """

    @jax.custom_vjp
    def run(x: Packed) -> tuple[Output, list[Any]]:
        clean, spoiled = finite(how, x, None)
        y, _, leaves = _vjp(how, *_heads_last(how, clean))
        return _output(how, x, y, spoiled), [spoiled, *(leaf for leaf, i in leaves if i is None)]

    def fwd(x: Packed) -> tuple[tuple[Output, list[Any]], Any]:
        def plain(x: Packed) -> Output:
            clean, spoiled = finite(how, x, None)
            return _output(how, x, _attend(how, *_heads_last(how, clean)), spoiled)

        y, pullback = jax.vjp(plain, x)
        return (y, run(x)[1]), pullback

    run.defvjp(fwd, lambda pullback, cotangents: pullback(cotangents[0]))
    return run(x)


def backward(how: Heads, x: Packed, kept: list[Any], dy: Output) -> Packed:
    """`dx`. The forward pass that JAX traces again for its pullback is dead code: what it kept is
    here already."""
    clean, _ = finite(how, x, None)
    parts = _heads_last(how, clean)
    _, pullback, leaves = _vjp(how, *parts)
    spoiled, *of_kernel = kept
    rest = iter(of_kernel)
    full = [next(rest) if i is None else parts[i] for _, i in leaves]
    pullback = jax.tree.unflatten(jax.tree.structure(pullback), full)
    dy, spoiled = dy.reshape(parts[0].shape), _last(spoiled)
    dq, dk, dv = pullback(jnp.where(spoiled, 0, dy))
    dq = jnp.where(spoiled & (dy != 0), jnp.nan, dq)
    dq, dk, dv = (d.swapaxes(1, 2) for d in (dq, dk, dv))  # [b, h, t, f]
    each = how.heads // how.kv_heads
    return how.joined(dq.reshape(len(dq), how.kv_heads, each, *dq.shape[2:]), dk, dv, like=x)


def _vjp(how: Heads, q: Any, k: Any, v: Any) -> tuple[Any, Any, list[tuple[Any, int | None]]]:
    """The output, the pullback, and its leaves, each with which of the inputs it is, if it is."""
    y, pullback = jax.vjp(functools.partial(_attend, how), q, k, v)
    place = {id(part): i for i, part in enumerate((q, k, v))}
    return y, pullback, [(leaf, place.get(id(leaf))) for leaf in jax.tree.leaves(pullback)]


def _attend(how: Heads, q: Any, k: Any, v: Any) -> Any:
    window = None if how.window is None else (how.window - 1, how.window - 1)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=how.causal,
        local_window_size=window,
        scale=1.0,  # in q already
        implementation="cudnn",
    )


def _output(how: Heads, x: Packed, y: Any, spoiled: Any) -> Output:
    y = jnp.where(_last(spoiled), jnp.nan, y)
    return y.reshape(*x.shape[:-1], how.heads * y.shape[-1])


def _heads_last(how: Heads, x: Packed) -> tuple[Any, Any, Any]:
    """Queries, keys and values `[b, t, h, f]`."""
    q, k, v = how.split(x)
    q = q.reshape(len(q), how.heads, *q.shape[3:])
    return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)


def _last(spoiled: Any) -> Any:
    """`[b, g, r, t, 1] -> [b, t, h, 1]`."""
    b, g, r, t, _ = spoiled.shape
    return spoiled.reshape(b, g * r, t, 1).swapaxes(1, 2)
