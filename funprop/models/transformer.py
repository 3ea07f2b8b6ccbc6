"""The parts of a transformer, and its block: attention, then a network at every place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from funprop.combinators import residual, serial
from funprop.drawing import normal
from funprop.layer import Layer, check_layer, named
from funprop.layers import attention, dense, gated, gelu_tanh, silu
from funprop.rewrites import remat
from funprop.values import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

DEVIATION = 0.02  # of the weights at first, as GPT-2's


def self_attention(
    features: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_size: int | None = None,
    bias: bool = True,
    deviation: float = DEVIATION,
    **how: Any,
) -> Layer:
    """Queries, keys and values from one dense layer, `attention`, and a dense layer after it.

    Args:
      features: of input and output.
      heads: of the queries.
      kv_heads: of keys and values; as many as `heads` if not given.
      head_size: features of each head; `features / heads` if not given.
      bias: whether the dense layers have biases.
      deviation: of the weights of the last one at first.
      **how: what else `attention` takes: `causal`, `window`, `rotary`, `block`, `method`.

    Raises:
      ValueError: `heads` does not divide `features`; or as `attention`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attend = self_attention(8, heads=4, kv_heads=2)
      >>> params = attend.init(jax.random.key(0), jnp.ones((2, 5, 8)))
      >>> attend.forward(params, jnp.ones((2, 5, 8)))[0].shape
      (2, 5, 8)
    """
    features, heads = whole_number(features, "features", 1), whole_number(heads, "heads", 1)
    kv_heads = None if kv_heads is None else whole_number(kv_heads, "kv_heads", 1)
    if head_size is not None:
        head_size = whole_number(head_size, "head_size", 1)
    elif features % heads:
        raise ValueError(f"heads must divide features, got {heads} and {features}")
    inner = attention(heads, kv_heads=kv_heads, **how)  # which checks kv_heads
    packed = (head_size or features // heads) * (heads + 2 * (kv_heads or heads))
    return named(
        "self_attention",
        serial(
            named("qkv", _dense(packed, bias)),
            named("core", inner),
            named("output", _dense(features, bias, deviation)),
        ),
    )


def feed_forward(
    features: int,
    hidden: int,
    *,
    activation: Layer | None = None,
    bias: bool = True,
    deviation: float = DEVIATION,
) -> Layer:
    """Dense, an activation (`gelu_tanh`, that of GPT-2, if none is given), dense.

    Example:
      >>> feed_forward(8, 32)
      feed_forward(hidden, gelu_tanh, output)
    """
    hidden = whole_number(hidden, "hidden", 1)
    hid, out = (
        named("hidden", _dense(hidden, bias)),
        named("output", _dense(features, bias, deviation)),
    )
    activation = gelu_tanh() if activation is None else activation
    check_layer("activation", activation, "relu()")
    return named("feed_forward", serial(hid, activation, out))


def swiglu(
    features: int, hidden: int, *, bias: bool = False, deviation: float = DEVIATION
) -> Layer:
    """Dense, `silu(a) b` of its two halves, dense; without biases if not asked for, as Llama's.

    Source: Shazeer, arXiv:2002.05202.

    Example:
      >>> swiglu(8, 20)
      swiglu(hidden, gated(silu), output)
    """
    hidden = whole_number(hidden, "hidden", 1)
    both = named("hidden", _dense(2 * hidden, bias))
    return named(
        "swiglu", serial(both, gated(silu()), named("output", _dense(features, bias, deviation)))
    )


def block(norm: Callable[[], Layer], attend: Layer, network: Layer) -> Layer:
    """`x + attend(norm(x))`, and of that `x + network(norm(x))`.

    The parts of `attend` and `network`, each a `serial`, stand beside their norm: `attention/norm`,
    `attention/qkv`.

    Source: Xiong et al., arXiv:2002.04745 (normalisation in front).

    Example:
      >>> import funprop as fp
      >>> block(fp.rms_norm, fp.self_attention(8, 2), fp.swiglu(8, 20))
      block(residual(attention(norm, qkv, core, output)), \
residual(network(norm, hidden, gated(silu), output)))
    """

    def branch(name: str, parts: tuple[Layer, ...]) -> Layer:
        return residual(named(name, serial(named("norm", norm()), *parts)))

    branches = branch("attention", attend.children), branch("network", network.children)
    return named("block", serial(*branches))


def keep_products(block: Layer) -> Layer:
    """The block of a transformer with less kept: norms and activations are computed again.

    They cost little beside the products and the attention, none of which is run again, and what
    they give is a quarter of what the block would keep. `lambda block: block` keeps all of it,
    `remat` nothing but the block's input.

    Raises:
      ValueError: the block has no part of such a name as `self_attention` and `feed_forward` give.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> one = block(fp.layer_norm, fp.self_attention(8, 2), fp.feed_forward(8, 32))
      >>> params, x = one.init(jax.random.key(0), jnp.zeros((1, 4, 8))), jnp.ones((1, 4, 8))
      >>> [sum(leaf.size for leaf in jax.tree.leaves(rewritten.forward(params, x)[1]))
      ...     for rewritten in (one, keep_products(one), fp.remat(one))]
      [536, 392, 32]
    """
    check_layer("block", block)
    try:
        return remat(block, keep=("attention/core", "attention/output", "network/hidden"))
    except ValueError as error:
        raise ValueError(f"block must be that of a transformer: {error}") from None


def _dense(features: int, bias: bool, deviation: float = DEVIATION) -> Layer:
    return dense(features, bias=bias, w_init=normal(deviation))
