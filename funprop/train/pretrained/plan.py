"""What a config.json says of a model: its layer, and where each leaf of its params is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.layer import Layer
from funprop.models import keep_products, language_model
from funprop.models.pretrained import Config, Family, Row, family_of
from funprop.trees import path_string

CONFIG, HEAD = "config.json", "lm_head.weight"


class Plan(NamedTuple):
    """What is known of a model before its weights are read.

    Attributes:
      family, model, vocabulary, tied: of the model.
      tree: the structure of its params, those of `language_model`.
      leaves: each leaf's path, its row and its shape, in the order of the tree's leaves.
    """

    family: Family
    model: Layer
    vocabulary: int
    tied: bool
    tree: Any
    leaves: dict[str, tuple[Row, tuple[int, ...]]]

    def objective(self, **loss: Any) -> Layer:
        """To predict the next token: the layer whose params the leaves are."""
        return language_model(self.model, self.vocabulary, tied=self.tied, **loss)


def planned(
    entries: dict[str, Any],
    where: str | Path = CONFIG,
    rewrite: Callable[[Layer], Layer] = keep_products,
) -> Plan:
    """The plan of a configuration.

    Raises:
      ValueError: it has what we lack, or sizes that do not fit.
    """
    config = Config(entries, str(where))
    family = family_of(config)
    tied = config.flag("tie_word_embeddings", family.tied)
    tokens, key = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.random.key(0)
    try:
        model = family.model(config, rewrite)
        vocabulary = jax.tree.leaves(jax.eval_shape(model.init, key, tokens))[0].shape[0]
        whole = language_model(model, vocabulary, tied=tied)
        specs = jax.eval_shape(whole.init, key, (tokens, tokens))
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(str(where)) else f"{where}: {said}") from None
    found, tree = jax.tree_util.tree_flatten_with_path(specs)
    rows = family.rows(config)
    if not tied:
        rows = [row._replace(ours=f"{model.name}/{row.ours}") for row in rows]
        rows.append(Row("head/w", (HEAD,)))
    by_path = {row.ours: row for row in rows}
    leaves = {path_string(path): leaf.shape for path, leaf in found}
    assert by_path.keys() == leaves.keys(), by_path.keys() ^ leaves.keys()
    pairs = {path: (by_path[path], shape) for path, shape in leaves.items()}
    return Plan(family, model, vocabulary, tied, tree, pairs)
