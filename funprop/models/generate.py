"""Text from a language model, one token after the other, with what layers keep of the past."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funprop import trees
from funprop.checks import check_key
from funprop.decoding import decoding_of
from funprop.layer import Layer, check_layer
from funprop.located import check_params
from funprop.losses import LinearParams
from funprop.models.sampling import Sampling, draw, sampling
from funprop.values import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Int, Key


def generate(
    model: Layer,
    params: Any,
    head: LinearParams,
    prompt: Int[Array, "batch t"],
    length: int,
    *,
    key: Key[Array, ""] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Int[Array, "batch t+length"]:
    """`prompt` with `length` more tokens.

    The prompt goes through the model at once, then each new token alone: every layer says how it
    runs token by token (`Layer.decoding`), and what it keeps of the past is carried along. The text
    is that of the whole model on the growing sequence. Compiled once for a model and shapes, and
    kept as long as the model is.

    Args:
      model: such as `gpt` or `llama`, from tokens `[batch, t]` to hidden states
        `[batch, t, features]`; any rewrite of one, with its params.
      params: of the model.
      head: the unembedding, such as `unembedding(params)`.
      prompt: at least one token each, of those that the head knows; taken as int32.
      length: how many tokens to add.
      key: for drawing; without it, always the likeliest token.
      temperature: divides the logits: below one for safer text, above for wilder; at zero the
        likeliest token.
      top_k: draws only among that many of the likeliest tokens.
      top_p: draws only among the fewest likeliest tokens that have this share of the probability
        together, the one that reaches it included; of what temperature and `top_k` leave.

    Returns:
      int32. Inside another `jit`, where it cannot raise, a token is -1 from where the logits are
      not finite.

    Raises:
      ValueError: a number is out of its range; the prompt is empty or has a token that the head
        does not know; a layer of the model does not say how it runs token by token, or has too few
        positions; params are not the model's; or logits are not finite.
      TypeError: the prompt is not of integers, or an argument is of another kind.

    Example:
      >>> import funprop as fp
      >>> model = fp.gpt(50, features=8, depth=2, heads=2, longest=16)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
      >>> generate(model, params, fp.unembedding(params), jnp.array([[1, 2]]), 3).shape
      (1, 5)
    """
    how = sampling(temperature, top_k, top_p)
    check_layer("model", model, "gpt(50)")
    check_key(key)
    length = _checked_length(length)
    _check_head(head)
    prompt = _checked_prompt(prompt, head.w.shape[0])
    text = _compiled(model)(length, params, head, prompt, how, key)
    if not isinstance(text, Tracer):
        _check_finite(text, prompt.shape[1])
    return text


# The programs of a model go with it: a cache of `jax.jit` over models would keep both for ever.
_PROGRAMS: weakref.WeakKeyDictionary[Layer, Callable[..., Any]] = weakref.WeakKeyDictionary()


def _compiled(model: Layer) -> Callable[..., Any]:
    if model not in _PROGRAMS:
        run = functools.partial(_generate, weakref.ref(model))
        _PROGRAMS[model] = jax.jit(run, static_argnums=0)
    return _PROGRAMS[model]


def _generate(
    model_ref: Any,
    length: int,
    params: Any,
    head: LinearParams,
    prompt: Any,
    how: Sampling,
    key: Any,
) -> Any:
    model = model_ref()
    check_params(model, params, prompt)
    decoding = decoding_of(model)

    def next_token(hidden: Any, i: Any) -> Any:
        _check_hidden(hidden, head)
        logits = _logits(hidden[:, -1], head)
        token = logits.argmax(-1)
        if key is not None:
            token = draw(logits, how, jax.random.fold_in(key, i))
        return jnp.where(jnp.isfinite(logits.max(-1)), token, -1).astype(jnp.int32)

    def one(carry: Any, i: Any) -> tuple[Any, Any]:
        cache, token = carry
        hidden, cache = decoding.advance(params, cache, token[:, None])
        token = next_token(hidden, i)
        return (cache, token), token

    hidden, cache = decoding.prefill(params, prompt, prompt.shape[1] + length)
    token = next_token(hidden, 0)
    _, more = jax.lax.scan(one, (cache, token), jnp.arange(1, length, dtype=jnp.int32))
    return jnp.concatenate([prompt, token[:, None], more.T], 1)


def _logits(hidden: Any, head: LinearParams) -> Any:
    """In the widest of the dtypes that there are, float32 at least."""
    given = [trees.widen(leaf) for leaf in (hidden, head.w, head.b) if leaf is not None]
    dtype = max((leaf.dtype for leaf in given), key=lambda dtype: dtype.itemsize)
    hidden, w, *b = (leaf.astype(dtype) for leaf in given)
    return hidden @ w.T + b[0][None] if b else hidden @ w.T


# ---------------------------------------------------------------------------------------- checks


def _check_head(head: Any) -> None:
    if not isinstance(head, LinearParams):
        raise TypeError(f"head must be LinearParams(w, b), got {type(head).__name__}")
    if jnp.ndim(head.w) != 2 or (head.b is not None and head.b.shape != head.w.shape[:1]):
        shapes = [jnp.shape(leaf) for leaf in head if leaf is not None]
        raise ValueError(
            f"head must have w [vocabulary, features] and b [vocabulary] or None, got {shapes}"
        )


def _checked_prompt(prompt: Any, vocabulary: int) -> Any:
    """`prompt` in int32."""
    if hasattr(prompt, "dtype") and jnp.issubdtype(prompt.dtype, jax.dtypes.prng_key):
        raise TypeError(f"prompt must be of integers, got {prompt.dtype}")
    try:
        known = prompt if isinstance(prompt, Tracer) else np.asarray(prompt)
    except ValueError:
        raise ValueError("prompt must be [batch, time], got rows of different lengths") from None
    if known.ndim != 2 or 0 in known.shape:
        raise ValueError(
            f"prompt must be [batch, time] and not empty, got shape {tuple(known.shape)}"
        )
    if not jnp.issubdtype(known.dtype, jnp.integer):
        raise TypeError(f"prompt must be of integers, got {known.dtype}")
    if not isinstance(known, Tracer):
        wrong = np.argwhere((known < 0) | (known >= vocabulary))
        if len(wrong):
            row, place = wrong[0]
            raise ValueError(
                f"prompt must have tokens from 0 to {vocabulary - 1}, got {known[row, place]} at "
                f"place {place} of row {row}"
            )
    return known.astype(np.int32)


def _checked_length(length: Any) -> int:
    return whole_number(length, "length", 1)


def _check_hidden(hidden: Any, head: LinearParams) -> None:
    features = head.w.shape[1]
    if isinstance(hidden, tuple) or hidden.ndim != 3 or hidden.shape[2] != features:
        got = ", ".join(map(trees.spec_string, jax.tree.leaves(hidden)))
        raise ValueError(
            f"model must give [batch, time, {features}] to go with the head, got {got}"
        )


def _check_finite(text: Any, start: int) -> None:
    wrong = np.argwhere(np.asarray(text) < 0)
    if len(wrong):
        row, place = wrong[0]
        raise ValueError(
            f"logits must be finite, got others for token {place - start} after the prompt of row "
            f"{row}: params or head hold NaN or infinity, or the embedding has no row for a token"
        )
