"""Text from a language model, one token after the other, with keys and values of the past kept."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layer import Layer, Recorded, map_layers
from funprop.layers.attention import Attention
from funprop.trees import lifted, widen

if TYPE_CHECKING:
    from jaxtyping import Array, Int, Key

    from funprop.losses import LinearParams


class Cached(NamedTuple):
    """What stands in the place of a layer's params while text is generated.

    Attributes:
      params: the layer's own.
      past: what it keeps from token to token.
    """

    params: Any
    past: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["past"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Next:
    """What a layer keeps for the next token: recorded among its residuals, in its place."""

    past: Any


def generate(
    model: Layer,
    params: Any,
    head: LinearParams,
    prompt: Int[Array, "batch t"],
    length: int,
    *,
    key: Key[Array, ""] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Int[Array, "batch t+length"]:
    """`prompt` with `length` more tokens.

    The model is mapped: attention and learned positions become layers whose params hold what they
    keep of the past, and whose residuals give what they keep next; so the past of every copy under
    `repeat` is carried with no layer above knowing of it.

    Args:
      model: such as `gpt` or `llama`, from tokens to hidden states.
      params: of the model.
      head: the unembedding, such as `unembedding(params)`.
      prompt: at least one token each.
      length: how many tokens to add.
      key: for drawing; without it, always the most likely token.
      temperature: divides the logits: below one for safer text, above for wilder.
      top_p: draws only among the likeliest tokens that have this share of the probability together.

    Source of `top_p`: Holtzman et al., arXiv:1904.09751.

    Raises:
      ValueError: the prompt is empty, `length` or `temperature` not positive, or `top_p` outside
        `(0, 1]`; or the model has learned positions and too few of them.

    Example:
      >>> import funprop as fp
      >>> model = fp.gpt(50, features=8, depth=2, heads=2, longest=16)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
      >>> generate(model, params, fp.unembedding(params), jnp.array([[1, 2]]), 3).shape
      (1, 5)
    """
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError(f"prompt must be [batch, time] and not empty, got shape {prompt.shape}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    draw = functools.partial(_draw, temperature=temperature, top_p=top_p)
    return _generate(model, draw, length, params, head, prompt, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: Layer, draw: Any, length: int, params: Any, head: Any, prompt: Any, key: Any
) -> Any:
    longest = prompt.shape[1] + length
    keeping = map_layers(functools.partial(_keeping, longest), model)

    def is_cached(node: Any) -> bool:
        return isinstance(node, Cached)

    empty = keeping.init(jax.random.key(0), prompt)  # all but the empty past is dead code
    state = jax.tree.map(
        lambda slot, own: Cached(own, slot.past) if is_cached(slot) else own,
        empty,
        params,
        is_leaf=is_cached,
    )

    def step(state: Any, tokens: Any, key: Any) -> tuple[Any, Any]:
        hidden, residuals = keeping.forward(state, tokens)
        past = [
            leaf
            for leaf in jax.tree.leaves(residuals, is_leaf=lambda node: isinstance(node, Next))
            if isinstance(leaf, Next)
        ]
        slots, tree = jax.tree.flatten(state, is_leaf=is_cached)
        news = iter(past)  # in the order of the slots, by the mirror law
        slots = [s._replace(past=next(news).past) if is_cached(s) else s for s in slots]
        last = widen(hidden[:, -1])
        logits = last @ widen(head.w).T + (0 if head.b is None else widen(head.b)[None])
        return tree.unflatten(slots), draw(logits, key).astype(prompt.dtype)

    keys = None if key is None else jax.random.split(key, length)
    state, token = step(state, prompt, None if keys is None else keys[0])

    def one(carry: Any, key: Any) -> tuple[Any, Any]:
        state, token = step(carry[0], carry[1][:, None], key)
        return (state, token), token

    rest = None if keys is None else keys[1:]
    _, more = jax.lax.scan(one, (state, token), rest, length=length - 1)
    return jnp.concatenate([prompt, token[:, None], more.T], 1)


def _draw(logits: Any, key: Any, *, temperature: float, top_p: float) -> Any:
    """A token a row: the likeliest, or with a key one drawn."""
    if key is None:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_p < 1:
        order = jnp.sort(logits, -1)[..., ::-1]
        share = jnp.cumsum(jax.nn.softmax(order, -1), -1)
        # The first that reaches the share is in too, so there always is one.
        inside = jnp.sum(share < top_p, -1, keepdims=True)
        least = jnp.take_along_axis(order, inside, -1)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.random.categorical(key, logits)


# ------------------------------------------------------------------------ layers with a past


def _keeping(longest: int, layer: Layer) -> Layer:
    """The layer with a past, if it looks back; else the layer."""
    if isinstance(layer, Attention):
        return _keys_and_values(layer, longest)
    return _place(layer, longest) if layer.name == "learned_positions" else layer


def _keys_and_values(layer: Attention, longest: int) -> Layer:
    how = layer.how

    def init(key: Any, x: Any) -> Cached:
        features = x.shape[-1] // (how.heads + 2 * how.kv_heads)
        past = jnp.zeros((x.shape[0], how.kv_heads, longest, features), x.dtype)
        return Cached((), (past, past, jnp.zeros((), jnp.int32)))

    def forward(params: Cached, x: Any, key: Any = None) -> tuple[Any, Any]:
        ks, vs, place = params.past
        q, k, v = how.split(x, place)
        ks = jax.lax.dynamic_update_slice_in_dim(ks, k.astype(ks.dtype), place, 2)
        vs = jax.lax.dynamic_update_slice_in_dim(vs, v.astype(vs.dtype), place, 2)
        z = jnp.einsum("bgrif,bgjf->bgrij", q, ks, preferred_element_type=widen(q).dtype)
        query = place + jnp.arange(x.shape[1])[:, None]
        places = jnp.arange(longest)[None]
        seen = how.visible(query, places) & (places <= query)
        p = jax.nn.softmax(jnp.where(lifted(seen, z), z, -jnp.inf), -1).astype(vs.dtype)
        y = jnp.einsum("bgrij,bgjf->bgrif", p, vs)
        y = y.reshape(len(x), how.heads, *y.shape[3:]).swapaxes(1, 2)
        return y.reshape(*x.shape[:-1], -1), Recorded(Next((ks, vs, place + x.shape[1])))

    return Layer(init, forward, layer.backward, layer.name)


def _place(layer: Layer, longest: int) -> Layer:
    def init(key: Any, x: Any) -> Cached:
        own = layer.init(key, x)
        if len(own) < longest:
            raise ValueError(f"the model has {len(own)} positions, prompt and length are {longest}")
        return Cached(own, jnp.zeros((), jnp.int32))

    def forward(params: Cached, x: Any, key: Any = None) -> tuple[Any, Any]:
        rows = jax.lax.dynamic_slice_in_dim(params.params, params.past, x.shape[1], 0)
        return x + lifted(rows, x), Recorded(Next(params.past + x.shape[1]))

    return Layer(init, forward, layer.backward, layer.name)
