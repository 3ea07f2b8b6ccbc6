"""What `funprop finetune` works with: a model with adapters, its text, its samples."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.layer import Layer
from funprop.models import generate
from funprop.params import trained
from funprop.params.frozen import with_trained
from funprop.rewrites import adapted, low_rank, merged, remat
from funprop.train.data.prepare import prepare
from funprop.train.pretrained import Pretrained, from_pretrained
from funprop.train.pretrained.loaded import TOKENIZER
from funprop.train.pretrained.plan import planned
from funprop.train.runs.corpus import TIME, Text, token_file
from funprop.verify import verify

PROMPT, SAMPLE = 8, 60  # tokens


class Tuned(NamedTuple):
    """A model, and the same with adapters.

    Attributes:
      loaded: as it came.
      whole, small: its objective, and the one whose adapters alone are trained.
      params: of `small`.
    """

    loaded: Pretrained
    whole: Layer
    small: Layer
    params: Any


def tuned_by(settings: dict[str, Any]) -> Tuned:
    loaded = from_pretrained(settings["pretrained"], rewrite=remat)
    whole, where, rank = loaded.objective(), settings["where"], settings["rank"]
    small = low_rank(whole, where, rank)
    key = jax.random.key(settings["seed"])
    params = adapted(whole, where, rank, loaded.params, key)
    # Adapters learn in float32, whatever they adapt.
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained(params))
    return Tuned(loaded, whole, small, with_trained(params, wide))


def text_of(settings: dict[str, Any], loaded: Pretrained) -> Text:
    """Windows of the text, by the model's own tokens."""
    files = [Path(file) for file in settings["texts"]]
    longest = _longest(loaded)
    length = settings["length"] or min(TIME, longest or TIME)
    if longest is not None and length > longest:
        raise ValueError(f"length must be at most {longest}, the model's positions, got {length}")
    size = settings["batch_size"]
    if [file.suffix for file in files] == [".bin"]:
        text = token_file(files[0], size, length)
    else:
        tokenizer = Path(settings["pretrained"]) / TOKENIZER
        with tempfile.TemporaryDirectory() as draft:  # a file that is open may go
            tokens, data = Path(draft) / "tokens.bin", settings["data"]
            names = {f"{draft}/tokens-held-out.bin": f"what is held out of {data}"}
            try:
                prepare(files, tokens, tokenizer=tokenizer, held_out=settings["held_out"])
                text = token_file(tokens, size, length)
            except ValueError as error:
                raise ValueError(_said(str(error), names | {str(tokens): data})) from None
            text = text._replace(title=_said(text.title, {str(tokens): data}))
    if text.vocabulary > loaded.vocabulary:
        raise ValueError(
            f"tokens must be the model's, which has {loaded.vocabulary:,}, got {text.vocabulary:,}"
        )
    return text


def _said(text: str, names: dict[str, str]) -> str:
    """With files that nobody knows called by what is in them."""
    for file, name in names.items():
        text = text.replace(file, name)
    return text


def _longest(loaded: Pretrained) -> int | None:
    """How many positions the model has, where they are learned."""
    own, _ = loaded.parts()
    return own.positions.table.shape[0] if "positions" in own._fields else None


def verify_adapters(tuned: Tuned, settings: dict[str, Any]) -> None:
    """Judge the gradient of the adapters, every backward pass in a chain, in float64: of the same
    model made small, as its layers are the same."""
    config = tuned.loaded.config | planned(tuned.loaded.config).family.small
    plan = planned(config)
    whole = plan.objective()
    small = low_rank(whole, settings["where"], 2)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        tokens = jnp.asarray(rng.integers(0, plan.vocabulary, (2, 6)), jnp.int32)
        specs = jax.eval_shape(small.init, jax.random.key(0), (tokens, tokens))
        params = jax.tree.map(lambda spec: jnp.asarray(rng.normal(0, 0.5, spec.shape)), specs)
        # Without its children in sight, the whole is judged as one.
        report = verify(
            dataclasses.replace(small, children=(), rebuild=None), params, (tokens, tokens)
        )
    print(f"The gradient of the adapters, of the same model made small, in float64\n\n{report}\n")
    report.raise_if_wrong()


def drawing(
    loaded: Pretrained, text: Text, prompt: str | None, key: Any
) -> Callable[[Any, int], str] | None:
    """What the model writes after the prompt; nothing where there is no tokenizer."""
    if not (loaded.folder / TOKENIZER).exists():
        return None
    tokenizer, longest = loaded.tokenizer, _longest(loaded)
    if prompt is None:
        ids = [int(i) for i in text.held_out[0][0, :PROMPT]]
    else:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    room = SAMPLE if longest is None else min(SAMPLE, longest - len(ids))
    if not ids or room < 1:
        raise ValueError(f"prompt must be of 1 to {(longest or 2) - 1} tokens, got {len(ids)}")

    def draw(params: Any, turn: int) -> str:
        own, head = loaded.parts(merged(jax.device_get(params)))
        how = {"key": jax.random.fold_in(key, turn), "temperature": 0.8, "top_p": 0.95}
        made = generate(loaded.model, own, head, jnp.asarray([ids]), room, **how)
        known = [int(i) for i in made[0] if i < tokenizer.get_vocab_size()]
        return tokenizer.decode(known)

    return draw
