"""A model that others have trained, with its weights."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from funprop.layer import Layer
from funprop.losses import LinearParams
from funprop.models import language_model, unembedding
from funprop.train.data.tokenizer import read_tokenizer
from funprop.trees import size

if TYPE_CHECKING:
    from funprop.typing import Array, Float, Int, PyTree

TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """A language model as `from_pretrained` gives it.

    Attributes:
      model: `fp.gpt` or `fp.llama`, from tokens to hidden states.
      params: all weights: those of `language_model(model, vocabulary, tied=tied)`.
      config: what config.json said.
      folder: where it came from.
      vocabulary: how many tokens there are.
      tied: whether the head is the embedding's table.

    Example:
      >>> import tempfile, jax.numpy as jnp, funprop as fp
      >>> config = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 8, "n_layer": 2, "n_head": 2}
      >>> model = fp.language_model(fp.gpt(50, features=8, depth=2, heads=2), 50)
      >>> x = jnp.zeros((1, 1), int)
      >>> folder = fp.to_pretrained(
      ...     tempfile.mkdtemp(), model.init(jax.random.key(0), (x, x)), config
      ... )
      >>> loaded = fp.from_pretrained(folder)
      >>> loaded.logits(x).shape
      (1, 1, 50)
    """

    model: Layer
    params: Any
    config: dict[str, Any]
    folder: Path
    vocabulary: int
    tied: bool

    def objective(self, **loss: Any) -> Layer:
        """To predict the next token, from `(tokens, next tokens)`: the layer whose params `params`
        are. What else it takes is `language_model`'s."""
        return language_model(self.model, self.vocabulary, tied=self.tied, **loss)

    def parts(self, params: PyTree = None) -> tuple[Any, LinearParams]:
        """The params of `model`, and the head: what `generate` takes.

        Args:
          params: as `self.params`, such as after training; those themselves if not given.
        """
        params = self.params if params is None else params
        return (params, unembedding(params)) if self.tied else tuple(params)  # pyright: ignore

    def logits(
        self, tokens: Int[Array, "batch t"], params: PyTree = None
    ) -> Float[Array, "batch t vocabulary"]:
        """Of the token after each of these. They are whole in memory, which training needs not."""
        own, head = self.parts(params)
        hidden, _ = self.model.forward(own, tokens)
        return hidden @ head.w.T

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer.json, a `tokenizers.Tokenizer`: `encode(text).ids`, `decode(ids)`.

        Raises:
          FileNotFoundError: there is none.
          ModuleNotFoundError: tokenizers is missing.
        """
        return read_tokenizer(self.folder / TOKENIZER)

    def __repr__(self) -> str:
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(self.params)}
        return (
            f"Pretrained({self.model.name} from {self.folder}: {size(self.params):,} params, "
            f"{' and '.join(sorted(dtypes))}, {self.vocabulary:,} tokens)"
        )
