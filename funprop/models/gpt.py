"""Decoder-only language models, with the choices of GPT-2 or of Llama."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from funprop.checks import described
from funprop.combinators import reparam, repeat, serial
from funprop.layer import Layer, check_layer, named, renamed
from funprop.layers import dropout, embedding, layer_norm, learned_positions, rms_norm
from funprop.losses import LinearParams, linear_cross_entropy
from funprop.models.transformer import (
    DEVIATION,
    block,
    feed_forward,
    keep_products,
    self_attention,
    swiglu,
)
from funprop.names import params_of
from funprop.objectives import objective
from funprop.params.frozen import trained
from funprop.values import real_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def gpt(
    vocabulary: int,
    *,
    features: int = 768,
    depth: int = 12,
    heads: int = 12,
    longest: int = 1024,
    hidden: int | None = None,
    activation: Layer | None = None,
    eps: float = 1e-5,
    rate: float = 0.0,
    rewrite: Callable[[Layer], Layer] = keep_products,
) -> Layer:
    """GPT-2 from tokens to the last hidden states; the sizes given are those of its small one.

    Args:
      vocabulary: how many tokens there are.
      features: of every hidden state.
      depth: how many blocks.
      heads: of the attention.
      longest: how long a sequence may be.
      hidden: features inside each block's network; 4 times `features` if not given.
      activation: of the network; `gelu_tanh()` if not given.
      eps: of `layer_norm`.
      rate: of dropout, after the embedding and at the end of each branch.
      rewrite: of every block. `fp.keep_products` computes cheap parts again; `fp.remat` all but
        the block's input; `lambda block: block` nothing.

    Shapes: `x [batch, time]` integers, `y [batch, time, features]`.

    Source: Radford et al. 2019; weights of the branches' ends are smaller by `sqrt(2 depth)`.

    Raises:
      ValueError: a number is not positive, or `heads` does not divide `features`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = gpt(50, features=8, depth=2, heads=2, longest=16)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 5), int))
      >>> model.forward(params, jnp.zeros((1, 5), int))[0].shape
      (1, 5, 8)
    """
    depth = whole_number(depth, "depth", 1)
    small = DEVIATION / (2 * depth) ** 0.5
    features, rate = whole_number(features, "features", 1), real_number(rate, "rate")
    noise = [dropout(rate)] if rate else []
    network = feed_forward(features, hidden or 4 * features, activation=activation, deviation=small)
    one = block(
        lambda: layer_norm(eps),
        _then(self_attention(features, heads, deviation=small), noise),
        _then(network, noise),
    )
    return named(
        "gpt",
        serial(
            embedding(vocabulary, features),
            named("positions", learned_positions(longest)),
            *noise,
            named("blocks", repeat(rewrite(one), depth)),
            named("norm", layer_norm(eps)),
        ),
    )


def llama(
    vocabulary: int,
    *,
    features: int = 768,
    depth: int = 12,
    heads: int = 12,
    kv_heads: int | None = None,
    head_size: int | None = None,
    hidden: int | None = None,
    window: int | None = None,
    rotary: float | Sequence[float] = 10_000.0,
    eps: float = 1e-6,
    attention_bias: bool = False,
    network_bias: bool = False,
    rewrite: Callable[[Layer], Layer] = keep_products,
) -> Layer:
    """The same by Llama's choices: rotary positions, RMS normalisation, SwiGLU, no biases.

    Args:
      vocabulary, features, depth, heads, rewrite: as of `gpt`.
      kv_heads: heads of keys and values, for grouped queries.
      head_size: features of each head; `features / heads` if not given.
      hidden: features inside SwiGLU; by default 8/3 of `features`, in steps of 32.
      window: how far back a token sees; as far as there is if not given.
      rotary: the base of the positions, or the speeds of all pairs (see `attention`).
      eps: of `rms_norm`.
      attention_bias, network_bias: whether the dense layers of each have biases.

    Source: Touvron et al., arXiv:2302.13971.

    Raises:
      ValueError: a number is not positive, `heads` does not divide `features`, or `kv_heads` does
        not divide `heads`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = llama(50, features=8, depth=2, heads=4, kv_heads=2)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 5), int))
      >>> model.forward(params, jnp.zeros((1, 5), int))[0].shape
      (1, 5, 8)
    """
    features = whole_number(features, "features", 1)
    hidden = hidden or -(-8 * features // 96) * 32
    depth = whole_number(depth, "depth", 1)
    small = DEVIATION / (2 * depth) ** 0.5
    attend = self_attention(
        features,
        heads,
        kv_heads=kv_heads,
        head_size=head_size,
        bias=attention_bias,
        deviation=small,
        window=window,
        rotary=rotary,
    )
    network = swiglu(features, hidden, bias=network_bias, deviation=small)
    one = block(lambda: rms_norm(eps), attend, network)
    return named(
        "llama",
        serial(
            embedding(vocabulary, features),
            named("blocks", repeat(rewrite(one), depth)),
            named("norm", rms_norm(eps)),
        ),
    )


def language_model(model: Layer, vocabulary: int, *, tied: bool = True, **loss: Any) -> Layer:
    """The objective of a model of tokens: to predict the next, from `(tokens, next tokens)`.

    Tied, the table of the embedding is the unembedding too, and params are the model's alone; its
    gradient is summed in `reparam`, the one place where a weight is used more than once.

    Args:
      model: such as `gpt` or `llama`, whose first part is the embedding.
      vocabulary: how many tokens there are.
      tied: whether the unembedding is the embedding's table.
      **loss: what else `linear_cross_entropy` takes: `chunk`, `smoothing`, `z_loss`; and, where it
        is not tied, `bias` and `w_init`.

    Source: Press and Wolf, arXiv:1608.05859 (tying).

    Raises:
      ValueError: `bias` with a tied head, which has none; or as `linear_cross_entropy`.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> tokens = jnp.zeros((1, 5), int)
      >>> fit_me = language_model(gpt(50, features=8, depth=2, heads=2), 50)
      >>> params = fit_me.init(jax.random.key(0), (tokens, tokens))
      >>> loss, kept = fit_me.forward(params, (tokens, tokens))
      >>> abs(float(loss.mean) - 3.91) < 0.2  # log 50: it knows nothing yet
      True
    """
    check_layer("model", model, "gpt(50)")
    head = named("head", linear_cross_entropy(vocabulary, **loss))
    if not tied:
        return objective(model, head)
    for name in ("bias", "w_init"):
        if loss.get(name):
            raise ValueError(f"{name} needs tied=False: a tied head is the embedding's table alone")
    whole = objective(renamed("", model), head)  # whose params are the model's alone
    return reparam(
        whole,
        expand=lambda params: params_of(whole.children, (params, unembedding(params))),
        initial=lambda params: params[0],
        shrink=_add_to_table,
        hands_on=True,
    )


def unembedding(params: Any) -> LinearParams:
    """The head that shares the embedding's table, from the params of `gpt` or `llama`, or of any
    model that begins with an embedding: the first param of all, also where it is `Frozen`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = gpt(50, features=8, depth=1, heads=2)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 5), int))
      >>> unembedding(params).w.shape
      (50, 8)
    """
    own = jax.tree.leaves(getattr(params, "embedding", params))
    if not own or len(getattr(own[0], "shape", ())) != 2:
        got = described(own[0]) if own else "nothing"
        raise TypeError(f"params must begin with a table [vocabulary, features], got {got}")
    return LinearParams(own[0], None)


def _add_to_table(params: Any, dexpanded: Any) -> Any:
    """The table's two gradients, of looking up and of the head, added; none where it is frozen."""
    dmodel, head = dexpanded
    (table, *_), own = jax.tree.leaves(params), jax.tree.leaves(trained(params))
    if not own or own[0] is not table:
        return dmodel
    (first, *rest), tree = jax.tree.flatten(dmodel)
    return tree.unflatten([first + head.w, *rest])


def _then(layer: Layer, more: list[Layer]) -> Layer:
    return named(layer.name, serial(*layer.children, *more))
